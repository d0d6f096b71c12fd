//! Privileges: all of them, single ones, none.

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1 as cri;

use super::{BUCKET, security};
use crate::conformance::context::{Context, Sandbox};
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new(BUCKET)
        .spec("runtime should support Privileged is true", |c| Box::pin(privileged(c, true)))
        .spec("runtime should support Privileged is false", |c| Box::pin(privileged(c, false)))
        .spec("runtime should support adding capability", |c| Box::pin(added(c)))
        .spec("runtime should support dropping capability", |c| Box::pin(dropped(c)))
        .spec("runtime should support adding ALL capabilities", |c| Box::pin(all(c, true)))
        .spec("runtime should support dropping ALL capabilities", |c| Box::pin(all(c, false)))
        .done()
}

async fn privileged(c: &mut Context, privileged: bool) -> Result<()> {
    let mut config = c.sandbox_config();
    config.linux.get_or_insert_default().security_context =
        Some(cri::LinuxSandboxSecurityContext { privileged, ..Default::default() });
    let sandbox = c.sandbox_of(config).await?;
    let mut config = c.container_config(&[]);
    security(&mut config).privileged = privileged;
    let id = c.running_of(&sandbox, config).await?;
    manages_network(c, &id, privileged).await
}

async fn added(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let id = running(c, &sandbox, &["NET_ADMIN"], &[]).await?;
    manages_network(c, &id, true).await.context("with NET_ADMIN")?;
    let id = running(c, &sandbox, &[], &[]).await?;
    manages_network(c, &id, false).await.context("without NET_ADMIN")
}

async fn dropped(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let id = running(c, &sandbox, &[], &["NET_RAW"]).await?;
    let output = c.exec_fails(&id, &["ping", "-c", "1", "-W", "1", "127.0.0.1"]).await?;
    ensure!(output.stderr.contains("permission denied"), "{output:?}");
    Ok(())
}

async fn all(c: &mut Context, add: bool) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let (added, dropped): (&[&str], &[&str]) = if add { (&["ALL"], &[]) } else { (&[], &["ALL"]) };
    let id = running(c, &sandbox, added, dropped).await?;
    let status = c.exec(&id, &["cat", "/proc/self/status"]).await?;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounding = bounding.context("no CapBnd")?.trim();
    let bits = u64::from_str_radix(bounding, 16)?;
    // SYS_MODULE is in no runtime's default set.
    let has_all = bits & (1 << SYS_MODULE) != 0;
    ensure!(if add { has_all } else { bits == 0 }, "CapBnd is {bounding}");
    Ok(())
}

async fn running(
    c: &mut Context,
    sandbox: &Sandbox,
    add: &[&str],
    drop: &[&str],
) -> Result<String> {
    let words = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let mut config = c.container_config(&[]);
    security(&mut config).capabilities = Some(cri::Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        ..Default::default()
    });
    c.running_of(sandbox, config).await
}

/// Whether a bridge can be made.
async fn manages_network(c: &mut Context, id: &str, possible: bool) -> Result<()> {
    let output = c.try_exec(id, &["brctl", "addbr", "foobar"]).await?;
    ensure!((output.code == 0) == possible, "a bridge: {output:?}");
    Ok(())
}

const SYS_MODULE: u32 = 16;
