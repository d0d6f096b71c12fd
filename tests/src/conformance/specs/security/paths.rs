//! Root file systems and paths that cannot be written or seen.

use anyhow::{Result, ensure};
use infranetes_cri::api::v1 as cri;

use super::{BUCKET, security};
use crate::conformance::context::{Context, Output};
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new(BUCKET)
        .spec("runtime should support that ReadOnlyRootfs is false", |c| Box::pin(root(c, false)))
        .spec("runtime should support that ReadOnlyRootfs is true", |c| Box::pin(root(c, true)))
        .spec("runtime should support MaskedPaths", |c| Box::pin(masked(c)))
        .spec("runtime should support ReadonlyPaths", |c| Box::pin(read_only(c)))
        .done()
}

async fn root(c: &mut Context, read_only: bool) -> Result<()> {
    let sandbox = c.sandbox_with_logs().await?;
    let mut config = c.container_config(&["sh", "-c", "touch test.go && echo Found"]);
    config.log_path = "root.log".to_owned();
    security(&mut config).readonly_rootfs = read_only;
    c.ended_of(&sandbox, config).await?;
    if read_only {
        c.logs(&sandbox, "root.log", "stderr", "touch: test.go: Read-only file system").await
    } else {
        c.logs(&sandbox, "root.log", "stdout", "Found").await
    }
}

async fn masked(c: &mut Context) -> Result<()> {
    let script = ["/bin/sh", "-c", "ls"];
    let output = fails(c, &script, |context| context.masked_paths = vec!["/bin/ls".into()]).await?;
    ensure!(output.stderr.contains("ls: Permission denied"), "{output:?}");
    Ok(())
}

async fn read_only(c: &mut Context) -> Result<()> {
    let command = ["touch", "/tmp/test"];
    let output = fails(c, &command, |context| context.readonly_paths = vec!["/tmp".into()]).await?;
    ensure!(output.stderr == "touch: /tmp/test: Read-only file system\n", "{output:?}");
    Ok(())
}

async fn fails(
    c: &mut Context,
    command: &[&str],
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> Result<Output> {
    let sandbox = c.sandbox().await?;
    let mut config = c.container_config(&[]);
    change(security(&mut config));
    let id = c.running_of(&sandbox, config).await?;
    c.exec_fails(&id, command).await
}
