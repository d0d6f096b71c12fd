//! The next minor of the ABI, made from a copy of the SDK by the very steps of `docs/abi.md`: its plugins in this host, and this
//! checkout's plugins in its host.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::fixtures::{Built, Fixtures};
use super::run_host_tests;
use super::toolchain::Toolchain;
use crate::workspace::{Workspace, cargo};

/// The name of the row.
pub(super) const NAME: &str = "next-minor";

pub(super) fn try_out(workspace: &Workspace) -> Result<String> {
    let tree = copy(workspace).context("cannot make the next minor")?;
    let old = build(workspace, "this-minor", workspace.root())?;
    let new = build(workspace, NAME, &tree)?;
    let (from, to) = (old.manifest("abi")?, new.manifest("abi")?);
    ensure!(from != to, "both plugins say that they speak ABI {from}");
    run_host_tests(workspace, &new).with_context(|| format!("a plugin of ABI {to}"))?;
    let host = Host { workspace, tree: &tree };
    host.run(&new, NEW_REVISION).with_context(|| format!("a host and a plugin of ABI {to}"))?;
    host.run(&old, OLD_REVISION)
        .with_context(|| format!("a host of ABI {to}, a plugin of {from}"))?;
    Ok(format!("passed; a plugin of ABI {to} in a host of {from}, and the reverse"))
}

fn build(workspace: &Workspace, name: &'static str, tree: &Path) -> Result<Built> {
    let fixtures = Fixtures::write(workspace, name, tree)?;
    fixtures.settle(&[])?;
    fixtures.build(&Toolchain::Ours, "", false)
}

/// The copy's loader.
struct Host<'w> {
    workspace: &'w Workspace,
    tree: &'w Path,
}

impl Host<'_> {
    /// Runs the loader's calls and the tests of what the next minor adds.
    fn run(&self, plugins: &Built, revision: &str) -> Result<()> {
        cargo()
            .dir(self.tree)
            .env("CARGO_TARGET_DIR", self.workspace.target().join("skew/build/next-minor-host"))
            .env("INFRANETES_FIXTURES", plugins.dir())
            .env("INFRANETES_SKEW_REVISION", revision)
            .args(["test", "--quiet", "--package", "infranetes-loader"])
            .args(["--test", "calls", "--test", "instances", "--test", "newer_host"])
            .quietly()
    }
}

/// Copies what a host and a plugin need, and appends to each type of the ABI what may be appended.
fn copy(workspace: &Workspace) -> Result<PathBuf> {
    let (from, to) = (workspace.root(), workspace.target().join("skew").join(NAME).join("tree"));
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    for file in workspace.files()?.iter().filter(|file| file.starts_with("sdk")) {
        let target = to.join(file);
        fs::create_dir_all(target.parent().unwrap_or(&to))?;
        fs::copy(from.join(file), &target)?;
    }
    fs::copy(from.join("Cargo.lock"), to.join("Cargo.lock"))?;
    fs::write(
        to.join("Cargo.toml"),
        smaller_workspace(&fs::read_to_string(from.join("Cargo.toml"))?)?,
    )?;
    fs::write(to.join("sdk/loader/tests/newer_host.rs"), include_str!("newer_host.rs.txt"))?;
    for (file, line, insertion) in APPENDED {
        insert(&to.join(file), line, insertion)?;
    }
    let manifest = to.join("sdk/loader/Cargo.toml");
    fs::write(&manifest, without_benchmark(&fs::read_to_string(&manifest)?))?;
    replace(&to.join("sdk/abi/Cargo.toml"), "version = \"1.0.0\"", "version = \"1.1.0\"")?;
    replace(
        &to.join("sdk/abi/src/export.rs"),
        "{ start: M::start }",
        "{ start: M::start, revision }",
    )?;
    cargo().dir(&to).args(["update", "--quiet", "--workspace", "--offline"]).run()?;
    Ok(to)
}

/// The workspace's manifest with the SDK's members alone.
fn smaller_workspace(manifest: &str) -> Result<String> {
    let (before, rest) = manifest.split_once("members = [").context("no list of members")?;
    let (_, after) = rest.split_once(']').context("an open list of members")?;
    Ok(format!("{before}members = [\"sdk\", \"sdk/abi\", \"sdk/loader\"]{after}"))
}

/// The loader's manifest without gRPC, which the benchmark alone needs, and without the table of its examples.
fn without_benchmark(manifest: &str) -> String {
    const NEEDED_BY_IT: [&str; 5] =
        ["hyper-util", "tokio-stream", "tonic.", "tonic ", "tonic-prost"];
    let needed = |line: &&str| !NEEDED_BY_IT.iter().any(|name| line.starts_with(name));
    let rest = manifest.split("[[example]]").next().unwrap_or(manifest);
    let mut lines: Vec<&str> = rest.lines().filter(needed).collect();
    lines.push("");
    lines.join("\n").replacen("[lints]", "autoexamples = false\n\n[lints]", 1)
}

/// Inserts lines behind the first line that contains `line`.
fn insert(path: &Path, line: &str, insertion: &str) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let place = text.find(line).with_context(|| format!("{}: no {line:?}", path.display()))?;
    let end = text[place..].find('\n').map_or(text.len(), |length| place + length + 1);
    Ok(fs::write(path, format!("{}{insertion}{}", &text[..end], &text[end..]))?)
}

fn replace(path: &Path, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(path)?;
    ensure!(text.contains(from), "{}: no {from:?}", path.display());
    Ok(fs::write(path, text.replacen(from, to, 1))?)
}

/// File, the line behind which something is appended, and what. The default of a trait's method is what an older side answers.
const APPENDED: [(&str, &str, &str); 6] = [
    (
        "sdk/abi/src/lib.rs",
        "fn poll_next(&mut self",
        "    /// Of the next minor.\n    fn stream_revision(&self) -> u32 { 10 }\n",
    ),
    (
        "sdk/abi/src/lib.rs",
        "fn open(&self, request: RawRequest",
        "    /// Of the next minor.\n    fn revision(&self) -> u32 { 10 }\n",
    ),
    (
        "sdk/abi/src/lib.rs",
        "pub start: extern \"C\" fn",
        "    /// Of the next minor.\n    pub revision: extern \"C\" fn() -> u32,\n",
    ),
    (
        "sdk/abi/src/export.rs",
        "leak_into_prefix()",
        "}\n\nextern \"C\" fn revision() -> u32 {\n    11\n",
    ),
    (
        "sdk/src/bridge/served.rs",
        "impl Endpoint for Served {",
        "    fn revision(&self) -> u32 {\n        11\n    }\n\n",
    ),
    (
        "sdk/src/bridge/stream.rs",
        "impl RawStream for Outgoing {",
        "    fn stream_revision(&self) -> u32 {\n        11\n    }\n\n",
    ),
];
const OLD_REVISION: &str = "10";
const NEW_REVISION: &str = "11";
