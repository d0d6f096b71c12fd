//! What a scripted cloud does, under paused time.

use std::time::Duration;

use infranetes_provider_fake::{
    Behaviour, Failure, FakeCloud, FakeProvider, FaultAction, Feature, Method, Outcome, Phase,
    QuotaLimits, Script, Span, Throttle, Tokens, When,
};
use infranetes_sdk::pod::{
    ConsoleRequest, CreateRequest, DestroyRequest, EventsRequest, GetRequest, ListRequest, Machine,
    MachineEventKind, MachineState, MachineType, PlanRequest, StopMachineRequest, SweepRequest,
};
use infranetes_sdk::{CallContext, ErrorKind, PodProvider, Result, RetryAdvice, StreamExt};
use tokio::time::{Instant, advance};

struct World {
    cloud: FakeCloud,
    provider: FakeProvider,
}

impl World {
    fn new(script: Script) -> Self {
        let cloud = FakeCloud::new(7);
        Self { provider: FakeProvider::new(cloud.clone(), script), cloud }
    }

    async fn create(&self, name: &str) -> Result<Machine> {
        self.provider.create(CallContext::new(name), request(name)).await
    }

    async fn get(&self, id: &str) -> Result<Machine> {
        self.provider.get(CallContext::new("get"), GetRequest { id: id.to_owned() }).await
    }

    async fn names(&self) -> Vec<String> {
        let all = self.provider.list(CallContext::new("list"), ListRequest::default()).await;
        all.expect("a list").machines.into_iter().map(|machine| machine.name).collect()
    }

    async fn destroy(&self, id: &str) {
        let request = DestroyRequest { id: id.to_owned() };
        self.provider.destroy(CallContext::new("destroy"), request).await.expect("destroyed");
    }
}

fn request(name: &str) -> CreateRequest {
    CreateRequest {
        token: format!("token-of-{name}"),
        name: name.to_owned(),
        machine_type: Some(MachineType { name: "f1-small".to_owned(), ..Default::default() }),
        user_data: b"hello".to_vec(),
        tags: [("sandbox".to_owned(), name.to_owned())].into(),
        ..Default::default()
    }
}

fn machines(behaviour: Behaviour) -> Script {
    Script { machines: behaviour, ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn a_machine_boots_in_its_time_and_goes_in_its_time() {
    let world = World::new(machines(Behaviour {
        boot: Span::millis(2000),
        destroy: Span::millis(700),
        ..Default::default()
    }));
    let machine = world.create("a").await.expect("created");
    assert_eq!(machine.state(), MachineState::Creating);
    assert!(machine.addresses.expect("addresses").agent.is_empty());
    advance(Duration::from_millis(1999)).await;
    assert_eq!(world.get(&machine.id).await.expect("there").state(), MachineState::Creating);
    advance(Duration::from_millis(1)).await;
    let running = world.get(&machine.id).await.expect("there");
    assert_eq!(running.state(), MachineState::Running);
    assert_eq!(running.addresses.expect("addresses").agent, "tcp://10.64.0.1:7777");

    let start = Instant::now();
    world.destroy(&machine.id).await;
    assert_eq!(start.elapsed(), Duration::from_millis(700));
    assert_eq!(world.get(&machine.id).await.expect_err("gone").kind, ErrorKind::NotFound);
    world.destroy(&machine.id).await;
    assert_eq!((world.cloud.alive(), world.cloud.created()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_cloud_outlives_its_providers() {
    let world = World::new(machines(Behaviour { boot: Span::millis(50), ..Default::default() }));
    let machine = world.create("a").await.expect("created");
    let World { cloud, provider } = world;
    drop(provider);
    advance(Duration::from_secs(1)).await;
    let world = World { provider: FakeProvider::new(cloud.clone(), Script::default()), cloud };
    assert_eq!(world.get(&machine.id).await.expect("there").state(), MachineState::Running);
    assert_eq!(world.create("a").await.expect("the same").id, machine.id);
    assert_eq!(world.cloud.created(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_nth_call_fails_as_scripted_and_only_that() {
    let failure = Failure {
        retry_after_ms: Some(500),
        provider_code: "SlowDown".to_owned(),
        ..Failure::new(ErrorKind::Throttled, "slow down")
    };
    let script =
        Script::default().with_fault(Method::Create, When::Nth(2), FaultAction::Fail(failure));
    let world = World::new(script);
    world.create("a").await.expect("the first");
    let error = world.create("b").await.expect_err("the second");
    assert_eq!(error.kind, ErrorKind::Throttled);
    assert_eq!(error.retry, RetryAdvice::After(Duration::from_millis(500)));
    assert_eq!(error.provider_code, "SlowDown");
    world.create("b").await.expect("the third");
    assert_eq!((world.cloud.created(), world.cloud.calls(Method::Create)), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_leaves_a_machine_that_the_token_finds() {
    let world = World::new(Script::default());
    world.cloud.fail_next(Method::Create, FaultAction::LoseAnswer);
    assert_eq!(world.create("a").await.expect_err("lost").kind, ErrorKind::Transient);
    assert_eq!(world.cloud.alive(), 1);
    world.create("a").await.expect("found");
    assert_eq!(world.cloud.alive_by_tag("sandbox").get("a"), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_at_its_deadline() {
    for (action, made) in [(FaultAction::Hang, 0), (FaultAction::HangAfterEffect, 1)] {
        let world = World::new(Script::default());
        world.cloud.fail_next(Method::Create, action);
        let ctx = CallContext::new("a").with_timeout(Duration::from_secs(5));
        let error = world.provider.create(ctx, request("a")).await.expect_err("too late");
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        assert_eq!(world.cloud.alive(), made);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_cut_off_early_did_nothing_and_late_did_everything() {
    for (cut_ms, made) in [(400, 0), (600, 1)] {
        let world = World::new(Script { delay: Span::millis(1000), ..Default::default() });
        let cut = Duration::from_millis(cut_ms);
        tokio::time::timeout(cut, world.create("a")).await.expect_err("cut off");
        advance(Duration::from_secs(10)).await;
        assert_eq!(world.cloud.alive(), made, "cut off after {cut_ms} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_machine_hides_and_a_gone_one_lingers() {
    let world = World::new(machines(Behaviour {
        hidden: Span::millis(300),
        lingers: Span::millis(300),
        ..Default::default()
    }));
    let id = world.create("a").await.expect("created").id;
    assert!(world.names().await.is_empty());
    assert_eq!(world.get(&id).await.expect_err("hidden").kind, ErrorKind::NotFound);
    assert_eq!(world.create("a").await.expect("tokens do not lag").id, id);
    advance(Duration::from_millis(300)).await;
    assert_eq!(world.names().await, ["a"]);
    world.destroy(&id).await;
    assert_eq!(world.cloud.alive(), 0);
    assert_eq!(world.get(&id).await.expect("lingers").state(), MachineState::Destroying);
    advance(Duration::from_millis(300)).await;
    assert!(world.names().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cloud_without_tokens_makes_two_machines_when_its_listing_lags() {
    for (tokens, hidden_ms, expected) in [
        (Tokens::Native, 300, 1),
        (Tokens::ListFirst, 0, 1),
        (Tokens::ListFirst, 300, 2),
        (Tokens::Ignored, 0, 2),
    ] {
        let hidden = Span::millis(hidden_ms);
        let script = Script { tokens, ..machines(Behaviour { hidden, ..Default::default() }) };
        let world = World::new(script);
        world.create("a").await.expect("the first");
        world.create("a").await.expect("the second");
        assert_eq!(world.cloud.alive(), expected, "{tokens:?}, hidden {hidden_ms} ms");
        assert_eq!(world.cloud.created_with_name("a"), expected as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn machines_come_out_as_scripted() {
    let after = Span::millis(100);
    let failure = Failure::new(ErrorKind::Capacity, "no host for it");
    let script = machines(Behaviour { boot: Span::millis(50), ..Default::default() })
        .with_outcome(When::Nth(1), Outcome::Fails { after, failure })
        .with_outcome(When::Nth(2), Outcome::NeverRuns)
        .with_outcome(When::Nth(3), Outcome::Vanishes { after })
        .with_outcome(When::Nth(4), Outcome::PowersOff { after });
    let world = World::new(script);
    for name in ["fails", "never-runs", "vanishes", "powers-off", "fine"] {
        world.create(name).await.expect("accepted");
    }
    advance(Duration::from_secs(3600)).await;
    let phases: Vec<_> =
        world.cloud.machines().into_iter().map(|machine| (machine.name, machine.phase)).collect();
    let expected = [
        ("fails", Phase::Failed),
        ("never-runs", Phase::Creating),
        ("powers-off", Phase::Stopped),
        ("fine", Phase::Running),
    ];
    assert_eq!(phases, expected.map(|(name, phase)| (name.to_owned(), phase)));
    let failed = world.get("fake-00000001").await.expect("still there");
    let failure = failed.failure.expect("a reason");
    assert_eq!(ErrorKind::from(failure.kind()), ErrorKind::Capacity);
    assert_eq!(failure.message, "no host for it");
}

#[tokio::test(start_paused = true)]
async fn events_tell_what_happened_and_when() {
    let script = Script::default().with_outcome(
        When::Nth(1),
        Outcome::Preempted { after: Span::millis(100), notice: Span::millis(30) },
    );
    let world = World::new(script);
    let mut events = world
        .provider
        .events(CallContext::new("events"), EventsRequest {})
        .await
        .expect("a stream");
    let start = Instant::now();
    world.create("a").await.expect("created");
    let other = world.create("b").await.expect("created");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let event = events.next().await.expect("an event").expect("no error");
        seen.push((event.machine_id.clone(), event.kind(), start.elapsed().as_millis()));
    }
    world.cloud.vanish(&other.id);
    let event = events.next().await.expect("an event").expect("no error");
    seen.push((event.machine_id.clone(), event.kind(), start.elapsed().as_millis()));
    let first = "fake-00000001".to_owned();
    assert_eq!(
        seen,
        [
            (first.clone(), MachineEventKind::PreemptedSoon, 100),
            (first, MachineEventKind::Gone, 130),
            (other.id, MachineEventKind::Gone, 130),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_console_replays_follows_and_ends_with_its_machine() {
    let world = World::new(machines(Behaviour { boot: Span::millis(50), ..Default::default() }));
    let id = world.create("a").await.expect("created").id;
    let open = |replay_bytes, follow| {
        let request = ConsoleRequest { id: id.clone(), replay_bytes, follow };
        world.provider.console(CallContext::new("console"), request)
    };
    let replay: Vec<_> = open(4, false).await.expect("a console").collect().await;
    assert_eq!(replay.len(), 1);
    assert_eq!(replay[0].as_ref().expect("a chunk").data, b"ted\n");
    let mut follow = open(0, true).await.expect("a console");
    let chunk = follow.next().await.expect("a chunk").expect("no error");
    assert_eq!(chunk.data, b"a is up\n");
    world.destroy(&id).await;
    assert!(follow.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn limits_answer_with_their_kinds() {
    let quota = QuotaLimits { machines: Some(1), ..Default::default() };
    let world = World::new(Script { quota, ..Default::default() });
    world.create("a").await.expect("the first");
    assert_eq!(world.create("b").await.expect_err("full").kind, ErrorKind::Quota);

    let world = World::new(Script { sold_out: vec!["f1-small".to_owned()], ..Default::default() });
    assert_eq!(world.create("a").await.expect_err("sold out").kind, ErrorKind::Capacity);

    let throttle = Throttle { calls: 2, refill_ms: 1000 };
    let world = World::new(Script { throttle: Some(throttle), ..Default::default() });
    assert!(world.names().await.is_empty());
    assert!(world.names().await.is_empty());
    let error = world.create("a").await.expect_err("too many");
    assert_eq!(error.kind, ErrorKind::Throttled);
    let RetryAdvice::After(pause) = error.retry else { panic!("no retry time: {error:?}") };
    advance(pause).await;
    world.create("a").await.expect("in time");
}

#[tokio::test(start_paused = true)]
async fn a_disk_left_behind_shows_in_sweep_until_it_is_destroyed() {
    let world = World::new(Script::default().with_outcome(When::Always, Outcome::LeavesDisk));
    let id = world.create("a").await.expect("created").id;
    let sweep = || async {
        let request = SweepRequest { tags: [("sandbox".to_owned(), "a".to_owned())].into() };
        let answer = world.provider.sweep(CallContext::new("sweep"), request).await;
        answer.expect("swept").leftovers
    };
    assert!(sweep().await.is_empty());
    world.destroy(&id).await;
    let left = sweep().await;
    assert_eq!((left.len(), left[0].kind.as_str()), (1, "disk"));
    world.destroy(&left[0].id).await;
    assert!(sweep().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_waits_for_the_guest_or_cuts_the_power() {
    let script = machines(Behaviour { stop: Span::millis(400), ..Default::default() })
        .with_outcome(When::Nth(2), Outcome::IgnoresStop);
    let world = World::new(script);
    for (name, grace_ms, expected_ms) in [("a", 5000, 400), ("b", 5000, 5000), ("c", 100, 100)] {
        let id = world.create(name).await.expect("created").id;
        let start = Instant::now();
        let request = StopMachineRequest { id: id.clone(), grace_ms };
        world.provider.stop(CallContext::new("stop"), request).await.expect("stopped");
        assert_eq!(start.elapsed().as_millis(), expected_ms, "{name}");
        assert_eq!(world.get(&id).await.expect("there").state(), MachineState::Stopped);
    }
}

#[tokio::test(start_paused = true)]
async fn a_plan_is_the_cheapest_that_fits_and_says_why() {
    let world = World::new(Script::default());
    let plan = |request| world.provider.plan(CallContext::new("plan"), request);
    for (request, best) in [
        (PlanRequest::default(), "f1-small"),
        (PlanRequest { memory_bytes: 2 << 30, ..Default::default() }, "f2-arm"),
        (
            PlanRequest {
                memory_bytes: 2 << 30,
                architecture: "amd64".to_owned(),
                ..Default::default()
            },
            "f1-medium",
        ),
        (PlanRequest { gpus: 1, ..Default::default() }, "f3-gpu"),
        (PlanRequest { machine_type: "f1-huge".to_owned(), ..Default::default() }, "f1-huge"),
    ] {
        let answer = plan(request.clone()).await.expect("a plan");
        assert_eq!(answer.candidates[0].name, best, "{request:?}");
        assert!(answer.why.contains(best), "{}", answer.why);
    }
    for refused in [
        PlanRequest { memory_bytes: 1 << 60, ..Default::default() },
        PlanRequest { architecture: "s390x".to_owned(), ..Default::default() },
        PlanRequest { machine_type: "m9".to_owned(), ..Default::default() },
        PlanRequest { zones: vec!["zone-z".to_owned()], ..Default::default() },
        PlanRequest {
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        },
    ] {
        assert_eq!(plan(refused).await.expect_err("refused").kind, ErrorKind::Invalid);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_cloud_lacks_is_denied_and_unsupported() {
    let world = World::new(Script { without: vec![Feature::Sweep], ..Default::default() });
    let said = world.provider.describe(CallContext::new("d"), Default::default()).await;
    assert!(!said.expect("described").sweep);
    let answer = world.provider.sweep(CallContext::new("s"), SweepRequest::default()).await;
    assert_eq!(answer.expect_err("denied").kind, ErrorKind::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn one_seed_gives_one_history() {
    async fn run(seed: u64) -> Vec<infranetes_provider_fake::CallRecord> {
        let mut script = machines(Behaviour {
            boot: Span::between(10, 5000),
            hidden: Span::between(0, 500),
            ..Default::default()
        })
        .with_outcome(When::Percent(30), Outcome::Vanishes { after: Span::between(0, 3000) })
        .with_fault(Method::Create, When::Percent(20), FaultAction::LoseAnswer)
        .with_fault(
            Method::Get,
            When::Percent(20),
            FaultAction::Fail(Failure::new(ErrorKind::Transient, "no luck")),
        );
        script.delay = Span::between(1, 200);
        let cloud = FakeCloud::new(seed);
        let world = World { provider: FakeProvider::new(cloud.clone(), script), cloud };
        for number in 0..30 {
            if let Ok(machine) = world.create(&format!("m{number}")).await {
                let _ = world.get(&machine.id).await;
            }
        }
        world.cloud.journal()
    }
    assert_eq!(run(1).await, run(1).await);
    assert_ne!(run(1).await, run(2).await);
}
