//! Promises that need no container: capabilities and unknown ids.

use infranetes_sdk::ErrorKind;
use infranetes_sdk::container::{
    DescribeContainerRequest, KillContainerRequest, PullRequest, RemoveImageRequest, Resources,
    StatsRequest, StopContainerRequest, UpdateContainerRequest,
};

use super::stage::{Stage, reference};
use crate::check::{Outcome, ensure, fails, honest, ok};

pub(super) async fn describe_is_constant(stage: &Stage) -> Outcome {
    let first = stage.capabilities().await?;
    let describe = stage.provider.describe(stage.ctx(), DescribeContainerRequest {}).await;
    let second = ok("describe", describe)?;
    ensure(first == second, || format!("{first:?} became {second:?}"))?;
    ensure(first.import || first.pull || !first.own_root, || "no image can ever get here".into())
}

pub(super) async fn unknown_ids(stage: &Stage) -> Outcome {
    let (provider, id) = (&stage.provider, String::from(UNKNOWN));
    let status = provider.status(stage.ctx(), reference(UNKNOWN)).await;
    fails("status", ErrorKind::NotFound, status)?;
    let start = provider.start(stage.ctx(), reference(UNKNOWN)).await;
    fails("start", ErrorKind::NotFound, start)?;
    let stop = StopContainerRequest { id: id.clone(), ..StopContainerRequest::default() };
    fails("stop", ErrorKind::NotFound, provider.stop(stage.ctx(), stop).await)?;
    let kill = KillContainerRequest { id: id.clone(), signal: "SIGTERM".into() };
    fails("kill", ErrorKind::NotFound, provider.kill(stage.ctx(), kill).await)?;
    let able = stage.capabilities().await?;
    if able.update {
        let update =
            UpdateContainerRequest { id: id.clone(), resources: Some(Resources::default()) };
        fails("update", ErrorKind::NotFound, provider.update(stage.ctx(), update).await)?;
    }
    if able.stats {
        let stats = provider.stats(stage.ctx(), StatsRequest { id }).await;
        fails("stats", ErrorKind::NotFound, stats)?;
    }
    Ok(())
}

pub(super) async fn remove_unknown(stage: &Stage) -> Outcome {
    stage.remove(UNKNOWN).await?;
    if stage.capabilities().await?.own_root {
        let request = RemoveImageRequest { image_id: format!("sha256:{}", "0".repeat(64)) };
        ok("remove_image", stage.provider.remove_image(stage.ctx(), request).await)?;
    }
    Ok(())
}

pub(super) async fn capabilities(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?;
    let provider = &stage.provider;
    if !able.pull {
        let request =
            PullRequest { reference: "no.such.host/image:1".into(), ..PullRequest::default() };
        honest("pull", false, provider.pull(stage.ctx(), request).await)?;
    }
    honest("stats", able.stats, provider.stats(stage.ctx(), StatsRequest::default()).await)?;
    if !able.pause {
        honest("pause", false, provider.pause(stage.ctx(), reference(UNKNOWN)).await)?;
        honest("resume", false, provider.resume(stage.ctx(), reference(UNKNOWN)).await)?;
    }
    if !able.update {
        let update = UpdateContainerRequest { id: UNKNOWN.into(), ..Default::default() };
        honest("update", false, provider.update(stage.ctx(), update).await)?;
    }
    Ok(())
}

const UNKNOWN: &str = "no-such-container";
