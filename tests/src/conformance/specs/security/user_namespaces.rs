//! Users of a pod that are other users of the machine.

use anyhow::{Result, ensure};
use infranetes_cri::api::v1::{self as cri, NamespaceMode};

use super::security;
use crate::conformance::context::Context;
use crate::conformance::spec::{Group, Skip, Spec};

pub(super) fn specs() -> Vec<Spec> {
    let mapped =
        Group::new("Security Context > UserNamespaces > when Host idmap mount support is needed")
            .spec("runtime should support NamespaceMode_POD", |c| Box::pin(of_the_pod(c)))
            .done();
    let others = Group::new(
        "Security Context > UserNamespaces > when Host idmap mount support is not needed",
    )
    .spec("runtime should support NamespaceMode_NODE", |c| Box::pin(of_the_node(c)))
    .spec("runtime should fail if more than one mapping provided", |c| {
        Box::pin(refused(c, NamespaceMode::Pod, vec![mapping(0, 1000), mapping(0, 2000)]))
    })
    .spec("runtime should fail if container ID 0 is not mapped", |c| {
        Box::pin(refused(c, NamespaceMode::Pod, vec![mapping(1, 1000)]))
    })
    .spec("runtime should fail with NamespaceMode_CONTAINER", |c| {
        Box::pin(refused(c, NamespaceMode::Container, Vec::new()))
    })
    .spec("runtime should fail with NamespaceMode_TARGET", |c| {
        Box::pin(refused(c, NamespaceMode::Target, Vec::new()))
    })
    .done();
    [mapped, others].concat()
}

async fn of_the_pod(c: &mut Context) -> Result<()> {
    let seen = map_in(c, options(NamespaceMode::Pod, vec![mapping(0, 1000)])).await?;
    ensure!(seen == [["0", "1000", "100000"]], "the container's map is {seen:?}");
    Ok(())
}

/// The map of the node itself, which maps each user to itself.
async fn of_the_node(c: &mut Context) -> Result<()> {
    let seen = map_in(c, options(NamespaceMode::Node, Vec::new())).await?;
    let node = std::fs::read_to_string("/proc/self/uid_map")?;
    let node = lines_of(node.lines());
    ensure!(seen == node, "the container's map is {seen:?}, the node's {node:?}");
    Ok(())
}

async fn refused(c: &mut Context, mode: NamespaceMode, maps: Vec<cri::IdMapping>) -> Result<()> {
    skip_without_feature(c).await?;
    let mut config = c.sandbox_config();
    config.linux.get_or_insert_default().security_context =
        Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(options(mode, maps)),
            ..Default::default()
        });
    let run = c.try_sandbox(config).await;
    ensure!(run.is_err(), "the sandbox was run: {run:?}");
    Ok(())
}

async fn map_in(c: &mut Context, options: cri::NamespaceOption) -> Result<Vec<Vec<String>>> {
    skip_without_feature(c).await?;
    let sandbox = c.sandbox_in(options.clone()).await?;
    let mut config = c.container_config(&["cat", "/proc/self/uid_map"]);
    config.log_path = "map.log".to_owned();
    security(&mut config).namespace_options = Some(options);
    c.ended_of(&sandbox, config).await?;
    let lines = c.log(&sandbox, "map.log")?;
    Ok(lines_of(lines.iter().map(|line| line.text.as_str())))
}

fn lines_of<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Vec<String>> {
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

async fn skip_without_feature(c: &mut Context) -> Result<()> {
    if c.handler_features().await?.user_namespaces {
        return Ok(());
    }
    Err(Skip("the handler tells no user_namespaces".to_owned()).into())
}

fn options(mode: NamespaceMode, maps: Vec<cri::IdMapping>) -> cri::NamespaceOption {
    let users = cri::UserNamespace { mode: mode as i32, uids: maps.clone(), gids: maps };
    cri::NamespaceOption { userns_options: Some(users), ..Default::default() }
}

fn mapping(container_id: u32, host_id: u32) -> cri::IdMapping {
    cri::IdMapping { host_id, container_id, length: 100_000 }
}
