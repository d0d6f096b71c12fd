//! The promises of `PodProvider` and `VolumeProvider` when the cloud fails: kept by this provider, and missed in ones that hide what
//! happened.

use std::sync::Arc;
use std::time::Duration;

use infranetes_conformance::{
    Fault, FaultInjector, FaultyCall, PodSubject, PodSuite, Report, Verdict, VolumeSubject,
    VolumeSuite,
};
use infranetes_provider_fake::{Failure, FakeCloud, FakeProvider, FaultAction, Method, Script};
use infranetes_sdk::pod::{
    AttachRequest, AttachResponse, CreateRequest, DescribePodRequest, DestroyRequest,
    DetachRequest, Empty, GetRequest, ListRequest, ListResponse, Machine, PlanRequest,
    PlanResponse, PodCapabilities, SweepRequest, SweepResponse,
};
use infranetes_sdk::volume::{
    CreateVolumeRequest, DescribeVolumeRequest, ExpandVolumeRequest, ListVolumesRequest,
    ListVolumesResponse, Snapshot, SnapshotRequest, Volume, VolumeCapabilities, VolumeRef,
};
use infranetes_sdk::{
    CallContext, ErrorKind, PodProvider, ProviderError, Result, RetryAdvice, VolumeProvider,
    async_trait,
};

/// Fails calls of a simulated cloud.
struct Faults(FakeCloud);

impl FaultInjector for Faults {
    fn inject(&self, call: FaultyCall, fault: Fault) -> bool {
        let method = match call {
            FaultyCall::Create => Method::Create,
            FaultyCall::Get => Method::Get,
            FaultyCall::List => Method::List,
            FaultyCall::Destroy => Method::Destroy,
            FaultyCall::Attach => Method::Attach,
            FaultyCall::Detach => Method::Detach,
            FaultyCall::CreateVolume => Method::CreateVolume,
            FaultyCall::GetVolume => Method::GetVolume,
            FaultyCall::ListVolumes => Method::ListVolumes,
            FaultyCall::DeleteVolume => Method::DeleteVolume,
            _ => return false,
        };
        let action = match fault {
            Fault::Refused(kind) => FaultAction::Fail(Failure::new(kind, "as it was told")),
            Fault::Throttled(pause) => {
                let failure = Failure::new(ErrorKind::Throttled, "slow down");
                let retry_after_ms = Some(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
                FaultAction::Fail(Failure { retry_after_ms, ..failure })
            }
            Fault::AnswerLost => FaultAction::LoseAnswer,
            _ => return false,
        };
        self.0.fail_next(method, action);
        true
    }
}

/// Both suites; each runs to its end.
async fn run(lie: Lie) -> Report {
    let cloud = FakeCloud::new(1);
    let inner = FakeProvider::new(cloud.clone(), Script::default());
    let provider = Arc::new(Liar { lie, inner });
    let faults = Arc::new(Faults(cloud.clone()));
    let suite = PodSuite::new(provider.clone(), PodSubject::default());
    let suite = suite.with_volumes(provider.clone(), VolumeSubject::default());
    let mut report = suite.with_faults(faults.clone()).run().await;
    let suite = VolumeSuite::new(provider, VolumeSubject::default());
    report.lines.extend(suite.with_faults(faults).run().await.lines);
    report
}

#[tokio::test(start_paused = true)]
async fn a_provider_tells_what_its_cloud_refused_and_finds_what_was_lost() {
    let report = run(Lie::None).await;
    let faults: Vec<_> = report.lines.iter().filter(|line| line.name.contains("/fault/")).collect();
    assert_eq!(faults.len(), 14, "{report}");
    for line in faults {
        assert!(matches!(line.verdict, Verdict::Kept), "{report}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_way_to_hide_a_failure_is_found() {
    for (lie, name) in [
        (Lie::OneKind, "pod/fault/create"),
        (Lie::AlwaysRetry, "pod/fault/create"),
        (Lie::LosesTheTime, "pod/fault/throttled"),
        (Lie::NeverRetry, "pod/fault/lost-answer"),
        (Lie::MakesAnother, "pod/fault/lost-answer"),
        (Lie::NothingThere, "pod/fault/get"),
        (Lie::EmptyList, "pod/fault/list"),
        (Lie::NeverRetry, "pod/fault/destroy"),
        (Lie::OneKind, "pod/fault/attach"),
        (Lie::AlwaysRetry, "pod/fault/attach"),
        (Lie::NeverRetry, "pod/fault/attach"),
        (Lie::AttachesNothing, "pod/fault/attach"),
        (Lie::NeverRetry, "pod/fault/detach"),
        (Lie::OneKind, "volume/fault/create"),
        (Lie::AlwaysRetry, "volume/fault/create"),
        (Lie::LosesTheTime, "volume/fault/throttled"),
        (Lie::NeverRetry, "volume/fault/lost-answer"),
        (Lie::MakesAnother, "volume/fault/lost-answer"),
        (Lie::NothingThere, "volume/fault/get"),
        (Lie::EmptyList, "volume/fault/list"),
        (Lie::NeverRetry, "volume/fault/delete"),
        // Without any fault.
        (Lie::AttachesAnything, "pod/attach/unknown-id"),
        (Lie::AttachesAnything, "pod/attach/elsewhere"),
        (Lie::AnotherDevice, "pod/attach"),
        (Lie::DeletesAttached, "pod/attach/delete"),
        (Lie::DetachesOnce, "pod/detach"),
        (Lie::DetachesOnce, "pod/attach/cancelled"),
        (Lie::IgnoresDisks, "pod/create/disks"),
        (Lie::TakesDisksAlong, "pod/attach/destroy"),
    ] {
        let report = run(lie).await;
        let found = report.broken().any(|line| line.name == name);
        assert!(found, "{lie:?} is not found as {name}:\n{report}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    None,
    OneKind,
    AlwaysRetry,
    NeverRetry,
    LosesTheTime,
    MakesAnother,
    NothingThere,
    EmptyList,
    AttachesNothing,
    AttachesAnything,
    AnotherDevice,
    DeletesAttached,
    DetachesOnce,
    IgnoresDisks,
    TakesDisksAlong,
}

/// Does what the good one does, and lies about what failed.
struct Liar {
    lie: Lie,
    inner: FakeProvider,
}

impl Liar {
    fn told(&self, error: ProviderError) -> ProviderError {
        match self.lie {
            Lie::OneKind => ProviderError::internal(error.message),
            Lie::AlwaysRetry => error.with_retry(RetryAdvice::Backoff),
            Lie::NeverRetry => error.with_retry(RetryAdvice::Never),
            Lie::LosesTheTime => error.with_retry(RetryAdvice::After(Duration::from_millis(1))),
            _ => error,
        }
    }

    fn gone(&self, error: ProviderError) -> ProviderError {
        match self.lie {
            Lie::NothingThere => ProviderError::not_found("there is no such thing"),
            _ => self.told(error),
        }
    }
}

#[async_trait]
impl PodProvider for Liar {
    async fn describe(&self, c: CallContext, r: DescribePodRequest) -> Result<PodCapabilities> {
        PodProvider::describe(&self.inner, c, r).await
    }

    async fn plan(&self, c: CallContext, r: PlanRequest) -> Result<PlanResponse> {
        self.inner.plan(c, r).await
    }

    async fn create(&self, c: CallContext, mut r: CreateRequest) -> Result<Machine> {
        if self.lie == Lie::IgnoresDisks {
            r.disks.clear();
        }
        match PodProvider::create(&self.inner, c.clone(), r.clone()).await {
            Err(_) if self.lie == Lie::MakesAnother => {
                // A token of its own, as by one that tries again without thinking.
                (r.token, r.name) = (format!("{}-again", r.token), format!("{}-again", r.name));
                PodProvider::create(&self.inner, c, r).await
            }
            answer => answer.map_err(|error| self.told(error)),
        }
    }

    async fn get(&self, c: CallContext, r: GetRequest) -> Result<Machine> {
        PodProvider::get(&self.inner, c, r).await.map_err(|error| self.gone(error))
    }

    async fn list(&self, c: CallContext, r: ListRequest) -> Result<ListResponse> {
        match PodProvider::list(&self.inner, c, r).await {
            Err(_) if self.lie == Lie::EmptyList => Ok(ListResponse::default()),
            answer => answer.map_err(|error| self.told(error)),
        }
    }

    async fn destroy(&self, c: CallContext, r: DestroyRequest) -> Result<Empty> {
        let held = self.inner.cloud().machine(&r.id).map(|machine| machine.attached);
        let destroyed = self.inner.destroy(c.clone(), r).await.map_err(|error| self.told(error));
        if self.lie == Lie::TakesDisksAlong {
            for id in held.unwrap_or_default() {
                VolumeProvider::delete(&self.inner, c.clone(), VolumeRef { id }).await?;
            }
        }
        destroyed
    }

    async fn sweep(&self, c: CallContext, r: SweepRequest) -> Result<SweepResponse> {
        self.inner.sweep(c, r).await
    }

    async fn attach(&self, c: CallContext, r: AttachRequest) -> Result<AttachResponse> {
        let device_id = format!("device-{}", c.request_id);
        match self.inner.attach(c, r).await {
            Err(_) if self.lie == Lie::AttachesAnything => Ok(AttachResponse { device_id }),
            Err(error) if self.lie == Lie::AttachesNothing && error.kind != ErrorKind::Conflict => {
                Ok(AttachResponse { device_id })
            }
            Ok(_) if self.lie == Lie::AnotherDevice => Ok(AttachResponse { device_id }),
            answer => answer.map_err(|error| self.told(error)),
        }
    }

    async fn detach(&self, c: CallContext, r: DetachRequest) -> Result<Empty> {
        let machine = self.inner.cloud().machine(&r.machine_id);
        let attached = machine.is_some_and(|machine| machine.attached.contains(&r.volume_id));
        if !attached && self.lie == Lie::DetachesOnce {
            return Err(ProviderError::not_found("it is not attached"));
        }
        self.inner.detach(c, r).await.map_err(|error| self.told(error))
    }
}

#[async_trait]
impl VolumeProvider for Liar {
    async fn describe(
        &self,
        c: CallContext,
        r: DescribeVolumeRequest,
    ) -> Result<VolumeCapabilities> {
        VolumeProvider::describe(&self.inner, c, r).await
    }

    async fn create(&self, c: CallContext, mut r: CreateVolumeRequest) -> Result<Volume> {
        match VolumeProvider::create(&self.inner, c.clone(), r.clone()).await {
            Err(_) if self.lie == Lie::MakesAnother => {
                (r.token, r.name) = (format!("{}-again", r.token), format!("{}-again", r.name));
                VolumeProvider::create(&self.inner, c, r).await
            }
            answer => answer.map_err(|error| self.told(error)),
        }
    }

    async fn get(&self, c: CallContext, r: VolumeRef) -> Result<Volume> {
        VolumeProvider::get(&self.inner, c, r).await.map_err(|error| self.gone(error))
    }

    async fn list(&self, c: CallContext, r: ListVolumesRequest) -> Result<ListVolumesResponse> {
        match VolumeProvider::list(&self.inner, c, r).await {
            Err(_) if self.lie == Lie::EmptyList => Ok(ListVolumesResponse::default()),
            answer => answer.map_err(|error| self.told(error)),
        }
    }

    async fn expand(&self, c: CallContext, r: ExpandVolumeRequest) -> Result<Volume> {
        self.inner.expand(c, r).await
    }

    async fn snapshot(&self, c: CallContext, r: SnapshotRequest) -> Result<Snapshot> {
        self.inner.snapshot(c, r).await
    }

    async fn delete(&self, c: CallContext, r: VolumeRef) -> Result<Empty> {
        if self.lie == Lie::DeletesAttached {
            let volume = VolumeProvider::get(&self.inner, c.clone(), r.clone()).await;
            if let Some(machine_id) = volume.ok().map(|volume| volume.machine_id) {
                let detach = DetachRequest { machine_id, volume_id: r.id.clone() };
                // It may be on none.
                let _ = self.inner.detach(c.clone(), detach).await;
            }
        }
        VolumeProvider::delete(&self.inner, c, r).await.map_err(|error| self.told(error))
    }
}
