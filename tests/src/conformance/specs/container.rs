//! Containers: their life, exec, and memory that runs out.

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1::{self as cri, ContainerState};

use crate::conformance::context::{ATTEMPT, Context, Sandbox};
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    let life = Group::new("Container > runtime should support basic operations on container")
        .spec("runtime should support creating container [Conformance]", |c| Box::pin(creates(c)))
        .spec("runtime should support preserving container attributes [Conformance]", |c| {
            Box::pin(attributes(c))
        })
        .spec("runtime should support starting container [Conformance]", |c| Box::pin(starts(c)))
        .spec("runtime should support stopping container [Conformance]", |c| Box::pin(stops(c)))
        .spec("runtime should support removing created container [Conformance]", |c| {
            Box::pin(removes(c, ContainerState::ContainerCreated))
        })
        .spec("runtime should support removing running container [Conformance]", |c| {
            Box::pin(removes(c, ContainerState::ContainerRunning))
        })
        .spec("runtime should support removing stopped container [Conformance]", |c| {
            Box::pin(removes(c, ContainerState::ContainerExited))
        })
        .spec("runtime should support execSync [Conformance]", |c| Box::pin(exec(c)))
        .spec("runtime should support execSync with timeout [Conformance]", |c| {
            Box::pin(exec_with_timeout(c))
        })
        .done();
    let memory = Group::new("Container OOM > runtime should output OOMKilled reason")
        .spec("should terminate with exitCode 137 and reason OOMKilled", |c| Box::pin(memory(c)))
        .done();
    [life, memory].concat()
}

async fn creates(c: &mut Context) -> Result<()> {
    let id = created(c).await?;
    ensure!(is_listed(c, &id).await?, "it is not listed");
    Ok(())
}

async fn attributes(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let mut config = c.container_config(&[]);
    let metadata = config.metadata.clone().context("no metadata")?;
    for (key, value) in [
        ("foo", "bar"),
        ("io.kubernetes.container.name", metadata.name.as_str()),
        ("io.kubernetes.pod.name", "a-pod"),
        ("io.kubernetes.pod.namespace", "a-namespace"),
        ("io.kubernetes.pod.uid", "a-uid"),
    ] {
        config.labels.insert(key.to_owned(), value.to_owned());
    }
    config.annotations.insert("abc".to_owned(), "def".to_owned());
    let id = c.create(&sandbox, config.clone()).await?;
    let status = c.status(&id).await?;
    let listed = c.listed(&id).await?;
    ensure!(listed.len() == 1, "listed {listed:?}");
    let kept = [
        (status.metadata, status.labels, status.annotations),
        (listed[0].metadata.clone(), listed[0].labels.clone(), listed[0].annotations.clone()),
    ];
    for (kept, labels, annotations) in kept {
        ensure!(metadata.attempt == ATTEMPT && kept.as_ref() == Some(&metadata), "{kept:?}");
        ensure!(config.labels.iter().all(|pair| labels.get(pair.0) == Some(pair.1)), "{labels:?}");
        ensure!(annotations.get("abc").is_some_and(|value| value == "def"), "{annotations:?}");
    }
    Ok(())
}

async fn starts(c: &mut Context) -> Result<()> {
    let id = created(c).await?;
    c.start(&id).await?;
    c.reaches(&id, ContainerState::ContainerRunning).await.map(drop)
}

async fn stops(c: &mut Context) -> Result<()> {
    let id = created(c).await?;
    c.start(&id).await?;
    c.stop(&id).await
}

async fn removes(c: &mut Context, state: ContainerState) -> Result<()> {
    let id = created(c).await?;
    if state != ContainerState::ContainerCreated {
        c.start(&id).await?;
    }
    if state == ContainerState::ContainerExited {
        c.stop(&id).await?;
    }
    c.remove(&id).await?;
    ensure!(!is_listed(c, &id).await?, "it is still listed");
    Ok(())
}

async fn exec(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let id = c.running(&sandbox).await?;
    let said = c.exec(&id, &["echo", "-n", "hello"]).await?;
    ensure!(said == "hello", "it said {said:?}");
    Ok(())
}

/// A command past its time is an error, and its process is gone.
async fn exec_with_timeout(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let config = c.container_config(&["top", "-b", "-d", "3600"]);
    let id = c.running_of(&sandbox, config).await?;
    let request = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sleep", "4321"].map(str::to_owned).to_vec(),
        timeout: 1,
    };
    let answer = c.client.runtime.exec_sync(request).await;
    ensure!(answer.is_err(), "no error after the timeout: {answer:?}");
    let left = c.try_exec(&id, &["pidof", "sleep"]).await?;
    ensure!(left.stdout.trim().is_empty(), "the process is still there: {left:?}");
    Ok(())
}

async fn memory(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let mut config = c.container_config(&["sh", "-c", "dd if=/dev/zero of=/dev/null bs=20M"]);
    config.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: 15 << 20,
        memory_swap_limit_in_bytes: 15 << 20,
        ..Default::default()
    });
    let status = c.ended_of(&sandbox, config).await?;
    let end = (status.exit_code, status.reason.as_str());
    ensure!(end == (137, "OOMKilled"), "it ended with {end:?}: {}", status.message);
    Ok(())
}

async fn created(c: &mut Context) -> Result<String> {
    let sandbox: Sandbox = c.sandbox().await?;
    let config = c.container_config(&[]);
    c.create(&sandbox, config).await
}

async fn is_listed(c: &mut Context, id: &str) -> Result<bool> {
    Ok(c.listed(id).await?.iter().any(|container| container.id == id))
}
