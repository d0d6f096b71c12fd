//! The boundary under AddressSanitizer: host and plugins are built with checks of every access to memory, and the plugins are loaded
//! as always. What Miri cannot try, because it loads no files.

use std::path::Path;

use anyhow::{Context, Result};

use super::HOST_TESTS;
use crate::program::Program;
use crate::workspace::{Workspace, cargo};

/// The name of the row.
pub(super) const NAME: &str = "address-sanitizer";

/// Why the row cannot be run here, if it cannot.
pub(super) fn missing() -> Result<Option<String>> {
    let sysroot = Program::new("rustc").args(["--print", "sysroot"]).output()?;
    let lib = Path::new(sysroot.trim()).join("lib/rustlib").join(host()?).join("lib");
    let files = std::fs::read_dir(&lib).with_context(|| format!("list {}", lib.display()))?;
    let names = files.filter_map(Result::ok).map(|file| file.file_name());
    let found =
        names.filter_map(|name| name.into_string().ok()).any(|name| name.ends_with(RUNTIME));
    Ok((!found).then(|| format!("this toolchain has no {RUNTIME}, which rustup's have")))
}

pub(super) fn try_out(workspace: &Workspace) -> Result<String> {
    // A target that is named, so that build scripts and macros are built as always.
    let target = host()?;
    let program = |verb: &str| {
        cargo()
            .dir(workspace.root())
            .env("CARGO_TARGET_DIR", workspace.target().join("skew/build/asan"))
            // The option is one of nightly compilers; its runtime comes with every one.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", FLAGS)
            .args([verb, "--quiet", "--package", "infranetes-loader", "--target", &target])
    };
    program("build").args(["--examples"]).quietly()?;
    let tests = HOST_TESTS.iter().chain(&["linked"]);
    program("test").args(tests.flat_map(|test| ["--test", test])).quietly()?;
    Ok("passed; loaded and linked plugins, no leaks".to_owned())
}

fn host() -> Result<String> {
    let about = Program::new("rustc").args(["-vV"]).output()?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}

/// The runtime is in the host's program; its plugins find it there.
const FLAGS: &str = "-Zsanitizer=address -Clink-arg=-rdynamic";
/// How the runtime's file ends.
const RUNTIME: &str = "_rt.asan.a";
