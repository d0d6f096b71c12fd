//! A pod that asks for another size while it runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use infranetes_core::engine::Engine;
use infranetes_core::error::EngineError;
use infranetes_core::spec::{Dns, PidMode, PodIdentity, SandboxResources, SandboxSpec};
use infranetes_provider_fake::{Failure, FaultAction, Feature, Method};
use infranetes_sdk::ErrorKind;
use infranetes_tests::sim::{Scenario, World};

const LARGER: SandboxResources = SandboxResources { cpu_millis: 3000, memory_bytes: 3 << 30 };

fn pod() -> SandboxSpec {
    SandboxSpec {
        pod: PodIdentity {
            name: "web".to_owned(),
            namespace: "default".to_owned(),
            uid: "uid-web".to_owned(),
            attempt: 0,
        },
        handler: String::new(),
        hostname: "web".to_owned(),
        dns: Dns::default(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_directory: PathBuf::new(),
        resources: SandboxResources { cpu_millis: 500, memory_bytes: 1 << 28 },
        overhead: SandboxResources::default(),
        sysctls: BTreeMap::new(),
        pid_mode: PidMode::Container,
        ports: Vec::new(),
        users: None,
    }
}

fn machine_has(world: &World) -> (u64, u64) {
    let machines = world.cloud.machines();
    (machines[0].machine_type.cpu_millis, machines[0].machine_type.memory_bytes)
}

/// What the pod asks for now is shown, also by the engine after a crash.
async fn is_recorded(world: &World, engine: Engine, id: &infranetes_core::ids::SandboxId) {
    assert_eq!(engine.sandbox(id).map(|one| one.spec.resources), Some(LARGER));
    engine.abort();
    let next = world.start().await.expect("the record is whole");
    assert_eq!(next.sandbox(id).map(|one| one.spec.resources), Some(LARGER));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_can_grow_does() {
    let world = World::new(Scenario::calm(1));
    let engine = world.start().await.unwrap();
    let id = engine.run_sandbox(pod()).await.unwrap();
    let before = machine_has(&world);
    assert!(before.0 < LARGER.cpu_millis, "{before:?}");
    assert!(engine.resize_sandbox(&id, Some(LARGER), None).await.unwrap());
    let after = machine_has(&world);
    assert!(after.0 >= LARGER.cpu_millis && after.1 >= LARGER.memory_bytes, "{after:?}");
    is_recorded(&world, engine, &id).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_stays_and_the_wish_is_recorded() {
    let mut scenario = Scenario::calm(1);
    scenario.script.without = vec![Feature::Resize];
    let world = World::new(scenario);
    let engine = world.start().await.unwrap();
    let id = engine.run_sandbox(pod()).await.unwrap();
    let before = machine_has(&world);
    assert!(!engine.resize_sandbox(&id, Some(LARGER), None).await.unwrap());
    assert_eq!(machine_has(&world), before);
    is_recorded(&world, engine, &id).await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_refuses_is_told_as_it_is() {
    let world = World::new(Scenario::calm(1));
    let engine = world.start().await.unwrap();
    let id = engine.run_sandbox(pod()).await.unwrap();
    let reason = Failure::new(ErrorKind::Quota, "the account has 2 of 2 CPUs");
    world.cloud.fail_next(Method::Resize, FaultAction::Fail(reason));
    let error = engine.resize_sandbox(&id, Some(LARGER), None).await.unwrap_err();
    assert!(matches!(error, EngineError::Provider { .. }), "{error:?}");
    assert!(error.report().contains("2 of 2 CPUs"), "{}", error.report());
}
