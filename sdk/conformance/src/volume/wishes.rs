//! Promises that need no volume: capabilities, unknown ids, wrong wishes.

use infranetes_sdk::ErrorKind;
use infranetes_sdk::volume::{CreateVolumeRequest, ExpandVolumeRequest, SnapshotRequest};

use super::stage::Stage;
use crate::check::{Outcome, ensure, fails};

pub(super) async fn describe_is_constant(stage: &Stage) -> Outcome {
    let (first, second) = (stage.capabilities().await?, stage.capabilities().await?);
    ensure(first == second, || format!("{first:?} became {second:?}"))
}

pub(super) async fn unknown_ids(stage: &Stage) -> Outcome {
    let (provider, id) = (&stage.provider, String::from(UNKNOWN));
    fails("get", ErrorKind::NotFound, stage.try_get(UNKNOWN).await)?;
    let able = stage.capabilities().await?;
    if able.expand {
        let size_bytes = stage.subject.size_bytes;
        let request = ExpandVolumeRequest { id: id.clone(), size_bytes };
        fails("expand", ErrorKind::NotFound, provider.expand(stage.ctx(), request).await)?;
    }
    if able.snapshot {
        let token = "no-such-snapshot".into();
        let request = SnapshotRequest { volume_id: id, token, tags: stage.run_tags() };
        fails("snapshot", ErrorKind::NotFound, provider.snapshot(stage.ctx(), request).await)?;
    }
    Ok(())
}

pub(super) async fn delete_unknown(stage: &Stage) -> Outcome {
    stage.delete(UNKNOWN).await
}

pub(super) async fn impossible(stage: &Stage) -> Outcome {
    let wish = stage.request().await?;
    let wishes = [
        ("an endless size", CreateVolumeRequest { size_bytes: u64::MAX / 2, ..wish.clone() }),
        ("an unknown type", CreateVolumeRequest { r#type: "no-such-type".into(), ..wish.clone() }),
        ("an unknown zone", CreateVolumeRequest { zone: "no-such-zone".into(), ..wish.clone() }),
        (
            "an unknown snapshot",
            CreateVolumeRequest { snapshot_id: UNKNOWN.into(), ..wish.clone() },
        ),
    ];
    for (what, request) in wishes {
        let created = stage.try_create(&request).await;
        fails(&format!("create with {what}"), ErrorKind::Invalid, created)?;
    }
    let volumes = stage.list(&wish.tags, 0).await?;
    ensure(volumes.is_empty(), || format!("{} volumes were made", volumes.len()))
}

const UNKNOWN: &str = "no-such-volume";
