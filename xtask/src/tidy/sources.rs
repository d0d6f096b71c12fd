//! Rust files: their size, unfinished code, and where `unsafe` is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::map::Map;
use crate::workspace::Workspace;

pub(super) fn check(workspace: &Workspace, map: &Map, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|it| it == "rs")) {
        let text = fs::read_to_string(workspace.root().join(path))
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let may_be_unsafe = map.unsafe_dirs.iter().any(|dir| path.starts_with(dir));
        findings.extend(check_file(&text, may_be_unsafe).into_iter().map(|it| at(path, &it)));
    }
    Ok(findings)
}

fn check_file(text: &str, may_be_unsafe: bool) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = text.lines().take_while(|line| *line != TESTS).count();
    if lines >= LIMIT {
        findings.push(format!(
            "{lines} lines before its tests; fewer than {LIMIT} are allowed: split it by noun"
        ));
    }
    for (number, code) in code_of(text).lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| code.contains(*word)) {
            findings.push(format!("line {}: {word}", number + 1));
        }
        if !may_be_unsafe && has_word(code, "unsafe") {
            findings.push(format!(
                "line {}: unsafe, where ARCHITECTURE.md does not allow it",
                number + 1
            ));
        }
    }
    findings
}

/// The text with blanks for comments and for what stands in quotes; lines stay lines.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = quoted(rest).filter(|length| *length > 0);
        let length = skipped.unwrap_or(c.len_utf8());
        let (taken, after) = rest.split_at(length);
        if skipped.is_some() {
            code.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        } else {
            code.push(c);
        }
        rest = after;
    }
    code
}

/// The length of the comment or literal that `text` begins with, if it does.
fn quoted(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(text.find("*/").map_or(text.len(), |at| at + 2));
    }
    if let Some(raw) = text.strip_prefix("r").filter(|raw| raw.starts_with(['#', '"'])) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let inner = raw[hashes..].strip_prefix('"')?;
        return Some(inner.find(&end).map_or(text.len(), |at| 2 + hashes + at + end.len()));
    }
    if let Some(inner) = text.strip_prefix('\'') {
        // A character, not a lifetime: one that ends in a quote.
        let escaped = inner.starts_with('\\');
        let end = inner.char_indices().nth(if escaped { 2 } else { 1 })?;
        return (end.1 == '\'').then_some(end.0 + 2);
    }
    let inner = text.strip_prefix('"')?;
    let mut is_escaped = false;
    for (at, c) in inner.char_indices() {
        if c == '"' && !is_escaped {
            return Some(at + 2);
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    Some(text.len())
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|it| it == word)
}

fn at(path: &Path, finding: &str) -> String {
    format!("{}: {finding}", path.display())
}

const LIMIT: usize = 600;
const TESTS: &str = "#[cfg(test)]";
const UNFINISHED: [&str; 3] = ["todo!(", "unimplemented!(", "dbg!("];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_and_unsafe_code_is_found() {
        check("fn a() { todo!() }", 1);
        check("fn a() { unimplemented!(\"later\") }", 1);
        check("let b = unsafe { c() };", 1);
        check("#[unsafe(no_mangle)]", 1);
        assert_eq!(check_file("let b = unsafe { c() };", true), Vec::<String>::new());
    }

    #[test]
    fn comments_strings_and_longer_words_are_no_code() {
        check("// unsafe is denied; todo!()", 0);
        check("    let text = \"unsafe and todo!()\";", 0);
        check("#![deny(unsafe_code)]", 0);
        check("let quote = '\"'; let text = \"todo!()\";", 0);
        check("let text = \"a \\\" todo!()\"; b", 0);
        check("let text = \"first\n todo!()\n\"; /* dbg!(\n) */", 0);
        check("let text = r#\"a \" todo!()\"#;", 0);
        check("fn a<'a>(b: &'a str) { todo!() }", 1);
        check("let a = \"\\\\\"; todo!()", 1);
    }

    #[test]
    fn tests_do_not_count_as_lines_of_a_file() {
        let line = "let a = 1;\n";
        check(&line.repeat(599), 0);
        check(&line.repeat(600), 1);
        check(&format!("{}#[cfg(test)]\n{}", line.repeat(599), line.repeat(300)), 0);
    }

    fn check(text: &str, findings: usize) {
        let found = check_file(text, false);
        assert_eq!(found.len(), findings, "{found:?}");
    }
}
