//! The engine in a simulated world, one behaviour at a time.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use infranetes_core::engine::Engine;
use infranetes_core::error::{EngineError, FailureKind};
use infranetes_core::ids::SandboxId;
use infranetes_core::spec::{
    ContainerSpec, Dns, PidMode, PodIdentity, SandboxResources, SandboxSpec,
};
use infranetes_core::status::{ContainerState, Phase, SandboxStatus};
use infranetes_provider_fake::{
    Failure, FakeProvider, FaultAction, LeftoverView, Method, Outcome, Script, Span, When,
};
use infranetes_sdk::pod::{CreateRequest, MachineType};
use infranetes_sdk::{CallContext, ErrorKind, PodProvider};
use infranetes_tests::sim::{Scenario, World, plain_container};
use tokio::time::{Instant, sleep};

fn world(change: impl FnOnce(&mut Scenario)) -> World {
    let mut scenario = Scenario::calm(1);
    change(&mut scenario);
    World::new(scenario)
}

fn pod(name: &str) -> SandboxSpec {
    SandboxSpec {
        pod: PodIdentity {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            uid: format!("uid-{name}"),
            attempt: 0,
        },
        handler: String::new(),
        hostname: name.to_owned(),
        dns: Dns::default(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_directory: PathBuf::new(),
        resources: SandboxResources::default(),
        overhead: SandboxResources::default(),
        sysctls: BTreeMap::new(),
        pid_mode: PidMode::Container,
        ports: Vec::new(),
        users: None,
    }
}

async fn until(
    limit: Duration,
    engine: &Engine,
    id: &SandboxId,
    what: impl Fn(&SandboxStatus) -> bool,
) {
    let begin = Instant::now();
    while !engine.sandbox(id).is_some_and(|status| what(&status)) {
        assert!(begin.elapsed() < limit, "{:?}", engine.sandbox(id));
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_wish_joins_the_first() {
    let world = world(|_| {});
    let engine = world.start().await.unwrap();
    let (one, two) = tokio::join!(engine.run_sandbox(pod("web")), engine.run_sandbox(pod("web")));
    let id = one.unwrap();
    assert_eq!(two.unwrap(), id);
    assert_eq!(engine.run_sandbox(pod("web")).await.unwrap(), id);
    assert_eq!(world.cloud.created(), 1);
    let status = engine.sandbox(&id).unwrap();
    assert_eq!(status.phase, Phase::Ready);
    assert!(!status.ips.is_empty());
    let timeline = status.timeline;
    let steps =
        [timeline.wanted, timeline.allocated, timeline.booted, timeline.enrolled, timeline.ready];
    assert!(steps.iter().all(Option::is_some) && steps.is_sorted(), "{timeline:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_boot_is_said_to_go_on_and_the_next_wish_gets_it() {
    let world = world(|scenario| {
        scenario.script.delays = BTreeMap::from([(Method::Create, Span::millis(50_000))])
    });
    world.cloud.fail_next(Method::Create, FaultAction::Hang);
    world.cloud.fail_next(Method::Create, FaultAction::HangAfterEffect);
    world.cloud.fail_next(Method::Create, FaultAction::HangAfterEffect);
    world.cloud.fail_next(Method::Create, FaultAction::HangAfterEffect);
    let engine = world.start().await.unwrap();
    let begin = Instant::now();
    let error = engine.run_sandbox(pod("web")).await.unwrap_err();
    assert!(matches!(error, EngineError::StillRunning { .. }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(240), "the kubelet has given up");
    // It still boots: a kubelet that saw it would not join it.
    assert!(engine.sandboxes().iter().all(|status| !status.is_listed()));
    engine.run_sandbox(pod("web")).await.unwrap();
    assert_eq!(world.cloud.created(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_changes_nothing_is_not_asked_again() {
    for kind in
        [ErrorKind::Quota, ErrorKind::Invalid, ErrorKind::Credentials, ErrorKind::Unsupported]
    {
        let world = world(|_| {});
        let reason = Failure::new(kind, "the account has 5 of 5 machines");
        world.cloud.fail_next(Method::Create, FaultAction::Fail(reason));
        let engine = world.start().await.unwrap();
        let error = engine.run_sandbox(pod("web")).await.unwrap_err();
        assert_eq!(world.cloud.calls(Method::Create), 1, "{kind}");
        let text = error.report();
        assert!(text.contains("while its machine was created"), "{text}");
        assert!(text.contains("the account has 5 of 5 machines"), "{text}");
        assert!(text.contains("asking again starts over"), "{text}");
        let expected = match kind {
            ErrorKind::Quota => FailureKind::Exhausted,
            ErrorKind::Invalid => FailureKind::Invalid,
            ErrorKind::Credentials => FailureKind::Denied,
            _ => FailureKind::Unsupported,
        };
        assert_eq!(error.kind(), expected);
        // The kubelet asks again with the same attempt, and wins.
        engine.run_sandbox(pod("web")).await.unwrap();
        assert_eq!(world.cloud.alive(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_type_without_capacity_gives_way_to_the_next() {
    let world = world(|scenario| scenario.script.sold_out = vec!["f1-small".to_owned()]);
    let engine = world.start().await.unwrap();
    let id = engine.run_sandbox(pod("web")).await.unwrap();
    let machine = engine.sandbox(&id).unwrap().machine.unwrap();
    assert_ne!(machine.machine_type, "f1-small");
    assert_eq!(world.cloud.alive(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_never_runs_fails_with_phase_and_console_and_is_destroyed() {
    let world = world(|scenario| {
        scenario.script = Script::default().with_outcome(When::Nth(1), Outcome::NeverRuns);
    });
    let engine = world.start().await.unwrap();
    let run = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run_sandbox(pod("web")).await }
    });
    sleep(Duration::from_secs(5)).await;
    let machine = world.cloud.machines().remove(0);
    world.cloud.print(&machine.id, b"Kernel panic - not syncing: no init\n");
    let error = run.await.unwrap().unwrap_err();
    let text = error.report();
    assert!(text.contains("while its machine booted"), "{text}");
    assert!(text.contains("Kernel panic - not syncing: no init"), "{text}");
    assert!(text.contains("did not run within 120s"), "{text}");
    assert!(text.ends_with("no init"), "the console is not last: {text}");
    let id = engine.sandboxes()[0].id.clone();
    until(Duration::from_secs(60), &engine, &id, |_| world.cloud.alive() == 0).await;
    assert_eq!(engine.sandbox(&id).unwrap().phase, Phase::Failed);
    assert_eq!(engine.run_sandbox(pod("web")).await.unwrap(), id);
    assert_eq!((world.cloud.created(), world.cloud.alive()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_vanished_machine_makes_its_sandbox_fail_and_it_can_be_stopped_and_removed() {
    let world = world(|_| {});
    let engine = world.start().await.unwrap();
    let id = engine.run_sandbox(pod("web")).await.unwrap();
    let machine = engine.sandbox(&id).unwrap().machine.unwrap();
    assert!(world.cloud.vanish(&machine.id.0));
    until(Duration::from_secs(90), &engine, &id, |status| status.phase == Phase::Failed).await;
    assert!(engine.sandbox(&id).unwrap().reason.contains("vanished"));
    // Its containers may have run: it never starts over.
    let error = engine.run_sandbox(pod("web")).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::WrongState, "{error}");
    engine.stop_sandbox(&id).await.unwrap();
    engine.remove_sandbox(&id).await.unwrap();
    assert!(engine.sandbox(&id).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_outlives_its_agents_first_certificate_is_met_again() {
    let hour = Duration::from_secs(3600);
    let world = world(|scenario| scenario.certificate_life = hour);
    let engine = world.start().await.unwrap();
    let id = engine.run_sandbox(pod("web")).await.unwrap();
    // Renewals that fail are tried again, and the session goes on meanwhile.
    world.fleet.refuse_renewals(5);
    for _ in 0..10 * 60 {
        sleep(hour / 60).await;
        assert_eq!(engine.sandbox(&id).unwrap().phase, Phase::Ready);
        assert_eq!(world.fleet.connections(), 1, "the session broke");
    }
    assert_eq!(world.fleet.renewals_to_refuse(), 0);
    world.fleet.cut_all();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.fleet.connections(), 2);
    // The node's next process has it, too.
    engine.abort();
    let engine = world.start().await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.fleet.connections(), 3);
    assert_eq!(engine.sandbox(&id).unwrap().reason, "");
}

#[tokio::test(start_paused = true)]
async fn a_containers_steps_are_told_by_the_nodes_clock_in_their_order() {
    // The agents of this world live in 1970.
    let world = world(|_| {});
    let engine = world.start().await.unwrap();
    let sandbox = engine.run_sandbox(pod("web")).await.unwrap();
    let id = engine.create_container(&sandbox, plain_container()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    engine.start_container(&id).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    engine.stop_container(&id, Duration::from_secs(1)).await.unwrap();
    let status = engine.container(&id).unwrap();
    let steps = [
        status.wanted_at.unwrap(),
        status.image_ready_at.unwrap(),
        status.created_at,
        status.started_at.unwrap(),
        status.finished_at.unwrap(),
    ];
    assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
    assert!(steps[4].duration_since(steps[0]).unwrap() < Duration::from_secs(5), "{steps:?}");

    // What happened while no engine lived happened after what is known, and before now.
    let spec = ContainerSpec { attempt: 1, ..plain_container() };
    let unseen = engine.create_container(&sandbox, spec).await.unwrap();
    engine.start_container(&unseen).await.unwrap();
    engine.abort();
    world.fleet.end_all();
    let engine = world.start().await.unwrap();
    assert_eq!(engine.container(&id).unwrap().wanted_at, status.wanted_at);
    let begin = Instant::now();
    let status = loop {
        let status = engine.container(&unseen).unwrap();
        if status.state == ContainerState::Exited {
            break status;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{status:?}");
        sleep(Duration::from_millis(100)).await;
    };
    assert!(status.started_at.unwrap() > status.created_at, "{status:?}");
    assert_eq!(status.finished_at, status.started_at);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_agreed_to_power_off_is_left_at_once_and_its_last_word_counts() {
    let world = world(|_| {});
    let engine = world.start().await.unwrap();
    let sandbox = engine.run_sandbox(pod("web")).await.unwrap();
    let id = engine.create_container(&sandbox, plain_container()).await.unwrap();
    engine.start_container(&id).await.unwrap();
    assert_eq!(world.fleet.open_sessions(), 1);
    world.cloud.fail_next(Method::Destroy, FaultAction::Hang);
    let stop = tokio::spawn({
        let (engine, sandbox) = (engine.clone(), sandbox.clone());
        async move { engine.stop_sandbox(&sandbox).await }
    });
    let begin = Instant::now();
    while world.cloud.calls(Method::Destroy) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing is destroyed");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.fleet.open_sessions(), 0);
    assert_eq!(world.cloud.machines().len(), 1, "it was left because it is gone");
    let container = engine.container(&id).unwrap();
    assert_eq!((container.state, container.exit_code), (ContainerState::Exited, 143));
    stop.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_orphans_that_are_surely_ours_are_destroyed_and_not_in_a_hurry() {
    let world = world(|_| {});
    let provider = FakeProvider::new(world.cloud.clone(), world.scenario.script.clone());
    let plant = async |name: &str, node: &str| {
        let tags = [
            ("infranetes-cluster", "sim"),
            ("infranetes-node", node),
            ("infranetes-sandbox", "0123456789abcdef0123456789abcdef"),
        ];
        let request = CreateRequest {
            token: name.to_owned(),
            name: name.to_owned(),
            machine_type: Some(MachineType { name: "f1-small".to_owned(), ..Default::default() }),
            tags: tags
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into_iter()
                .collect::<HashMap<_, _>>(),
            ..Default::default()
        };
        provider.create(CallContext::new(""), request).await.unwrap();
    };
    plant("older-than-the-record", "node-1").await;
    sleep(Duration::from_secs(5)).await;
    let engine = world.start().await.unwrap();
    engine.run_sandbox(pod("web")).await.unwrap();
    plant("orphan", "node-1").await;
    plant("of-another-node", "node-2").await;
    let names = || -> Vec<String> { world.cloud.machines().into_iter().map(|m| m.name).collect() };
    sleep(Duration::from_secs(9 * 60)).await;
    assert!(names().contains(&"orphan".to_owned()), "too early");
    sleep(Duration::from_secs(10 * 60)).await;
    let left = names();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(!left.contains(&"orphan".to_owned()), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_machines_is_destroyed_where_no_sandbox_takes_care_of_it() {
    let world = world(|_| {});
    sleep(Duration::from_secs(5)).await;
    let engine = world.start().await.unwrap();
    let web = engine.run_sandbox(pod("web")).await.unwrap();
    // The cloud's clock began with its first call, after the record did.
    let now = world.cloud.machines()[0].created_unix_ms + 60_000;
    let stranger = "0123456789abcdef0123456789abcdef";
    let leave = |id: &str, node: &str, sandbox: &str, created_unix_ms: u64| {
        let mut tags = BTreeMap::from([
            ("infranetes-cluster".to_owned(), "sim".to_owned()),
            ("infranetes-node".to_owned(), node.to_owned()),
        ]);
        if !sandbox.is_empty() {
            tags.insert("infranetes-sandbox".to_owned(), sandbox.to_owned());
        }
        let (kind, id) = ("disk".to_owned(), id.to_owned());
        world.cloud.leave_behind(LeftoverView { kind, id, tags, created_unix_ms });
    };
    leave("ours", "node-1", stranger, now);
    leave("of-another-node", "node-2", stranger, now);
    leave("of-a-sandbox-that-is", "node-1", &web.as_str()[..32], now);
    leave("of-no-sandbox", "node-1", "", now);
    leave("older-than-the-record", "node-1", stranger, 1);
    leave("of-unknown-age", "node-1", stranger, 0);
    let left =
        || -> Vec<String> { world.cloud.leftovers().into_iter().map(|left| left.id).collect() };
    sleep(Duration::from_secs(9 * 60)).await;
    assert_eq!(left().len(), 6, "too early: {:?}", left());
    sleep(Duration::from_secs(10 * 60)).await;
    let there = left();
    assert_eq!(there.len(), 5, "{there:?}");
    assert!(!there.contains(&"ours".to_owned()), "{there:?}");
    // With its sandbox goes the last one who could have done it.
    engine.remove_sandbox(&web).await.unwrap();
    sleep(Duration::from_secs(15 * 60)).await;
    assert!(!left().contains(&"of-a-sandbox-that-is".to_owned()), "{:?}", left());
}
