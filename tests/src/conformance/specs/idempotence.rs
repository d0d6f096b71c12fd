//! What may be asked for twice.

use anyhow::{Result, ensure};
use infranetes_cri::api::v1 as cri;

use crate::conformance::context::{Context, image_spec};
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    let groups = [
        Group::new("Idempotence > StopPodSandbox")
            .spec("should not return an error if not found", |c| Box::pin(stop_no_sandbox(c)))
            .spec("should not return an error if already stopped", |c| {
                Box::pin(stop_sandbox_twice(c))
            }),
        Group::new("Idempotence > RemovePodSandbox")
            .spec("should not return an error if not found", |c| Box::pin(remove_no_sandbox(c))),
        Group::new("Idempotence > StopContainer")
            .spec("should not return an error if not found", |c| Box::pin(stop_no_container(c)))
            .spec("should not return an error if already stopped", |c| {
                Box::pin(stop_container_twice(c))
            }),
        Group::new("Idempotence > RemoveContainer")
            .spec("should not return an error if not found", |c| Box::pin(remove_no_container(c))),
        Group::new("Idempotence > RemoveImage")
            .spec("should not return an error if not found", |c| Box::pin(remove_no_image(c))),
    ];
    groups.into_iter().flat_map(Group::done).collect()
}

async fn stop_no_sandbox(c: &mut Context) -> Result<()> {
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: NOBODY.to_owned() };
    c.client.runtime.stop_pod_sandbox(request).await?;
    Ok(())
}

async fn stop_sandbox_twice(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    for _ in 0..2 {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        c.client.runtime.stop_pod_sandbox(request).await?;
        let state = c.sandbox_status(&sandbox.id).await?.state();
        ensure!(state == cri::PodSandboxState::SandboxNotready, "it is {state:?}");
    }
    Ok(())
}

async fn remove_no_sandbox(c: &mut Context) -> Result<()> {
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: NOBODY.to_owned() };
    c.client.runtime.remove_pod_sandbox(request).await?;
    Ok(())
}

async fn stop_no_container(c: &mut Context) -> Result<()> {
    Ok(c.client.stop_container(NOBODY, 0).await?)
}

async fn stop_container_twice(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let id = c.running(&sandbox).await?;
    c.stop(&id).await?;
    c.stop(&id).await?;
    c.remove(&id).await?;
    c.remove(&id).await
}

async fn remove_no_container(c: &mut Context) -> Result<()> {
    c.remove(NOBODY).await
}

async fn remove_no_image(c: &mut Context) -> Result<()> {
    for _ in 0..2 {
        let request = cri::RemoveImageRequest { image: Some(image_spec(&"0".repeat(64))) };
        c.client.images.remove_image(request).await?;
    }
    Ok(())
}

/// An id that was never given to anything.
const NOBODY: &str = "0a1b2c3d-0000-4000-8000-00000000beef";
