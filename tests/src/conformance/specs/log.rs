//! The files that containers' output goes to.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use infranetes_cri::api::v1 as cri;

use crate::conformance::context::Context;
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Container > runtime should support log")
        .spec("runtime should support starting container with log [Conformance]", |c| {
            Box::pin(is_written(c))
        })
        .spec("runtime should support reopening container log [Conformance]", |c| {
            Box::pin(is_reopened(c))
        })
        .done()
}

async fn is_written(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox_with_logs().await?;
    let mut config = c.container_config(&["echo", TEXT]);
    config.log_path = "written.log".to_owned();
    c.ended_of(&sandbox, config).await?;
    // An exited container's output is complete: a kubelet reads it now.
    let lines = c.log(&sandbox, "written.log")?;
    ensure!(lines.iter().any(|line| line.stream == "stdout" && line.text == TEXT), "{lines:?}");
    Ok(())
}

async fn is_reopened(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox_with_logs().await?;
    let mut config = c.container_config(&["sh", "-c", "while :; do echo hello; sleep 0.2; done"]);
    config.log_path = "open.log".to_owned();
    let id = c.running_of(&sandbox, config).await?;
    c.logs(&sandbox, "open.log", "stdout", "hello").await?;
    let path = Path::new(&sandbox.config.log_directory).join("open.log");
    std::fs::rename(&path, path.with_file_name("open.log.old"))?;
    let request = cri::ReopenContainerLogRequest { container_id: id };
    c.client.runtime.reopen_container_log(request).await?;
    ensure!(path.exists(), "there is no new file");
    c.logs(&sandbox, "open.log", "stdout", "hello").await?;
    let old = c.log(&sandbox, "open.log.old")?.len();
    c.stays(Duration::from_secs(2), "the old file is left alone", async |c| {
        Ok(c.log(&sandbox, "open.log.old")?.len() == old)
    })
    .await
}

const TEXT: &str = "hello World";
