//! Disks of a fake cloud: they outlive machines, and are attached to one at a time.

use std::collections::BTreeMap;

use infranetes_sdk::volume::{
    CreateVolumeRequest, DescribeVolumeRequest, Empty, ExpandVolumeRequest, ListVolumesRequest,
    ListVolumesResponse, Snapshot, SnapshotRequest, Volume, VolumeCapabilities, VolumeRef,
    VolumeState,
};
use infranetes_sdk::{CallContext, Result, VolumeProvider, async_trait};

use crate::error::CloudError;
use crate::pages::{page_token, position};
use crate::provider::FakeProvider;
use crate::script::{Feature, Method};
use crate::state::State;

/// All disks and snapshots of a cloud.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    /// By number, in the order of creation.
    disks: BTreeMap<u64, Disk>,
    snapshots: BTreeMap<String, Snapshot>,
    made: u64,
}

#[derive(Debug)]
struct Disk {
    request: CreateVolumeRequest,
    size_bytes: u64,
}

#[async_trait]
impl VolumeProvider for FakeProvider {
    async fn describe(
        &self,
        _: CallContext,
        _: DescribeVolumeRequest,
    ) -> Result<VolumeCapabilities> {
        let script = &self.client.script;
        Ok(VolumeCapabilities {
            expand: !script.lacks(Feature::Expand),
            snapshot: !script.lacks(Feature::Snapshot),
            minimum_bytes: GRANULE,
            granularity_bytes: GRANULE,
        })
    }

    async fn create(&self, ctx: CallContext, request: CreateVolumeRequest) -> Result<Volume> {
        let name = request.name.clone();
        self.client.call(&ctx, Method::CreateVolume, &name, |state, _| create(state, request)).await
    }

    async fn get(&self, ctx: CallContext, request: VolumeRef) -> Result<Volume> {
        self.client
            .call(&ctx, Method::GetVolume, &request.id, |state, _| get(state, &request.id))
            .await
    }

    async fn list(
        &self,
        ctx: CallContext,
        request: ListVolumesRequest,
    ) -> Result<ListVolumesResponse> {
        let size = self.client.script.page_size;
        self.client
            .call(&ctx, Method::ListVolumes, "", |state, _| list(state, &request, size))
            .await
    }

    async fn expand(&self, ctx: CallContext, request: ExpandVolumeRequest) -> Result<Volume> {
        self.need(Feature::Expand, "expand")?;
        self.client
            .call(&ctx, Method::ExpandVolume, &request.id, |state, _| {
                let number = number(state, &request.id)?;
                let size = rounded(request.size_bytes)?;
                if let Some(disk) = state.volumes.disks.get_mut(&number) {
                    disk.size_bytes = disk.size_bytes.max(size);
                }
                get(state, &request.id)
            })
            .await
    }

    async fn snapshot(&self, ctx: CallContext, request: SnapshotRequest) -> Result<Snapshot> {
        self.need(Feature::Snapshot, "snapshot")?;
        let id = request.volume_id.clone();
        self.client
            .call(&ctx, Method::SnapshotVolume, &id, |state, _| snapshot(state, request))
            .await
    }

    async fn delete(&self, ctx: CallContext, request: VolumeRef) -> Result<Empty> {
        self.client
            .call(&ctx, Method::DeleteVolume, &request.id, |state, _| {
                let Ok(number) = number(state, &request.id) else { return Ok(Empty {}) };
                if let Some(machine) = holder(state, &request.id) {
                    let message = format!("volume {} is attached to {machine}", request.id);
                    return Err(CloudError::Conflict(message));
                }
                state.volumes.disks.remove(&number);
                Ok(Empty {})
            })
            .await
    }
}

/// Refuses a volume that does not exist.
pub(crate) fn check_exists(state: &State, id: &str) -> Result<(), CloudError> {
    number(state, id).map(drop)
}

fn create(state: &mut State, request: CreateVolumeRequest) -> Result<Volume, CloudError> {
    let same = |(_, disk): &(&u64, &Disk)| disk.request.token == request.token;
    if let Some((number, disk)) = state.volumes.disks.iter().find(same) {
        if disk.request != request {
            let message = format!("token {:?} made a volume of another shape", request.token);
            return Err(CloudError::Conflict(message));
        }
        return Ok(view(state, *number, disk));
    }
    check(state, &request)?;
    let size_bytes = rounded(request.size_bytes)?;
    state.volumes.made += 1;
    let number = state.volumes.made;
    state.volumes.disks.insert(number, Disk { request, size_bytes });
    get(state, &id_of(number))
}

/// Refuses what this cloud could not honour in full.
fn check(state: &State, request: &CreateVolumeRequest) -> Result<(), CloudError> {
    let invalid = |message: String| Err(CloudError::Invalid(message));
    if request.token.is_empty() {
        return invalid("the request has no token".to_owned());
    }
    if !["", "standard"].contains(&request.r#type.as_str()) {
        return invalid(format!("there is no volume type {:?}", request.r#type));
    }
    if !request.zone.is_empty() {
        return invalid(format!("volumes are in every zone, not in {:?} alone", request.zone));
    }
    match state.volumes.snapshots.get(&request.snapshot_id) {
        None if !request.snapshot_id.is_empty() => {
            invalid(format!("there is no snapshot {:?}", request.snapshot_id))
        }
        Some(snapshot) if snapshot.size_bytes > request.size_bytes => {
            invalid(format!("the snapshot has {} bytes", snapshot.size_bytes))
        }
        _ => Ok(()),
    }
}

fn get(state: &State, id: &str) -> Result<Volume, CloudError> {
    let number = number(state, id)?;
    let disk = state.volumes.disks.get(&number);
    disk.map(|disk| view(state, number, disk)).ok_or_else(|| none(id))
}

fn list(
    state: &State,
    request: &ListVolumesRequest,
    default_size: u32,
) -> Result<ListVolumesResponse, CloudError> {
    let after = position(&request.page_token)?;
    let size = if request.page_size == 0 { default_size } else { request.page_size };
    let size = usize::try_from(size.max(1)).unwrap_or(usize::MAX);
    let carries = |disk: &Disk| {
        request.tags.iter().all(|(key, value)| disk.request.tags.get(key) == Some(value))
    };
    let mut rest = state
        .volumes
        .disks
        .iter()
        .filter(|(number, disk)| **number > after && carries(disk))
        .map(|(number, disk)| (*number, view(state, *number, disk)));
    let page: Vec<(u64, Volume)> = rest.by_ref().take(size).collect();
    let last = page.last().map(|(number, _)| *number);
    let next_page_token = rest.next().and(last).map(page_token).unwrap_or_default();
    Ok(ListVolumesResponse {
        volumes: page.into_iter().map(|(_, volume)| volume).collect(),
        next_page_token,
    })
}

fn snapshot(state: &mut State, request: SnapshotRequest) -> Result<Snapshot, CloudError> {
    let id = format!("fake-snapshot-{}", request.token);
    if let Some(snapshot) = state.volumes.snapshots.get(&id) {
        return match snapshot.volume_id == request.volume_id {
            true => Ok(snapshot.clone()),
            false => Err(CloudError::Conflict(format!("snapshot {id} is of another volume"))),
        };
    }
    let size_bytes = get(state, &request.volume_id)?.size_bytes;
    let snapshot =
        Snapshot { id: id.clone(), volume_id: request.volume_id, size_bytes, ready: true };
    state.volumes.snapshots.insert(id, snapshot.clone());
    Ok(snapshot)
}

fn view(state: &State, number: u64, disk: &Disk) -> Volume {
    let id = id_of(number);
    let holder = holder(state, &id);
    let attached = if holder.is_some() { VolumeState::Attached } else { VolumeState::Available };
    Volume {
        name: disk.request.name.clone(),
        size_bytes: disk.size_bytes,
        state: attached.into(),
        tags: disk.request.tags.clone(),
        zone: String::new(),
        machine_id: holder.unwrap_or_default(),
        failure: None,
        id,
    }
}

/// The machine that a volume is attached to.
fn holder(state: &State, id: &str) -> Option<String> {
    let mut machines = state.machines.values().filter(|record| record.exists());
    machines.find(|record| record.view.attached.contains(id)).map(|record| record.view.id.clone())
}

fn number(state: &State, id: &str) -> Result<u64, CloudError> {
    id.strip_prefix(ID)
        .and_then(|number| number.parse().ok())
        .filter(|number| state.volumes.disks.contains_key(number))
        .ok_or_else(|| none(id))
}

fn none(id: &str) -> CloudError {
    CloudError::NoSuchVolume { id: id.to_owned() }
}

fn id_of(number: u64) -> String {
    format!("{ID}{number}")
}

fn rounded(bytes: u64) -> Result<u64, CloudError> {
    match bytes {
        0 | SIZE_MAX.. => Err(CloudError::Invalid(format!("no volume has {bytes} bytes"))),
        _ => Ok(bytes.next_multiple_of(GRANULE)),
    }
}

const ID: &str = "fake-volume-";
const GRANULE: u64 = 1 << 20;
const SIZE_MAX: u64 = 1 << 50;
