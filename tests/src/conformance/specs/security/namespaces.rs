//! Processes, IPC objects and network: of the container, of the pod, of the node.

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1::{self as cri, NamespaceMode};
use tokio::net::TcpListener;

use super::security;
use crate::conformance::context::{Context, Sandbox, image_spec};
use crate::conformance::images::WEB;
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Security Context > NamespaceOption")
        .spec("runtime should support HostPID", |c| Box::pin(host_pid(c)))
        .spec("runtime should support HostIpc is true", |c| {
            Box::pin(host_ipc(c, NamespaceMode::Node))
        })
        .spec("runtime should support HostIpc is false", |c| {
            Box::pin(host_ipc(c, NamespaceMode::Pod))
        })
        .spec("runtime should support PodPID", |c| Box::pin(pod_pid(c)))
        .spec("runtime should support ContainerPID", |c| Box::pin(container_pid(c)))
        .spec("runtime should support HostNetwork is true", |c| {
            Box::pin(host_network(c, NamespaceMode::Node))
        })
        .spec("runtime should support HostNetwork is false", |c| {
            Box::pin(host_network(c, NamespaceMode::Pod))
        })
        .done()
}

/// The number by which a process knows itself is the number by which the other container sees it.
async fn host_pid(c: &mut Context) -> Result<()> {
    let options = of_pid(NamespaceMode::Node);
    let sandbox = c.sandbox_in(options.clone()).await?;
    let server = web_server(c, &sandbox, options.clone()).await?;
    c.eventually("the server has started", async |c| {
        Ok(c.try_exec(&server, &["pidof", "nginx"]).await?.code == 0)
    })
    .await?;
    let number = c.exec(&server, &["cat", "/var/run/nginx.pid"]).await?;
    let mut config = c.container_config(&[]);
    security(&mut config).namespace_options = Some(options);
    let onlooker = c.running_of(&sandbox, config).await?;
    let seen = c.exec(&onlooker, &["pidof", "nginx"]).await?;
    let is_seen = seen.split_whitespace().any(|pid| pid == number.trim());
    ensure!(is_seen, "the server is {number:?}, and {seen:?} are seen");
    Ok(())
}

async fn pod_pid(c: &mut Context) -> Result<()> {
    let options = of_pid(NamespaceMode::Pod);
    let sandbox = c.sandbox_in(options.clone()).await?;
    let server = web_server(c, &sandbox, options).await?;
    let first = c.exec(&server, &["cat", "/proc/1/cmdline"]).await?;
    ensure!(!first.contains("httpd"), "the container's program is the first process: {first:?}");
    Ok(())
}

async fn container_pid(c: &mut Context) -> Result<()> {
    let options = of_pid(NamespaceMode::Container);
    let sandbox = c.sandbox_in(options.clone()).await?;
    let server = web_server(c, &sandbox, options).await?;
    c.eventually("the container's program is the first process", async |c| {
        Ok(c.exec(&server, &["cat", "/proc/1/cmdline"]).await?.contains("httpd"))
    })
    .await
}

async fn host_ipc(c: &mut Context, mode: NamespaceMode) -> Result<()> {
    let segment = c.shared_memory()?;
    let options = cri::NamespaceOption { ipc: mode as i32, ..Default::default() };
    let sandbox = c.sandbox_in(options.clone()).await?;
    let mut config = c.container_config(&[]);
    security(&mut config).namespace_options = Some(options);
    let id = c.running_of(&sandbox, config).await?;
    // The second column has the ids.
    let list = c.exec(&id, &["cat", "/proc/sysvipc/shm"]).await?;
    let mut ids = list.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    let is_seen = ids.any(|id| id == segment);
    ensure!(is_seen == (mode == NamespaceMode::Node), "segment {segment} of the node in:\n{list}");
    Ok(())
}

/// Whether a listener of the node is among those that the container sees.
async fn host_network(c: &mut Context, mode: NamespaceMode) -> Result<()> {
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    let port = listener.local_addr()?.port();
    let options = cri::NamespaceOption { network: mode as i32, ..Default::default() };
    let sandbox = c.sandbox_in(options.clone()).await?;
    let mut config = c.container_config(&["netstat", "-ltn"]);
    config.log_path = "ports.log".to_owned();
    security(&mut config).namespace_options = Some(options);
    let status = c.ended_of(&sandbox, config).await?;
    let lines = c.log(&sandbox, "ports.log")?;
    ensure!(status.exit_code == 0 && !lines.is_empty(), "netstat: {status:?} {lines:?}");
    let is_seen = lines.iter().any(|line| line.text.contains(&format!(":{port} ")));
    ensure!(is_seen == (mode == NamespaceMode::Node), "port {port} of the node in {lines:?}");
    Ok(())
}

fn of_pid(mode: NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption { pid: mode as i32, ..Default::default() }
}

async fn web_server(
    c: &mut Context,
    sandbox: &Sandbox,
    options: cri::NamespaceOption,
) -> Result<String> {
    let mut config = c.container_config(&[]);
    config.image = Some(image_spec(WEB));
    config.command.clear();
    security(&mut config).namespace_options = Some(options);
    c.running_of(sandbox, config).await.context("the web server")
}
