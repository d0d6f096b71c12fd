//! The quick part of what CI runs: format, lints, tidy, and licences and advisories where cargo-deny is installed.

use anyhow::{Context, Result};

use crate::program::is_installed;
use crate::progress::Progress;
use crate::tidy;
use crate::workspace::{Workspace, cargo};

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut progress = Progress::new("check", 4);
    progress.step("format");
    cargo().args(["fmt", "--all", "--check"]).run().context("`cargo fmt --all` mends this")?;
    progress.step("lints");
    let clippy = cargo().args(["clippy", "--quiet", "--workspace", "--all-targets"]);
    clippy.args(["--", "-D", "warnings"]).run()?;
    progress.step("tidy");
    tidy::run(workspace)?;
    progress.step("licences and advisories");
    if is_installed("cargo-deny") {
        cargo().args(["deny", "--all-features", "check"]).run()?;
    } else {
        progress.note("skipped: cargo-deny is not installed");
    }
    progress.done("all clean");
    Ok(())
}
