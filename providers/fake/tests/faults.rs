//! The promises of `PodProvider` when the cloud fails: kept by this provider, and missed in ones that hide what happened.

use std::sync::Arc;
use std::time::Duration;

use infranetes_conformance::{Fault, FaultInjector, FaultyCall, PodSubject, PodSuite, Report};
use infranetes_provider_fake::{Failure, FakeCloud, FakeProvider, FaultAction, Method, Script};
use infranetes_sdk::pod::{
    CreateRequest, DescribePodRequest, DestroyRequest, Empty, GetRequest, ListRequest,
    ListResponse, Machine, PlanRequest, PlanResponse, PodCapabilities, SweepRequest, SweepResponse,
};
use infranetes_sdk::{
    CallContext, ErrorKind, PodProvider, ProviderError, Result, RetryAdvice, async_trait,
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

async fn run(lie: Lie) -> Report {
    let cloud = FakeCloud::new(1);
    let provider = Liar { lie, inner: FakeProvider::new(cloud.clone(), Script::default()) };
    let suite = PodSuite::new(Arc::new(provider), PodSubject::default());
    suite.with_faults(Arc::new(Faults(cloud))).run().await
}

#[tokio::test(start_paused = true)]
async fn a_provider_tells_what_its_cloud_refused_and_finds_what_was_lost() {
    let report = run(Lie::None).await;
    let faults: Vec<_> =
        report.lines.iter().filter(|line| line.name.starts_with("pod/fault/")).collect();
    assert_eq!(faults.len(), 6, "{report}");
    for line in faults {
        assert!(matches!(line.verdict, infranetes_conformance::Verdict::Kept), "{report}");
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
}

#[async_trait]
impl PodProvider for Liar {
    async fn describe(&self, c: CallContext, r: DescribePodRequest) -> Result<PodCapabilities> {
        self.inner.describe(c, r).await
    }

    async fn plan(&self, c: CallContext, r: PlanRequest) -> Result<PlanResponse> {
        self.inner.plan(c, r).await
    }

    async fn create(&self, c: CallContext, mut r: CreateRequest) -> Result<Machine> {
        match self.inner.create(c.clone(), r.clone()).await {
            Err(_) if self.lie == Lie::MakesAnother => {
                // A token of its own, as by one that tries again without thinking.
                (r.token, r.name) = (format!("{}-again", r.token), format!("{}-again", r.name));
                self.inner.create(c, r).await
            }
            answer => answer.map_err(|error| self.told(error)),
        }
    }

    async fn get(&self, c: CallContext, r: GetRequest) -> Result<Machine> {
        self.inner.get(c, r).await.map_err(|error| match self.lie {
            Lie::NothingThere => ProviderError::not_found("there is no such machine"),
            _ => self.told(error),
        })
    }

    async fn list(&self, c: CallContext, r: ListRequest) -> Result<ListResponse> {
        match self.inner.list(c, r).await {
            Err(_) if self.lie == Lie::EmptyList => Ok(ListResponse::default()),
            answer => answer.map_err(|error| self.told(error)),
        }
    }

    async fn destroy(&self, c: CallContext, r: DestroyRequest) -> Result<Empty> {
        self.inner.destroy(c, r).await.map_err(|error| self.told(error))
    }

    async fn sweep(&self, c: CallContext, r: SweepRequest) -> Result<SweepResponse> {
        self.inner.sweep(c, r).await
    }
}
