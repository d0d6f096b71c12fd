//! Names and ports of pods.

use anyhow::{Result, ensure};
use infranetes_cri::api::v1 as cri;

use crate::conformance::context::{Context, Sandbox, image_spec};
use crate::conformance::images::WEB;
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Networking > runtime should support networking")
        .spec("runtime should support DNS config [Conformance]", |c| Box::pin(dns(c)))
        .spec("runtime should support set hostname [Conformance]", |c| Box::pin(hostname(c)))
        .spec("runtime should support port mapping with only container port [Conformance]", |c| {
            Box::pin(container_port(c))
        })
        .spec(
            "runtime should support port mapping with host port and container port [Conformance]",
            |c| Box::pin(host_port(c)),
        )
        .done()
}

async fn dns(c: &mut Context) -> Result<()> {
    let mut config = c.sandbox_config();
    let words = |word: &str| vec![word.to_owned()];
    config.dns_config = Some(cri::DnsConfig {
        servers: words("10.10.10.10"),
        searches: words("google.com"),
        options: words("ndots:8"),
    });
    let sandbox = c.sandbox_of(config).await?;
    let id = c.running(&sandbox).await?;
    let text = c.exec(&id, &["cat", "/etc/resolv.conf"]).await?;
    for line in ["nameserver 10.10.10.10", "search google.com", "options ndots:8"] {
        ensure!(text.contains(line), "no {line:?} in {text:?}");
    }
    Ok(())
}

async fn hostname(c: &mut Context) -> Result<()> {
    let mut config = c.sandbox_config();
    config.hostname = "test-hostname".to_owned();
    let sandbox = c.sandbox_of(config).await?;
    let id = c.running(&sandbox).await?;
    let name = c.exec(&id, &["hostname"]).await?;
    ensure!(name.trim() == "test-hostname", "its name is {name:?}");
    Ok(())
}

async fn container_port(c: &mut Context) -> Result<()> {
    let sandbox = web_server(c, 0).await?;
    let ip = c.sandbox_status(&sandbox.id).await?.network.unwrap_or_default().ip;
    ensure!(!ip.is_empty(), "the pod has no address");
    c.page(&ip, 80).await
}

async fn host_port(c: &mut Context) -> Result<()> {
    web_server(c, HOST_PORT).await?;
    c.page("127.0.0.1", HOST_PORT).await
}

/// A pod with a web server on port 80, mapped to a port of the node unless that is 0.
pub(super) async fn web_server(c: &mut Context, host_port: u16) -> Result<Sandbox> {
    let mut config = c.sandbox_config();
    config.port_mappings = vec![cri::PortMapping {
        container_port: 80,
        host_port: host_port.into(),
        ..Default::default()
    }];
    let sandbox = c.sandbox_of(config).await?;
    let mut config = c.container_config(&[]);
    config.image = Some(image_spec(WEB));
    config.command.clear();
    c.running_of(&sandbox, config).await?;
    Ok(sandbox)
}

/// As in the public suite.
const HOST_PORT: u16 = 12000;
