//! Promises of the `VolumeProvider`.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use infranetes_sdk::volume::{
    CreateVolumeRequest, DescribeVolumeRequest, ExpandVolumeRequest, ListVolumesRequest,
    SnapshotRequest, Volume, VolumeCapabilities, VolumeRef, VolumeState,
};
use infranetes_sdk::{CallContext, ErrorKind, VolumeProvider};

use crate::check::{
    Check, Limits, Outcome, Stop, checks, context, ensure, eventually, fails, honest, ok, require,
    run_all, run_name,
};
use crate::report::{Line, Report};

/// What the suite needs to know to make disks.
#[derive(Clone, Debug)]
pub struct VolumeSubject {
    /// Size of the disks.
    pub size_bytes: u64,
    /// Type of the disks; empty means the provider's own choice.
    pub volume_type: String,
    /// Zone of the disks; empty means the provider's own choice.
    pub zone: String,
    /// How long things may take.
    pub limits: Limits,
}

impl Default for VolumeSubject {
    /// One GiB of the provider's own choice.
    fn default() -> Self {
        Self {
            size_bytes: 1 << 30,
            volume_type: String::new(),
            zone: String::new(),
            limits: Limits::default(),
        }
    }
}

/// The suite for one provider.
pub struct VolumeSuite {
    stage: Stage,
}

impl VolumeSuite {
    /// Tests `provider`.
    pub fn new(provider: Arc<dyn VolumeProvider>, subject: VolumeSubject) -> Self {
        let stage = Stage {
            provider,
            subject,
            run: run_name(),
            requests: AtomicUsize::new(0),
            made: Mutex::default(),
        };
        Self { stage }
    }

    /// Checks every promise. Ends even if the provider hangs: each check has a time limit.
    pub async fn run(self) -> Report {
        self.run_with(|_| ControlFlow::Continue(())).await
    }

    /// As [`Self::run`], and shows each line as soon as it is known. A `Break` cuts the run short: what was made is removed,
    /// and the lines that are missing were not looked at.
    pub async fn run_with(self, watch: impl FnMut(&Line) -> ControlFlow<()>) -> Report {
        let limits = self.stage.subject.limits.clone();
        run_all(&self.stage, CHECKS, LAST, &limits, watch).await
    }
}

const CHECKS: &[Check<Stage>] = checks! { Stage;
    "volume/describe/constant", "describe gives the same answer again" => describe_is_constant;
    "volume/unknown-id", "an unknown id is NotFound" => unknown_ids;
    "volume/delete/unknown-id", "deleting what is not there is success" => delete_unknown;
    "volume/create/same-token", "the same token twice is one volume" => same_token;
    "volume/create/same-token-other-shape", "the same token with another shape is Conflict" => other_shape;
    "volume/list", "list finds a volume once by its tags, on one page" => listed;
    "volume/expand", "a volume grows, and its size already is success" => expand;
    "volume/snapshot", "the same token twice is one snapshot" => snapshot;
    "volume/delete", "a deleted volume is NotFound, and deleting again is success" => delete;
};

const LAST: &[Check<Stage>] = checks! { Stage;
    "volume/clean", "nothing of this run is left" => clean;
};

struct Stage {
    provider: Arc<dyn VolumeProvider>,
    subject: VolumeSubject,
    run: String,
    requests: AtomicUsize,
    made: Mutex<Vec<String>>,
}

impl Stage {
    fn ctx(&self) -> CallContext {
        context(&self.subject.limits)
    }

    async fn capabilities(&self) -> Outcome<VolumeCapabilities> {
        ok("describe", self.provider.describe(self.ctx(), DescribeVolumeRequest {}).await)
    }

    fn request(&self) -> CreateVolumeRequest {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        CreateVolumeRequest {
            token: format!("{}-{number}", self.run),
            name: format!("conformance-{}-{number}", self.run),
            size_bytes: self.subject.size_bytes,
            r#type: self.subject.volume_type.clone(),
            tags: self.tags(),
            snapshot_id: String::new(),
            zone: self.subject.zone.clone(),
        }
    }

    fn tags(&self) -> HashMap<String, String> {
        HashMap::from([("conformance-run".into(), self.run.clone())])
    }

    /// A volume that is ready to be used, removed at the end.
    async fn create(&self, request: &CreateVolumeRequest) -> Outcome<Volume> {
        let volume = ok("create", self.provider.create(self.ctx(), request.clone()).await)?;
        ensure(!volume.id.is_empty(), || "create answered a volume without an id".into())?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(volume.id.clone());
        eventually("an available volume", self.subject.limits.start, || async {
            match self.provider.get(self.ctx(), reference(&volume.id)).await {
                Ok(volume) if volume.state() == VolumeState::Available => Ok(volume),
                other => Err(format!("get answers {other:?}")),
            }
        })
        .await
    }

    async fn list(&self, page_size: u32) -> Outcome<Vec<Volume>> {
        let mut volumes = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListVolumesRequest { tags: self.tags(), page_token, page_size };
            let page = ok("list", self.provider.list(self.ctx(), request).await)?;
            volumes.extend(page.volumes);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(volumes);
            }
        }
        Err(Stop::Broken(format!("list has more than {PAGES_MAX} pages")))
    }

    async fn wait_for_count(&self, count: usize) -> Outcome<Vec<Volume>> {
        eventually(&format!("{count} volumes"), self.subject.limits.settle, || async {
            match self.list(1).await {
                Ok(volumes) if volumes.len() == count => Ok(volumes),
                Ok(volumes) => Err(format!("there are {}", volumes.len())),
                Err(Stop::Broken(why) | Stop::Skipped(why)) => Err(why),
            }
        })
        .await
    }

    async fn delete(&self, id: &str) -> Outcome {
        ok("delete", self.provider.delete(self.ctx(), reference(id)).await).map(drop)
    }
}

async fn describe_is_constant(stage: &Stage) -> Outcome {
    let (first, second) = (stage.capabilities().await?, stage.capabilities().await?);
    ensure(first == second, || format!("{first:?} became {second:?}"))
}

async fn unknown_ids(stage: &Stage) -> Outcome {
    let get = stage.provider.get(stage.ctx(), reference(UNKNOWN)).await;
    fails("get", ErrorKind::NotFound, get)
}

async fn delete_unknown(stage: &Stage) -> Outcome {
    stage.delete(UNKNOWN).await
}

async fn same_token(stage: &Stage) -> Outcome {
    let request = stage.request();
    let (first, second) = (stage.create(&request).await?, stage.create(&request).await?);
    ensure(first.id == second.id, || format!("{} and {} were made", first.id, second.id))?;
    ensure(first.size_bytes >= request.size_bytes, || format!("{first:?} is too small"))?;
    stage.wait_for_count(1).await.map(drop)
}

async fn other_shape(stage: &Stage) -> Outcome {
    let request = stage.request();
    stage.create(&request).await?;
    let larger = CreateVolumeRequest { size_bytes: request.size_bytes * 2, ..request };
    let created = stage.provider.create(stage.ctx(), larger).await;
    fails("create", ErrorKind::Conflict, created)
}

async fn listed(stage: &Stage) -> Outcome {
    let volume = stage.create(&stage.request()).await?;
    let listed = eventually("the volume in the list", stage.subject.limits.settle, || async {
        let volumes = stage.list(1).await.map_err(|stop| format!("{stop:?}"))?;
        let found = volumes.iter().any(|listed| listed.id == volume.id);
        if found { Ok(volumes) } else { Err("it is not there".into()) }
    })
    .await?;
    let times = listed.iter().filter(|listed| listed.id == volume.id).count();
    ensure(times == 1, || format!("it is on {times} pages"))?;
    let tags = listed.iter().all(|listed| listed.tags == stage.tags());
    ensure(tags, || format!("tags are lost: {listed:?}"))
}

async fn expand(stage: &Stage) -> Outcome {
    let volume = stage.create(&stage.request()).await?;
    let size_bytes = volume.size_bytes * 2;
    let request = ExpandVolumeRequest { id: volume.id, size_bytes };
    let able = stage.capabilities().await?.expand;
    let expanded = stage.provider.expand(stage.ctx(), request.clone()).await;
    if !able {
        return honest("expand", false, expanded);
    }
    for (what, expanded) in
        [("expand", expanded), ("expand again", stage.provider.expand(stage.ctx(), request).await)]
    {
        let volume = ok(what, expanded)?;
        ensure(volume.size_bytes >= size_bytes, || format!("after {what}: {volume:?}"))?;
    }
    Ok(())
}

async fn snapshot(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.snapshot, "describe denies snapshots")?;
    let volume = stage.create(&stage.request()).await?;
    let token = format!("{}-snapshot", volume.id);
    let request = SnapshotRequest { volume_id: volume.id, token, tags: stage.tags() };
    let first = ok("snapshot", stage.provider.snapshot(stage.ctx(), request.clone()).await)?;
    let second = ok("snapshot again", stage.provider.snapshot(stage.ctx(), request).await)?;
    ensure(first.id == second.id, || format!("{} and {} were made", first.id, second.id))
}

async fn delete(stage: &Stage) -> Outcome {
    let volume = stage.create(&stage.request()).await?;
    for _ in 0..2 {
        stage.delete(&volume.id).await?;
    }
    eventually("gone", stage.subject.limits.settle, || async {
        match stage.provider.get(stage.ctx(), reference(&volume.id)).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            other => Err(format!("get answers {other:?}")),
        }
    })
    .await
}

/// Removes what earlier checks left; what `list` then still shows is broken.
async fn clean(stage: &Stage) -> Outcome {
    let made = stage.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for id in made {
        stage.delete(&id).await?;
    }
    stage.wait_for_count(0).await.map(drop)
}

fn reference(id: &str) -> VolumeRef {
    VolumeRef { id: id.into() }
}

const UNKNOWN: &str = "no-such-volume";
const PAGES_MAX: usize = 1000;
