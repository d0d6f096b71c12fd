//! Exec, attach and port-forward, as a kubelet uses them.

use anyhow::{Context as _, Result, bail, ensure};
use infranetes_cri::api::v1 as cri;

use super::network::web_server;
use crate::conformance::context::{Context, image_spec};
use crate::conformance::images::HOST_WEB;
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Streaming > runtime should support streaming interfaces")
        .spec("runtime should support exec with tty=false and stdin=false [Conformance]", |c| {
            Box::pin(exec(c, false))
        })
        .spec("runtime should support exec with tty=true and stdin=true [Conformance]", |c| {
            Box::pin(exec(c, true))
        })
        .spec("runtime should support attach [Conformance]", |c| Box::pin(attach(c)))
        .spec("runtime should support portforward [Conformance]", |c| Box::pin(forward(c)))
        .spec("runtime should support portforward in host network", |c| {
            Box::pin(forward_in_host_network(c))
        })
        .done()
}

async fn exec(c: &mut Context, terminal: bool) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let container_id = c.running(&sandbox).await?;
    let request = cri::ExecRequest {
        container_id,
        cmd: ["echo", "-n", "hello"].map(str::to_owned).to_vec(),
        tty: terminal,
        stdin: terminal,
        stdout: true,
        stderr: !terminal,
    };
    let url = c.client.runtime.exec(request).await?.into_inner().url;
    dial(&url)
}

async fn attach(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let mut config = c.container_config(&["/bin/sh"]);
    config.stdin = true;
    config.stdin_once = true;
    let container_id = c.running_of(&sandbox, config).await?;
    let request = cri::AttachRequest {
        container_id,
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let url = c.client.runtime.attach(request).await?.into_inner().url;
    dial(&url)
}

async fn forward(c: &mut Context) -> Result<()> {
    let sandbox = web_server(c, 0).await?;
    let request = cri::PortForwardRequest { pod_sandbox_id: sandbox.id, port: Vec::new() };
    let url = c.client.runtime.port_forward(request).await?.into_inner().url;
    dial(&url)
}

async fn forward_in_host_network(c: &mut Context) -> Result<()> {
    let mut config = c.sandbox_config();
    let mapping = cri::PortMapping { container_port: PORT.into(), ..Default::default() };
    config.port_mappings = vec![mapping];
    let options =
        cri::NamespaceOption { network: cri::NamespaceMode::Node as i32, ..Default::default() };
    let security =
        cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(security);
    let sandbox = c.sandbox_of(config).await?;
    let mut config = c.container_config(&[]);
    config.image = Some(image_spec(HOST_WEB));
    config.command.clear();
    c.running_of(&sandbox, config).await?;
    c.page("127.0.0.1", PORT).await.context("it is not served on the node")?;
    let request = cri::PortForwardRequest { pod_sandbox_id: sandbox.id, port: Vec::new() };
    let url = c.client.runtime.port_forward(request).await?.into_inner().url;
    dial(&url)
}

fn dial(url: &str) -> Result<()> {
    ensure!(url.starts_with("http://"), "no URL that a kubelet can dial: {url:?}");
    bail!("what goes through {url} is not looked at yet")
}

/// As in the public suite.
const PORT: u16 = 12003;
