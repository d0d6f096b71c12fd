//! The suite against a provider that keeps every promise, and against the same provider with one lie at a time: each lie
//! has to be found, under the right name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use infranetes_conformance::{Limits, PodSubject, PodSuite, Report, Verdict};
use infranetes_sdk::pod::{
    AddressMode, Addresses, AddressesRequest, ConsoleChunk, ConsoleRequest, CreateRequest,
    DescribePodRequest, DestroyRequest, Empty, GetRequest, Leftover, ListRequest, ListResponse,
    Machine, MachineState, MachineType, PlanRequest, PlanResponse, PodCapabilities, ResizeRequest,
    StartMachineRequest, StopMachineRequest, SweepRequest, SweepResponse,
};
use infranetes_sdk::{BoxStream, CallContext, PodProvider, ProviderError, Result, stream};

#[tokio::test(start_paused = true)]
async fn a_provider_that_keeps_its_promises_passes() {
    let report = run(Lie::None).await;
    report.assert_ok();
    let skipped: Vec<_> = report
        .lines
        .iter()
        .filter(|line| matches!(line.verdict, Verdict::Skipped(_)))
        .map(|line| line.name)
        .collect();
    assert!(skipped.is_empty(), "{skipped:?}\n{report}");
}

#[tokio::test(start_paused = true)]
async fn each_lie_is_found() {
    for (lie, name) in [
        (Lie::PlansTooSmall, "pod/plan/fits"),
        (Lie::PlansTheImpossible, "pod/plan/impossible"),
        (Lie::WrongKindForUnknownId, "pod/unknown-id"),
        (Lie::DestroyOfNothingFails, "pod/destroy/unknown-id"),
        (Lie::DestroyOfNothingFails, "pod/destroy/again"),
        (Lie::AnyPageToken, "pod/list/unknown-page"),
        (Lie::ClaimsQuota, "pod/describe/honest"),
        (Lie::TakesAnyUserData, "pod/create/user-data-limit"),
        (Lie::TakesAnyType, "pod/create/unknown-type"),
        (Lie::TakesAnyNetwork, "pod/create/address-modes"),
        (Lie::LosesTags, "pod/create/accepted"),
        (Lie::IgnoresTokens, "pod/create/same-token"),
        (Lie::IgnoresTokens, "pod/create/concurrent-token"),
        (Lie::IgnoresTokens, "pod/create/cancelled"),
        (Lie::IgnoresTokens, "pod/create/deadline"),
        (Lie::IgnoresShapes, "pod/create/same-token-other-shape"),
        (Lie::NeverRuns, "pod/get/runs"),
        (Lie::ListsEverything, "pod/list/tags"),
        (Lie::WrongAddress, "pod/addresses"),
        (Lie::EndlessReplay, "pod/console/replay"),
        (Lie::FollowEnds, "pod/console/readers"),
        (Lie::TakesAnyCheckpoint, "pod/create/checkpoint"),
        (Lie::LateIsInternal, "pod/deadlines"),
        (Lie::StopDoesNothing, "pod/stop"),
        (Lie::StopDoesNothing, "pod/stop/cut-off"),
        (Lie::ResizeStops, "pod/resize/cut-off"),
        (Lie::StartDoesNothing, "pod/start"),
        (Lie::LeavesADisk, "pod/destroy"),
        (Lie::LeavesADisk, "pod/clean"),
        (Lie::DestroyDoesNothing, "pod/destroy"),
        (Lie::DestroyDoesNothing, "pod/destroy/cancelled"),
        (Lie::DestroyOfNothingFails, "pod/destroy/cancelled"),
        (Lie::DestroyOfNothingFails, "pod/destroy/deadline"),
        (Lie::DestroyDoesNothing, "pod/clean"),
        (Lie::RepeatsPages, "pod/list/pages"),
        (Lie::Panics, "pod/resize/same"),
        (Lie::Hangs, "pod/resize/same"),
    ] {
        let report = run(lie).await;
        let found = report.broken().any(|line| line.name == name);
        assert!(found, "{lie:?} is not found as {name}:\n{report}");
        assert!(!report.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_reads_well_for_people_and_machines() {
    let report = run(Lie::LosesTags).await;
    let text = report.to_string();
    assert!(text.contains("BROKEN  pod/create/accepted"), "{text}");
    assert!(text.lines().last().is_some_and(|line| line.contains(" kept, ")), "{text}");
    let json = report.to_json();
    let line = &json["lines"][0];
    assert_eq!(line["name"], "pod/describe/constant");
    assert_eq!(line["verdict"], "kept");
    assert_eq!(json["lines"].as_array().map(Vec::len), Some(report.lines.len()));
}

async fn run(lie: Lie) -> Report {
    let provider = Arc::new(Liar { lie, made: AtomicUsize::new(0), machines: Mutex::default() });
    let limits = Limits {
        call: Duration::from_secs(5),
        start: Duration::from_secs(2),
        settle: Duration::from_secs(2),
        check: Duration::from_secs(60),
    };
    let subject = PodSubject { limits, has_console_output: true, ..PodSubject::default() };
    PodSuite::new(provider, subject).run().await
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    None,
    PlansTooSmall,
    PlansTheImpossible,
    WrongKindForUnknownId,
    DestroyOfNothingFails,
    AnyPageToken,
    ClaimsQuota,
    TakesAnyUserData,
    TakesAnyType,
    TakesAnyNetwork,
    LosesTags,
    IgnoresTokens,
    IgnoresShapes,
    NeverRuns,
    ListsEverything,
    WrongAddress,
    EndlessReplay,
    FollowEnds,
    TakesAnyCheckpoint,
    LateIsInternal,
    ResizeStops,
    StopDoesNothing,
    StartDoesNothing,
    LeavesADisk,
    DestroyDoesNothing,
    RepeatsPages,
    Panics,
    Hangs,
}

struct Liar {
    lie: Lie,
    made: AtomicUsize,
    machines: Mutex<BTreeMap<String, (CreateRequest, Machine)>>,
}

impl Liar {
    fn tells(&self, lie: Lie) -> bool {
        self.lie == lie
    }

    /// Changes a machine, or answers that there is none.
    fn with<T>(&self, id: &str, change: impl FnOnce(&mut Machine) -> T) -> Result<T> {
        let mut machines = self.machines.lock().expect("not poisoned");
        let machine = machines.get_mut(id);
        machine.map(|(_, machine)| change(machine)).ok_or_else(|| {
            let message = format!("there is no machine {id:?}");
            if self.tells(Lie::WrongKindForUnknownId) {
                ProviderError::invalid(message)
            } else {
                ProviderError::not_found(message)
            }
        })
    }

    fn check(&self, request: &CreateRequest) -> Result<()> {
        if request.user_data.len() > USER_DATA_MAX && !self.tells(Lie::TakesAnyUserData) {
            return Err(ProviderError::invalid("too much user-data"));
        }
        let machine_type = request.machine_type.clone().unwrap_or_default();
        if machine_type.name != "small" && !self.tells(Lie::TakesAnyType) {
            return Err(ProviderError::invalid("no such type"));
        }
        let mode = request.network.clone().unwrap_or_default().address_mode();
        if mode != AddressMode::Local && !self.tells(Lie::TakesAnyNetwork) {
            return Err(ProviderError::unsupported("no such network"));
        }
        // It never wrote one.
        if !request.checkpoint.is_empty() && !self.tells(Lie::TakesAnyCheckpoint) {
            return Err(ProviderError::invalid("no such checkpoint"));
        }
        Ok(())
    }
}

const USER_DATA_MAX: usize = 1024;

#[async_trait]
impl PodProvider for Liar {
    async fn describe(&self, _: CallContext, _: DescribePodRequest) -> Result<PodCapabilities> {
        Ok(PodCapabilities {
            user_data_limit_bytes: USER_DATA_MAX as u64,
            console: true,
            stop_start: true,
            resize: true,
            tags: true,
            address_modes: vec![AddressMode::Local.into()],
            architectures: vec!["amd64".into()],
            sweep: true,
            checkpoint: true,
            quota: self.tells(Lie::ClaimsQuota),
            ..PodCapabilities::default()
        })
    }

    async fn plan(&self, _: CallContext, wish: PlanRequest) -> Result<PlanResponse> {
        let unknown = !["", "small"].contains(&wish.machine_type.as_str())
            || !["", "amd64"].contains(&wish.architecture.as_str());
        let large = wish.cpu_millis > 2000 || wish.memory_bytes > 1 << 32;
        if (unknown || large) && !self.tells(Lie::PlansTheImpossible) {
            return Err(ProviderError::invalid("nothing fits"));
        }
        let small = MachineType {
            name: "small".into(),
            cpu_millis: if self.tells(Lie::PlansTooSmall) { 100 } else { 2000 },
            memory_bytes: 1 << 32,
            architecture: "amd64".into(),
            ..MachineType::default()
        };
        Ok(PlanResponse { candidates: vec![small], why: "there is one type".into() })
    }

    async fn create(&self, _: CallContext, request: CreateRequest) -> Result<Machine> {
        self.check(&request)?;
        let mut machines = self.machines.lock().expect("not poisoned");
        let same = machines.values().find(|(made, _)| made.token == request.token);
        if let Some((made, machine)) = same
            && !self.tells(Lie::IgnoresTokens)
        {
            return if *made == request || self.tells(Lie::IgnoresShapes) {
                Ok(machine.clone())
            } else {
                Err(ProviderError::conflict("another shape"))
            };
        }
        let machine = Machine {
            id: format!("m{}", self.made.fetch_add(1, Ordering::Relaxed)),
            name: request.name.clone(),
            state: MachineState::Creating.into(),
            tags: if self.tells(Lie::LosesTags) { [].into() } else { request.tags.clone() },
            created_unix_ms: 1,
            machine_type: request.machine_type.clone(),
            ..Machine::default()
        };
        machines.insert(machine.id.clone(), (request, machine.clone()));
        Ok(machine)
    }

    async fn get(&self, ctx: CallContext, request: GetRequest) -> Result<Machine> {
        if ctx.remaining() == Some(Duration::ZERO) && self.tells(Lie::LateIsInternal) {
            return Err(ProviderError::internal("too late"));
        }
        self.with(&request.id, |machine| {
            if machine.state() == MachineState::Creating && !self.tells(Lie::NeverRuns) {
                machine.set_state(MachineState::Running);
            }
            machine.clone()
        })
    }

    async fn list(&self, _: CallContext, request: ListRequest) -> Result<ListResponse> {
        let machines = self.machines.lock().expect("not poisoned");
        let everything = self.tells(Lie::ListsEverything);
        let wanted = |made: &CreateRequest| {
            everything || request.tags.iter().all(|(key, value)| made.tags.get(key) == Some(value))
        };
        let all = machines.values().filter(|(made, _)| wanted(made)).map(|(_, machine)| machine);
        let from: usize = match request.page_token.as_str() {
            "" => 0,
            token => match token.parse() {
                Ok(from) => from,
                Err(_) if self.tells(Lie::AnyPageToken) => 0,
                Err(_) => return Err(ProviderError::invalid("no such page")),
            },
        };
        let size = if request.page_size == 0 { 100 } else { request.page_size as usize };
        let mut rest = all.skip(from);
        let page: Vec<Machine> = rest.by_ref().take(size).cloned().collect();
        let step = if self.tells(Lie::RepeatsPages) && size > 1 { size - 1 } else { size };
        let next = rest.next().map(|_| (from + step).to_string());
        Ok(ListResponse { machines: page, next_page_token: next.unwrap_or_default() })
    }

    async fn start(&self, _: CallContext, request: StartMachineRequest) -> Result<Empty> {
        self.with(&request.id, |machine| {
            if !self.tells(Lie::StartDoesNothing) {
                machine.set_state(MachineState::Running);
            }
            Empty {}
        })
    }

    async fn stop(&self, _: CallContext, request: StopMachineRequest) -> Result<Empty> {
        self.with(&request.id, |machine| {
            if !self.tells(Lie::StopDoesNothing) {
                machine.set_state(MachineState::Stopped);
            }
            Empty {}
        })
    }

    async fn destroy(&self, _: CallContext, request: DestroyRequest) -> Result<Empty> {
        let mut machines = self.machines.lock().expect("not poisoned");
        if self.tells(Lie::DestroyDoesNothing) {
            return Ok(Empty {});
        }
        if machines.remove(&request.id).is_none() && self.tells(Lie::DestroyOfNothingFails) {
            return Err(ProviderError::not_found("there is no such machine"));
        }
        Ok(Empty {})
    }

    async fn addresses(&self, _: CallContext, request: AddressesRequest) -> Result<Addresses> {
        let scheme = if self.tells(Lie::WrongAddress) { "http" } else { "tcp" };
        let agent = format!("{scheme}://127.0.0.1:1");
        self.with(&request.id, |_| Addresses { ips: vec!["10.0.0.1".into()], agent })
    }

    async fn resize(&self, _: CallContext, request: ResizeRequest) -> Result<Machine> {
        assert!(!self.tells(Lie::Panics), "a provider that panics");
        if self.tells(Lie::Hangs) {
            std::future::pending().await
        }
        self.with(&request.id, |machine| {
            if self.tells(Lie::ResizeStops) {
                machine.set_state(MachineState::Stopped);
            }
            machine.clone()
        })
    }

    async fn sweep(&self, _: CallContext, request: SweepRequest) -> Result<SweepResponse> {
        let disk = Leftover {
            kind: "disk".into(),
            id: "d1".into(),
            tags: request.tags,
            created_unix_ms: 0,
        };
        let leftovers = if self.tells(Lie::LeavesADisk) { vec![disk] } else { Vec::new() };
        Ok(SweepResponse { leftovers })
    }

    async fn console(
        &self,
        _: CallContext,
        request: ConsoleRequest,
    ) -> Result<BoxStream<ConsoleChunk>> {
        self.with(&request.id, |_| ())?;
        let limit = if self.tells(Lie::EndlessReplay) { 5000 } else { request.replay_bytes };
        let data = b"hello".iter().copied().cycle().take(limit.min(20_000) as usize).collect();
        let (sender, chunks) = stream::channel(1);
        sender.try_send(Ok(ConsoleChunk { data })).expect("the queue is empty");
        if request.follow && !self.tells(Lie::FollowEnds) {
            tokio::spawn(async move { sender.closed().await });
        }
        Ok(chunks)
    }
}
