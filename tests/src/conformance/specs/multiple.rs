//! Two containers in one pod.

use anyhow::{Result, ensure};
use infranetes_cri::api::v1 as cri;

use crate::conformance::context::{Context, Sandbox, image_spec};
use crate::conformance::images::HTTPD;
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    let name = "Multiple Containers [Conformance] > when running multiple containers in a pod";
    Group::new(name)
        .spec("should support network", |c| Box::pin(network(c)))
        .spec("should support container log", |c| Box::pin(log(c)))
        .spec("should support container exec", |c| Box::pin(exec(c)))
        .done()
}

async fn network(c: &mut Context) -> Result<()> {
    let two = Two::run(c).await?;
    let ip = c.sandbox_status(&two.sandbox.id).await?.network.unwrap_or_default().ip;
    ensure!(!ip.is_empty(), "the pod has no address");
    c.page(&ip, 80).await
}

async fn log(c: &mut Context) -> Result<()> {
    let two = Two::run(c).await?;
    for (id, text) in [(&two.server, "httpd"), (&two.speaker, "hello World")] {
        let path = c.status(id).await?.log_path;
        c.eventually("the log has the line", async |_| {
            Ok(std::fs::read_to_string(&path).is_ok_and(|log| log.contains(text)))
        })
        .await?;
    }
    Ok(())
}

async fn exec(c: &mut Context) -> Result<()> {
    let two = Two::run(c).await?;
    for (id, word) in [(&two.server, "server"), (&two.speaker, "speaker")] {
        let said = c.exec(id, &["echo", word]).await?;
        ensure!(said == format!("{word}\n"), "it said {said:?}");
    }
    Ok(())
}

struct Two {
    sandbox: Sandbox,
    server: String,
    speaker: String,
}

impl Two {
    async fn run(c: &mut Context) -> Result<Two> {
        let mut config = c.sandbox_config_with_logs()?;
        config.port_mappings = vec![cri::PortMapping { container_port: 80, ..Default::default() }];
        let sandbox = c.sandbox_of(config).await?;
        let mut config = c.container_config(&[]);
        config.image = Some(image_spec(HTTPD));
        config.command.clear();
        config.log_path = "server.log".to_owned();
        let server = c.running_of(&sandbox, config).await?;
        let mut config = c.container_config(&["sh", "-c", "echo hello World; exec sleep 3600"]);
        config.log_path = "speaker.log".to_owned();
        let speaker = c.running_of(&sandbox, config).await?;
        Ok(Two { sandbox, server, speaker })
    }
}
