//! Exec, attach and port-forward, as a kubelet uses them.

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1 as cri;

use super::network::web_server;
use crate::conformance::context::{Context, image_spec};
use crate::conformance::images::HOST_WEB;
use crate::conformance::spec::{Group, Spec};
use crate::streams::{Forward, Session, Wanted};

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
    let wanted = if terminal { Wanted::TERMINAL } else { Wanted::OUTPUT };
    let ended = Session::open(&url, wanted).await?.end().await?;
    let said = String::from_utf8_lossy(&ended.stdout);
    ensure!(said == "hello" && ended.stderr.is_empty(), "{ended:?}");
    ensure!(ended.exit_code() == Some(0), "{ended:?}");
    Ok(())
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
    let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };
    let mut session = Session::open(&url, wanted).await?;
    session.type_in(b"echo -n hello\n").await?;
    let said = session.read_until("hello").await?;
    ensure!(said == "hello", "the shell said {said:?}");
    session.end_stdin().await?;
    let ended = session.end().await?;
    ensure!(ended.stdout.is_empty() && ended.stderr.is_empty(), "and more: {ended:?}");
    Ok(())
}

async fn forward(c: &mut Context) -> Result<()> {
    let sandbox = web_server(c, 0).await?;
    page_through(c, &sandbox.id, 80).await
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
    page_through(c, &sandbox.id, PORT).await
}

/// Until the server listens, an attempt ends with the word of that; each needs a URL of its own.
async fn page_through(c: &mut Context, sandbox: &str, port: u16) -> Result<()> {
    let mut last = String::new();
    let waited = c
        .eventually("the page comes through the forwarded port", async |c| {
            let request =
                cri::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: Vec::new() };
            let url = c.client.runtime.port_forward(request).await?.into_inner().url;
            let mut forward = Forward::open(&url).await?;
            match forward.port(port).await?.ask(b"GET / HTTP/1.0\r\n\r\n").await {
                Ok(page) => last = String::from_utf8_lossy(&page).into_owned(),
                Err(problem) => last = format!("{problem:#}"),
            }
            Ok(last.starts_with("HTTP/1.") && last.contains(" 200"))
        })
        .await;
    waited.with_context(|| format!("what came: {last:?}"))
}

/// As in the public suite.
const PORT: u16 = 12003;
