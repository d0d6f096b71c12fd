//! Markdown files: every link within this repository leads somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::Workspace;

pub(super) fn check(workspace: &Workspace, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|it| it == "md")) {
        let text = fs::read_to_string(workspace.root().join(path))
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let broken = links(&text).into_iter().filter(|link| !leads(workspace.root(), path, link));
        findings.extend(broken.map(|link| format!("{}: {link} leads nowhere", path.display())));
    }
    Ok(findings)
}

/// Whether a link in the page at `path` leads somewhere; links to other sites are not followed.
fn leads(root: &Path, path: &Path, link: &str) -> bool {
    if link.contains("://") || link.starts_with("mailto:") {
        return true;
    }
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => root.join(path),
        _ => root.join(path.parent().unwrap_or(Path::new(""))).join(file),
    };
    if heading.is_empty() {
        return target.exists();
    }
    let text = fs::read_to_string(target).unwrap_or_default();
    let headings = lines_outside_of_code(&text).filter(|line| line.starts_with('#')).map(anchor);
    headings.into_iter().any(|anchor| anchor == heading)
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in lines_outside_of_code(text) {
        // What stands between backticks is no link.
        let line: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for (at, _) in line.match_indices("](") {
            if let Some((link, _)) = line[at + 2..].split_once(')') {
                links.push(link.split(' ').next().unwrap_or_default().to_owned());
            }
        }
    }
    links
}

fn lines_outside_of_code(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// The anchor of a heading, as forges make it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_of_code() {
        let text =
            "a [b](c.md) and [d](e.md#f)\n```\n[no](x.md)\n```\n`[no](y.md)` [g](#h \"title\")\n";
        assert_eq!(links(text), ["c.md", "e.md#f", "#h"]);
    }

    #[test]
    fn a_link_leads_to_a_file_and_to_a_heading_in_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("docs")).unwrap();
        fs::write(dir.path().join("docs/a.md"), "# One `two`, three\n").unwrap();
        let leads = |link: &str| leads(dir.path(), Path::new("docs/a.md"), link);
        for link in ["a.md", "#one-two-three", "../docs/a.md#one-two-three", "https://a.example/b"]
        {
            assert!(leads(link), "{link}");
        }
        for link in ["b.md", "#two", "a.md#two", "../a.md"] {
            assert!(!leads(link), "{link}");
        }
    }
}
