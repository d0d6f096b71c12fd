//! Promises along one volume's life. The checks run in order and share the volume.

use infranetes_sdk::ErrorKind;
use infranetes_sdk::volume::{CreateVolumeRequest, ExpandVolumeRequest, Snapshot, SnapshotRequest};

use super::stage::Stage;
use crate::check::{Outcome, ensure, fails, honest, ok, require};
use crate::stock::lists;

pub(super) async fn create(stage: &Stage) -> Outcome {
    let request = stage.request().await?;
    let volume = stage.make(&request).await?;
    stage.set_main(request.clone(), volume.clone());
    ensure(volume.name == request.name, || format!("its name is {:?}", volume.name))?;
    ensure(volume.tags == request.tags, || format!("its tags are {:?}", volume.tags))?;
    ensure(volume.machine_id.is_empty(), || format!("it is attached to {:?}", volume.machine_id))?;
    let able = stage.capabilities().await?;
    let wanted = request.size_bytes.max(able.minimum_bytes);
    let size = volume.size_bytes;
    ensure(size >= wanted, || format!("it has {size} bytes instead of {wanted}"))?;
    let granule = able.granularity_bytes.max(1);
    ensure(size % granule == 0, || format!("{size} is no multiple of {granule} bytes"))
}

pub(super) async fn other_shape(stage: &Stage) -> Outcome {
    let (request, _) = stage.main()?;
    let larger = CreateVolumeRequest { size_bytes: request.size_bytes * 2, ..request };
    fails("create", ErrorKind::Conflict, stage.try_create(&larger).await)
}

pub(super) async fn listed(stage: &Stage) -> Outcome {
    lists::by_tags(stage).await?;
    let (request, _) = stage.main()?;
    let found = stage.wait_for_count(&request, 1..=1).await?;
    ensure(found[0].tags == request.tags, || format!("its tags are {:?}", found[0].tags))
}

pub(super) async fn pages(stage: &Stage) -> Outcome {
    lists::pages(stage, PAGED).await
}

pub(super) async fn capabilities(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?;
    let (_, volume) = stage.main()?;
    let (id, size_bytes) = (volume.id.clone(), volume.size_bytes);
    let request = ExpandVolumeRequest { id, size_bytes };
    honest("expand", able.expand, stage.provider.expand(stage.ctx(), request).await)?;
    if !able.snapshot {
        let token = format!("{}-denied", volume.id);
        let request = SnapshotRequest { volume_id: volume.id, token, tags: stage.run_tags() };
        honest("snapshot", false, stage.provider.snapshot(stage.ctx(), request).await)?;
    }
    Ok(())
}

pub(super) async fn expand(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.expand, "describe denies expand")?;
    let (_, volume) = stage.main()?;
    let larger = volume.size_bytes * 2;
    for (what, size_bytes) in [("expand", larger), ("expand again", larger), ("a smaller size", 1)]
    {
        let request = ExpandVolumeRequest { id: volume.id.clone(), size_bytes };
        let volume = ok(what, stage.provider.expand(stage.ctx(), request).await)?;
        ensure(volume.size_bytes >= larger, || format!("after {what}: {volume:?}"))?;
    }
    let got = stage.get(&volume.id).await?;
    ensure(got.size_bytes >= larger, || format!("get answers {got:?}"))
}

pub(super) async fn snapshot(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.snapshot, "describe denies snapshots")?;
    let (_, volume) = stage.main()?;
    let got = stage.get(&volume.id).await?;
    let first = one_snapshot(stage, &snapshot_request(stage, &volume.id)).await?;
    let fits = first.volume_id == volume.id && first.size_bytes == got.size_bytes;
    ensure(fits, || format!("{first:?} of {got:?}"))
}

/// Asks twice.
pub(super) async fn one_snapshot(stage: &Stage, request: &SnapshotRequest) -> Outcome<Snapshot> {
    let first = ok("snapshot", stage.provider.snapshot(stage.ctx(), request.clone()).await)?;
    let second = ok("snapshot again", stage.provider.snapshot(stage.ctx(), request.clone()).await)?;
    ensure(first.id == second.id, || format!("{} and {} were made", first.id, second.id))?;
    Ok(first)
}

pub(super) async fn restore(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.snapshot, "describe denies snapshots")?;
    let (_, volume) = stage.main()?;
    let request = snapshot_request(stage, &volume.id);
    let snapshot = ok("snapshot", stage.provider.snapshot(stage.ctx(), request).await)?;
    let wish = stage.request().await?;
    let size_bytes = wish.size_bytes.max(snapshot.size_bytes);
    let wish = CreateVolumeRequest { snapshot_id: snapshot.id, size_bytes, ..wish };
    let restored = stage.make(&wish).await?;
    ensure(restored.size_bytes >= size_bytes, || format!("{restored:?} is too small"))?;
    stage.delete(&restored.id).await
}

pub(super) async fn delete(stage: &Stage) -> Outcome {
    let (_, volume) = stage.main()?;
    stage.delete(&volume.id).await?;
    stage.wait_until_gone(&volume.id).await?;
    stage.delete(&volume.id).await
}

/// The same for both checks: one token, one snapshot.
fn snapshot_request(stage: &Stage, volume: &str) -> SnapshotRequest {
    let token = format!("{volume}-snapshot");
    SnapshotRequest { volume_id: volume.to_owned(), token, tags: stage.run_tags() }
}

/// How many volumes are spread over pages.
const PAGED: usize = 3;
