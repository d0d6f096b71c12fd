//! Promises about calls for a volume that are cut off, by their caller or their deadline.

use std::time::Duration;

use infranetes_sdk::volume::{
    DescribeVolumeRequest, ExpandVolumeRequest, ListVolumesRequest, SnapshotRequest, VolumeRef,
    VolumeState,
};

use super::life::one_snapshot;
use super::stage::Stage;
use crate::check::{Outcome, ensure, ok, require};
use crate::cut::{Cut, late};

pub(super) async fn late_questions(stage: &Stage) -> Outcome {
    let (_, volume) = stage.main()?;
    let list = ListVolumesRequest { tags: stage.run_tags(), ..ListVolumesRequest::default() };
    for patience in PATIENCE {
        late! { stage, patience;
            true => describe(DescribeVolumeRequest {});
            true => get(VolumeRef { id: volume.id.clone() });
            true => list(list.clone());
        }
    }
    Ok(())
}

/// Of the volume of one life.
pub(super) async fn snapshot(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.snapshot, "describe denies snapshots")?;
    let (_, volume) = stage.main()?;
    for (cut, patience) in Cut::ALL.into_iter().zip(PATIENCE) {
        let token = format!("{}-{cut:?}", volume.id);
        let volume_id = volume.id.clone();
        let request = SnapshotRequest { volume_id, token, tags: stage.run_tags() };
        let call = |context| stage.provider.snapshot(context, request.clone());
        cut.off("snapshot", stage.limits(), patience, call).await?;
        one_snapshot(stage, &request).await?;
    }
    Ok(())
}

/// A volume each: clouds limit how often one grows.
pub(super) async fn expand(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?;
    require(able.expand, "describe denies expand")?;
    for (cut, patience) in Cut::ALL.into_iter().zip(PATIENCE) {
        let wish = stage.request().await?;
        let volume = stage.make(&wish).await?;
        let size_bytes = volume.size_bytes.saturating_add(able.granularity_bytes.max(1));
        let request = ExpandVolumeRequest { id: volume.id.clone(), size_bytes };
        let call = |context| stage.provider.expand(context, request.clone());
        cut.off("expand", stage.limits(), patience, call).await?;
        ok("expand again", stage.provider.expand(stage.ctx(), request.clone()).await)?;
        let grown = stage.wait_for_state(&volume.id, VolumeState::Available).await?;
        ensure(grown.size_bytes >= size_bytes, || format!("it has {} bytes", grown.size_bytes))?;
        stage.end(&wish, &grown).await?;
    }
    Ok(())
}

/// How long callers wait before they go away.
const PATIENCE: [Duration; 2] = [Duration::ZERO, Duration::from_millis(20)];
