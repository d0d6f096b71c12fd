//! The conformance specs, as the program runs them that is behind `cargo xtask conformance`.
//!
//! Whatever is not listed in `conformance-expected.toml` has to pass.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use infranetes_tests::case::alone;
use infranetes_tests::conformance::{Expected, names};
use infranetes_tests::footprint::{Footprint, nothing_left};
use tokio::process::Command;

#[tokio::test]
async fn a_pod_of_this_node_is_as_cri_says() -> Result<()> {
    check("process", &[]).await
}

/// Emulated machines are slow: what a runtime has to pass, and one spec of each other kind that has to do with the guest.
#[tokio::test]
async fn a_pod_in_a_virtual_machine_is_as_cri_says() -> Result<()> {
    let some = [
        "[Conformance]",
        "unsafe sysctls",
        "OOMKilled",
        "localhost profile",
        "recursive readonly mounts",
        "using a valid subPath",
        "Privileged is true",
        "NamespaceMode_POD",
    ];
    check("qemu", &some).await
}

#[test]
fn every_spec_that_is_excused_exists() -> Result<()> {
    let expected = Expected::read(&expected())?;
    let unknown = expected.unknown(&names());
    ensure!(unknown.is_empty(), "no such specs: {unknown:#?}");
    Ok(())
}

async fn check(provider: &str, filters: &[&str]) -> Result<()> {
    let _alone = alone().await;
    let before = Footprint::take(&[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_infranetes-conformance"));
    command.args(["--provider", provider, "--log", "--expected"]).arg(expected());
    for filter in filters {
        command.args(["--filter", filter]);
    }
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let run = tokio::time::timeout(LIMIT, run).await.context("the suite took too long")??;
    let said = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    ensure!(run.status.success(), "{}\n{said}\n{errors}", run.status);
    nothing_left(&before, &[]).await
}

fn expected() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo");
    Path::new(&package).join("conformance-expected.toml")
}

const LIMIT: Duration = Duration::from_secs(900);
