//! Directories of test worlds. Each says whose it is, so that tests that run side by side do not count each other's
//! processes as left behind.

use std::fs;
use std::path::Path;

use anyhow::Result;
use tempfile::TempDir;

/// A directory that goes when it is dropped. `name` tells people what it is for.
pub fn dir(name: &str) -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix(&format!("infranetes-{name}-")).tempdir()?;
    fs::write(dir.path().join(OWNER), std::process::id().to_string())?;
    Ok(dir)
}

/// Whether a text (a command line, a mount point) names the world of a test in another process.
pub fn is_anothers(text: &str) -> bool {
    let start = std::env::temp_dir().join("infranetes-").to_string_lossy().into_owned();
    text.match_indices(&start).any(|(at, _)| {
        let rest = &text[at + start.len()..];
        let end = rest.find(['/', ' ', ',', '"', '\'']).unwrap_or(rest.len());
        let dir = &text[at..at + start.len() + end];
        let owner = fs::read_to_string(Path::new(dir).join(OWNER));
        owner.is_ok_and(|owner| owner != std::process::id().to_string())
    })
}

const OWNER: &str = "owner";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_another_process_made_is_anothers() {
        let own = dir("own").unwrap();
        let other = dir("other").unwrap();
        fs::write(other.path().join(OWNER), "1").unwrap();
        let (own, other) = (own.path().display(), other.path().display());
        for (text, expected) in [
            (format!("agent --state {own}/state"), false),
            (format!("agent --state {other}/state"), true),
            (format!("qemu file={own}/a,path={other},x"), true),
            (format!("agent --state {other}gone/state"), false),
            ("sleep 1000".to_owned(), false),
        ] {
            assert_eq!(is_anothers(&text), expected, "{text}");
        }
    }
}
