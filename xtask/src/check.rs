//! The quick part of what CI runs: format, lints, tidy, docs, packages, and licences and advisories where cargo-deny is installed.

use anyhow::{Context, Result};

use crate::program::is_installed;
use crate::progress::Progress;
use crate::tidy;
use crate::workspace::{Workspace, cargo};

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut progress = Progress::new("check", 6);
    progress.step("format");
    cargo().args(["fmt", "--all", "--check"]).run().context("`cargo fmt --all` mends this")?;
    progress.step("lints");
    let clippy = cargo().args(["clippy", "--quiet", "--workspace", "--all-targets"]);
    clippy.args(["--", "-D", "warnings"]).run()?;
    progress.step("tidy");
    tidy::run(workspace)?;
    progress.step("docs");
    document(workspace)?;
    progress.step("packages");
    package(workspace)?;
    progress.step("licences and advisories");
    if is_installed("cargo-deny") {
        cargo().args(["deny", "--all-features", "check"]).run()?;
    } else {
        progress.note("skipped: cargo-deny is not installed");
    }
    progress.done("all clean");
    Ok(())
}

/// Packs what is published, all of it together, as a registry would get it. Whether the packages build is tried before a
/// release (CONTRIBUTING.md), because it builds everything once more.
fn package(workspace: &Workspace) -> Result<()> {
    let pack = cargo().dir(workspace.root()).args(["package", "--quiet", "--no-verify"]);
    pack.args(["--allow-dirty", "--offline"]).args(published(workspace)).run()
}

/// What is published has docs without a broken link.
fn document(workspace: &Workspace) -> Result<()> {
    let doc = cargo().dir(workspace.root()).env("RUSTDOCFLAGS", "-D warnings");
    doc.args(["doc", "--quiet", "--no-deps"]).args(published(workspace)).run()
}

fn published(workspace: &Workspace) -> impl Iterator<Item = &str> {
    let published = workspace.packages.iter().filter(|package| package.is_published());
    published.flat_map(|package| ["--package", package.name.as_str()])
}
