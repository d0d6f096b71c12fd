//! Sandboxes: their life, what is kept of their configuration, and kernel parameters.

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1::{self as cri, PodSandboxState};

use crate::conformance::context::{ATTEMPT, Context};
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    let life = Group::new("PodSandbox > runtime should support basic operations on PodSandbox")
        .spec("runtime should support running PodSandbox [Conformance]", |c| Box::pin(runs(c)))
        .spec("runtime should support stopping PodSandbox [Conformance]", |c| Box::pin(stops(c)))
        .spec("runtime should support removing PodSandbox [Conformance]", |c| Box::pin(goes(c)))
        .spec("runtime should support preserving PodSandbox attributes [Conformance]", |c| {
            Box::pin(attributes(c))
        })
        .done();
    let sysctls = Group::new("PodSandbox > runtime should support sysctls")
        .spec("should support safe sysctls", |c| Box::pin(sysctl(c, "kernel.shm_rmid_forced", "1")))
        .spec("should support unsafe sysctls", |c| Box::pin(sysctl(c, "fs.mqueue.msg_max", "100")))
        .done();
    [life, sysctls].concat()
}

async fn runs(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let status = c.sandbox_status(&sandbox.id).await?;
    ensure!(status.state() == PodSandboxState::SandboxReady, "it is not ready: {status:?}");
    ensure!(is_listed(c, &sandbox.id).await?, "it is not listed");
    Ok(())
}

async fn stops(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    stop(c, &sandbox.id).await?;
    let status = c.sandbox_status(&sandbox.id).await?;
    ensure!(status.state() == PodSandboxState::SandboxNotready, "it is still ready: {status:?}");
    Ok(())
}

async fn goes(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    stop(c, &sandbox.id).await?;
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
    c.client.runtime.remove_pod_sandbox(request).await?;
    ensure!(!is_listed(c, &sandbox.id).await?, "it is still listed");
    Ok(())
}

async fn attributes(c: &mut Context) -> Result<()> {
    let mut config = c.sandbox_config();
    let metadata = config.metadata.clone().context("no metadata")?;
    for (key, value) in [
        ("foo", "bar"),
        ("io.kubernetes.pod.name", &metadata.name),
        ("io.kubernetes.pod.namespace", &metadata.namespace),
        ("io.kubernetes.pod.uid", &metadata.uid),
    ] {
        config.labels.insert(key.to_owned(), value.to_owned());
    }
    config.annotations.insert("abc".to_owned(), "def".to_owned());
    let sandbox = c.sandbox_of(config).await?;
    let status = c.sandbox_status(&sandbox.id).await?;
    let filter = cri::PodSandboxFilter { id: sandbox.id.clone(), ..Default::default() };
    let listed = c.list_sandboxes(filter).await?;
    ensure!(listed.len() == 1, "listed {listed:?}");
    let kept = [
        (status.metadata, status.labels, status.annotations),
        (listed[0].metadata.clone(), listed[0].labels.clone(), listed[0].annotations.clone()),
    ];
    for (kept, labels, annotations) in kept {
        ensure!(metadata.attempt == ATTEMPT && kept.as_ref() == Some(&metadata), "{kept:?}");
        ensure!(sandbox.config.labels.iter().all(|pair| labels.get(pair.0) == Some(pair.1)));
        ensure!(annotations.get("abc").is_some_and(|value| value == "def"), "{annotations:?}");
    }
    Ok(())
}

async fn sysctl(c: &mut Context, name: &str, value: &str) -> Result<()> {
    let mut config = c.sandbox_config();
    let linux = config.linux.get_or_insert_default();
    linux.sysctls.insert(name.to_owned(), value.to_owned());
    let sandbox = c.sandbox_of(config).await?;
    let id = c.running(&sandbox).await?;
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let seen = c.exec(&id, &["cat", &path]).await?;
    ensure!(seen.trim() == value, "{name} is {seen:?}");
    Ok(())
}

async fn stop(c: &mut Context, id: &str) -> Result<()> {
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    c.client.runtime.stop_pod_sandbox(request).await.context("StopPodSandbox failed")?;
    Ok(())
}

async fn is_listed(c: &mut Context, id: &str) -> Result<bool> {
    let filter = cri::PodSandboxFilter { id: id.to_owned(), ..Default::default() };
    Ok(c.list_sandboxes(filter).await?.iter().any(|item| item.id == id))
}
