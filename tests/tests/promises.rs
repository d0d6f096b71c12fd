//! Our providers, as built, keep their promises in the daemon's process and in one of their own: what `plugin check` says of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use infranetes_core::ids::SandboxId;
use infranetes_core::session::AgentConnector;
use infranetes_core::session::tls::{NodeCa, TlsConnector};
use infranetes_tests::case;
use infranetes_tests::footprint::{Footprint, nothing_left};
use infranetes_tests::image::TestImage;
use infranetes_tests::node::{Node, Programs};
use serde_json::json;
use tokio::process::Command;

#[tokio::test]
async fn the_promises_of_machines_are_kept_in_either_process() -> Result<()> {
    let _alone = case::alone().await;
    let before = Footprint::take(&[]);
    let invitation =
        TlsConnector::new(NodeCa::generate()?).invite(&SandboxId::parse(&"a".repeat(64))?)?;
    // TOML's basic strings are JSON's.
    let user_data = json!(String::from_utf8(invitation.user_data)?);
    let subject = format!(
        "[check.pod]\nhas_console_output = true\nuser_data = {user_data}\n\
         [check.limits]\nstart_ms = 90000\n"
    );
    for provider in ["fake", "process", "qemu"] {
        let node = Node::new(&Programs::from_env()?, provider, "registry.invalid")?;
        let written = fs::read_to_string(instance(&node, provider))?;
        let config = written.split_once('\n').context("an instance's file has lines")?.1;
        check(&node, provider, "true", &format!("{config}\n{subject}")).await?;
    }
    nothing_left(&before, &[]).await
}

#[tokio::test]
async fn the_promises_of_containers_are_kept_in_either_process() -> Result<()> {
    let _alone = case::alone().await;
    let before = Footprint::take(&[]);
    let node = Node::new(&Programs::from_env()?, "process", "registry.invalid")?;
    let image = node.path("image");
    fs::create_dir(&image)?;
    TestImage::busybox()?.write_layout(&image).await?;
    // Its name makes the test its owner.
    let parent = format!("infranetes-test-promises-{}", std::process::id());
    let text = format!(
        "[config]\nrun = {:?}\ncgroup_parent = {parent:?}\n[check.container]\nimage = {image:?}\n",
        node.path("oci")
    );
    check(&node, "oci", ONE_KIND_OF_CGROUP, &text).await?;
    remove_cgroups(&parent).await?;
    nothing_left(&before, &[]).await
}

/// Runs every suite that the built plugin takes, in either process, with these tables of an instance, in a mount namespace that
/// a shell's command has made ready.
async fn check(node: &Node, provider: &str, ready: &str, tables: &str) -> Result<()> {
    let bin = &node.programs().bin;
    let file = bin.join(format!("libinfranetes_provider_{provider}.so"));
    for isolation in ["none", "process"] {
        let instance = instance(node, provider);
        let keys = format!("plugin = {file:?}\nisolation = \"{isolation}\"\n");
        fs::write(&instance, keys + tables)?;
        let script = format!("{ready}; exec \"$0\" \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", &script]);
        command.arg(bin.join("infranetes-cri")).args(["plugin", "check"]);
        command.arg(&file).arg("--config").arg(&instance);
        let output = tokio::time::timeout(CHECK_LIMIT, command.kill_on_drop(true).output());
        let output = output.await.context("the check does not end")??;
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{provider}, {isolation}:\n{said}\n{errors}");
        ensure!(said.contains(" 0 broken"), "{provider}, {isolation}:\n{said}");
    }
    Ok(())
}

fn instance(node: &Node, provider: &str) -> PathBuf {
    node.path("providers.d").join(format!("{provider}.toml"))
}

/// The parent of all cgroups of a run stays, because other runs could have it, too; this one is nobody else's.
async fn remove_cgroups(parent: &str) -> Result<()> {
    let pattern = format!("*/{parent}*");
    let mut find = Command::new("find");
    find.args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &pattern, "-exec", "rmdir"]);
    let removed = find.args(["{}", ";"]).status().await?;
    ensure!(removed.success(), "the cgroups of {parent} cannot be removed");
    ensure!(!Path::new("/sys/fs/cgroup").join(parent).exists(), "{parent} is left");
    Ok(())
}

/// OCI runtimes refuse nodes that have both kinds of cgroups mounted. Machines do not mind.
const ONE_KIND_OF_CGROUP: &str =
    "mountpoint -q /sys/fs/cgroup/unified && mount -t tmpfs none /sys/fs/cgroup/unified";
const CHECK_LIMIT: Duration = Duration::from_secs(300);
