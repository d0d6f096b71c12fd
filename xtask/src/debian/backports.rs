//! The backports of this Debian, without a change of the machine's own sources.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::program::Program;

/// Options that make apt-get prefer backports. Lists of packages are kept in `cache`.
pub(super) fn options(cache: &Path) -> Result<Vec<String>> {
    let release = release_name(&fs::read_to_string("/etc/os-release").unwrap_or_default())?;
    let suite = format!("{release}-backports");
    let targets = Program::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"])
        .arg("Created-By: Packages")
        .output()?;
    if targets.lines().any(|line| line.split(' ').nth(1) == Some(&suite)) {
        return Ok(vec!["-t".to_owned(), suite]);
    }
    let source = source_line(&targets, &release, &suite).with_context(|| {
        format!("this machine has no source for {release} main, so none for {suite}")
    })?;
    private_lists(cache, &source, suite)
}

/// Lists of their own: those of the machine and the one more source.
fn private_lists(cache: &Path, source: &str, suite: String) -> Result<Vec<String>> {
    let lists = cache.join("lists");
    fs::create_dir_all(lists.join("partial"))
        .with_context(|| format!("{} cannot be made", lists.display()))?;
    let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let sources = cache.join("sources.list");
    fs::write(&sources, format!("{own}\n{source}\n"))
        .with_context(|| format!("{} cannot be written", sources.display()))?;
    let mut options = Vec::new();
    for (name, value) in [
        ("Dir::Etc::sourcelist", sources.display().to_string()),
        ("Dir::State::lists", lists.display().to_string()),
        // The user that apt-get else becomes cannot read below every home.
        ("APT::Sandbox::User", "root".to_owned()),
    ] {
        options.extend(["-o".to_owned(), format!("{name}={value}")]);
    }
    Program::new("apt-get")
        .args(&options)
        .args(["-q", "-q", "update"])
        .output()
        .context("the lists of backported packages cannot be fetched (no network?)")?;
    options.extend(["-t".to_owned(), suite]);
    Ok(options)
}

fn release_name(os_release: &str) -> Result<String> {
    let value = |key: &str| {
        let lines = os_release.lines().filter_map(|line| line.split_once('='));
        lines.filter(|(name, _)| *name == key).map(|(_, value)| value.trim_matches('"')).next()
    };
    match (value("ID"), value("VERSION_CODENAME")) {
        (Some("debian"), Some(release)) => Ok(release.to_owned()),
        _ => bail!("this machine is no Debian release, so there are no backports for it"),
    }
}

/// A source line for the backports on the server that gives the release itself.
fn source_line(targets: &str, release: &str, suite: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (uri, of, component) = (words.next()?, words.next()?, words.next()?);
        if of != release || component != "main" {
            return None;
        }
        Some(format!("deb [signed-by={KEYRING}] {uri} {suite} main"))
    })
}

/// The keys of Debian's archive, where its package debian-archive-keyring puts them; apt itself needs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_backports_is_where_the_release_comes_from() {
        let targets = "https://tools.example/apt stable main\n\
                       http://mirror.example/debian/ bookworm main\n";
        let line = source_line(targets, "bookworm", "bookworm-backports").unwrap();
        assert!(
            line.ends_with(".gpg] http://mirror.example/debian/ bookworm-backports main"),
            "{line}"
        );
        assert_eq!(source_line(targets, "trixie", "trixie-backports"), None);
    }

    #[test]
    fn only_debian_has_backports() {
        let name = |text: &str| release_name(text).ok();
        assert_eq!(name("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(name("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(name(""), None);
    }
}
