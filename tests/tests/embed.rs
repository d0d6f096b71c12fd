//! The engine in programs of their own: the examples of `infranetes-core` run a pod, and leave nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use infranetes_tests::author::checkout;
use infranetes_tests::case::alone;
use infranetes_tests::footprint::{Footprint, nothing_left};
use infranetes_tests::image::TestImage;
use infranetes_tests::node::Programs;
use infranetes_tests::registry::Registry;
use tokio::process::Command;

#[tokio::test]
async fn a_program_runs_a_pod_with_a_linked_provider() -> Result<()> {
    let said = run("embed", |programs, plugins| {
        let agent = programs.bin.join("infranetes-agent");
        [agent.display().to_string(), plugins.display().to_string()]
    })
    .await?;
    ensure!(said.contains("the container says hello\nnothing is left\n"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_program_runs_a_pod_with_a_loaded_plugin() -> Result<()> {
    let said = run("embed_plugin", |programs, plugins| {
        let plugin = programs.bin.join("libinfranetes_provider_process.so");
        let agent = programs.bin.join("infranetes-agent");
        let config = serde_json::json!({ "agent": agent, "plugins": plugins });
        [plugin.display().to_string(), config.to_string()]
    })
    .await?;
    ensure!(said.starts_with("loaded infranetes-provider-process "), "{said}");
    ensure!(said.contains("the container says hello\nnothing is left\n"), "{said}");
    Ok(())
}

/// Runs an example to its end. Its first two arguments are what `first` makes of the programs and of a directory with the
/// agent's plugins.
async fn run(example: &str, first: impl FnOnce(&Programs, &Path) -> [String; 2]) -> Result<String> {
    let _alone = alone().await;
    let before = Footprint::take(&[]);
    let bin = std::env::var_os("INFRANETES_BIN").context("run this by `cargo xtask test`")?;
    let programs = Programs { bin: bin.into(), guest: Default::default() };
    let registry = Registry::start().await?;
    TestImage::busybox()?.push(&registry.host(), "busybox", "1").await?;
    let dir = tempfile::Builder::new().prefix("infranetes-embed-").tempdir()?;
    let plugins = dir.path().join("plugins");
    std::fs::create_dir(&plugins)?;
    let oci = programs.bin.join("libinfranetes_provider_oci.so");
    std::fs::copy(oci, plugins.join("oci.so")).context("the container plugin")?;

    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let example = Command::new(cargo)
        .current_dir(checkout())
        .args(["run", "--quiet", "--package", "infranetes-core", "--example", example, "--"])
        .args(first(&programs, &plugins))
        .arg(dir.path().join("state"))
        .arg(format!("{}/busybox:1", registry.host()))
        .arg(format!("http://{}", registry.host()))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, example).await.context("it does not end")??;
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {said}\n{complained}", output.status);
    drop(registry);
    nothing_left(&before, &[]).await?;
    Ok(said.into_owned())
}

/// Cargo may have to build the example first.
const LIMIT: Duration = Duration::from_secs(900);
