//! What happens to machines when daemons, agents and nodes do not behave. Needs root.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use infranetes_provider_process::ProcessProvider;
use infranetes_sdk::pod::{
    AddressesRequest, ConsoleRequest, EventsRequest, ListRequest, Machine, MachineEventKind,
    MachineState, QuotaRequest, StartMachineRequest, StopMachineRequest,
};
use infranetes_sdk::{ErrorKind, PodProvider, StreamExt};
use serde_json::Value;
use support::{World, ctx, hierarchies, kill};
use tokio::net::UnixStream;
use tokio::time::timeout;

#[tokio::test]
async fn a_machine_runs_on_when_the_daemon_is_replaced() {
    let world = World::new().await;
    let machine = world.run("web").await;
    let before = world.processes();
    assert_eq!(before.len(), 2, "a keeper and an agent");
    let world = world.restarted().await.restarted().await;
    assert_eq!(world.get(&machine.id).await, machine);
    assert_eq!(world.processes(), before);
    answers(&world, &machine.id).await;
    stop(&world, &machine.id, 30_000).await;
    let stopped = world.get(&machine.id).await;
    assert_eq!((stopped.state(), stopped.failure), (MachineState::Stopped, None));

    // Off, it stays off, and boots again.
    let world = world.restarted().await;
    assert_eq!(world.get(&machine.id).await.state(), MachineState::Stopped);
    let request = StartMachineRequest { id: machine.id.clone() };
    world.provider.start(ctx(), request).await.expect("started");
    assert_eq!(world.get(&machine.id).await.state(), MachineState::Running);
    answers(&world, &machine.id).await;
    world.destroy(&machine.id).await;
    world.assert_clean();
}

#[tokio::test]
async fn what_a_machine_does_is_behind_its_own_walls() {
    let world = World::new().await;
    let machine = world.run("web").await;
    let dir = world.machine_dir(&machine.id);
    let token = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    assert!(!dir.join("user-data.boot").exists(), "the agent's copy is still there");
    assert!(!world.console(&machine.id).await.contains(token));
    for name in ["", "user-data", "machine.json", "console.log", "agent.sock", "state"] {
        use std::os::unix::fs::PermissionsExt;
        let meta = fs::metadata(dir.join(name)).expect("there");
        assert_eq!(meta.permissions().mode() & 0o077, 0, "{name} is open to others");
    }
    let [keeper, agent] = pids(&world, &machine.id);
    for kind in ["pid", "mnt", "uts", "ipc", "net"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
        assert_ne!(of("self"), of(&agent.to_string()), "the {kind} namespace is the node's");
    }
    let environment = fs::read_to_string(format!("/proc/{keeper}/environ")).expect("read");
    assert!(!environment.contains("CARGO"), "the daemon's environment came along");
    for pid in [keeper, agent] {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("read");
        let own = format!("/{}/", world.config.cgroup);
        assert!(cgroups.contains(&own), "{cgroups}");
    }
    let settings = fs::read(dir.join("plugins/oci.json")).expect("read");
    let settings: Value = serde_json::from_slice(&settings).expect("JSON");
    assert_eq!(settings["run"], dir.join("run").display().to_string());
    assert!(
        settings["cgroup_parent"]
            .as_str()
            .expect("text")
            .ends_with(&format!("-{}/pod", machine.id))
    );
    world.destroy(&machine.id).await;
    world.assert_clean();
}

#[tokio::test]
async fn a_killed_keeper_or_agent_fails_the_machine_and_leaves_nothing_running() {
    let world = World::new().await;
    let mut events = world.provider.events(ctx(), EventsRequest {}).await.expect("events");
    for (victim, name) in [(0, "keeper"), (1, "agent")] {
        let machine = world.run(name).await;
        let stray = stray_process(&world, &machine.id);
        kill(pids(&world, &machine.id)[victim]);
        let failed = world.wait_for(&machine.id, MachineState::Failed).await;
        let failure = failed.failure.expect("a reason");
        assert!(failure.message.contains("signal 9"), "{failure:?}");
        assert!(failure.message.contains("it said last: "), "{failure:?}");
        assert!(failed.addresses.unwrap_or_default().agent.is_empty());
        assert_eq!(world.processes(), Vec::<i32>::new(), "after the end of the {name}");
        assert_gone(stray);
        assert_eq!(world.cgroups(), Vec::<PathBuf>::new());
        let event = timeout(Duration::from_secs(10), events.next()).await.expect("in time");
        let event = event.expect("an event").expect("no error");
        assert_eq!((event.kind(), &event.machine_id), (MachineEventKind::Gone, &machine.id));
        world.destroy(&machine.id).await;
        events.next().await.expect("of the destroyed machine").expect("no error");
    }
    world.assert_clean();
}

#[tokio::test]
async fn an_adopted_machine_that_ends_is_noticed_too() {
    let world = World::new().await;
    let machine = world.run("web").await;
    let world = world.restarted().await;
    kill(pids(&world, &machine.id)[1]);
    let failed = world.wait_for(&machine.id, MachineState::Failed).await;
    let message = failed.failure.expect("a reason").message;
    assert!(message.contains("earlier daemon") && message.contains("said last"), "{message}");
    world.destroy(&machine.id).await;
    world.assert_clean();
}

#[tokio::test]
async fn a_machine_that_ended_without_a_daemon_is_found_dead() {
    let world = World::new().await;
    let machine = world.run("web").await;
    let [keeper, _] = pids(&world, &machine.id);
    let World { dir, config, provider } = world;
    drop(provider);
    kill(keeper);
    let provider = ProcessProvider::open(config.clone(), &dir.path().join("run")).await;
    let world = World { dir, config, provider: provider.expect("a provider") };
    let failed = world.wait_for(&machine.id, MachineState::Failed).await;
    let message = failed.failure.expect("a reason").message;
    assert!(message.contains("no daemon watched"), "{message}");
    assert_eq!(world.processes(), Vec::<i32>::new());
    world.destroy(&machine.id).await;
    world.assert_clean();
}

#[tokio::test]
async fn a_machine_whose_daemon_died_before_it_ran_is_started_by_the_next() {
    let world = World::new().await;
    let machine = world.run("web").await;
    let [keeper, _] = pids(&world, &machine.id);
    let path = world.machine_dir(&machine.id).join("machine.json");
    let World { dir, config, provider } = world;
    drop(provider);
    kill(keeper);
    let mut record: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    // Written, and nothing started; then: started, and not yet told to become an agent.
    for keeper in [Value::Null, record["keeper"].clone()] {
        record["keeper"] = keeper;
        record["agent"] = Value::Null;
        fs::write(&path, record.to_string()).expect("written");
        let run = dir.path().join("run");
        let provider = ProcessProvider::open(config.clone(), &run).await.expect("a provider");
        let request = infranetes_sdk::pod::GetRequest { id: machine.id.clone() };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        let running = loop {
            let found = provider.get(ctx(), request.clone()).await.expect("there");
            if found.state() == MachineState::Running {
                break found;
            }
            assert!(tokio::time::Instant::now() < deadline, "{found:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(running, machine);
        drop(provider);
        let now: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        kill(i32::try_from(now["keeper"]["pid"].as_i64().expect("a number")).expect("a number"));
    }
    let run = dir.path().join("run");
    let provider = ProcessProvider::open(config.clone(), &run).await.expect("a provider");
    let world = World { dir, config, provider };
    world.destroy(&machine.id).await;
    world.assert_clean();
}

#[tokio::test]
async fn an_agent_that_dies_at_once_leaves_its_last_words() {
    let world = World::new().await;
    let mut request = world.request("web").await;
    request.user_data = b"no invitation".to_vec();
    let machine = world.provider.create(ctx(), request).await.expect("accepted");
    let failed = world.wait_for(&machine.id, MachineState::Failed).await;
    let message = failed.failure.expect("a reason").message;
    assert!(message.contains("status 1 before it listened"), "{message}");
    assert!(message.contains("the user-data is no invitation"), "{message}");
    let request = StartMachineRequest { id: machine.id.clone() };
    let error = world.provider.start(ctx(), request).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(world.processes(), Vec::<i32>::new());
    assert!(!world.machine_dir(&machine.id).join("user-data.boot").exists());
    world.destroy(&machine.id).await;
    world.assert_clean();
}

#[tokio::test]
async fn an_agent_that_never_listens_is_given_up() {
    let world = World::with(|config| {
        let script = config.plugins.parent().expect("a directory").join("sleeper");
        fs::write(&script, "#!/bin/sh\necho waiting\nexec sleep 1000\n").expect("written");
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("set");
        config.agent = script;
        config.start_timeout_s = 1;
    })
    .await;
    let machine = world.create("web").await;
    let failed = world.wait_for(&machine.id, MachineState::Failed).await;
    let failure = failed.failure.expect("a reason");
    assert!(failure.message.contains("did not listen within 1 s"), "{failure:?}");
    assert_eq!(failure.sources, ["waiting"]);
    world.destroy(&machine.id).await;
    world.assert_clean();
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_and_not_listed() {
    for (agent, part) in [(true, "/no/such/agent"), (false, "/no/such/plugins")] {
        let world = World::with(|config| match agent {
            true => config.agent = part.into(),
            false => config.plugins = part.into(),
        })
        .await;
        let request = world.request("web").await;
        let error = world.provider.create(ctx(), request).await.expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.chain().contains(part), "{error:?}");
        assert!(list(&world).await.is_empty());
    }

    let world = World::with(|config| config.max_machines = 1).await;
    let machine = world.run("first").await;
    let request = world.request("second").await;
    let error = world.provider.create(ctx(), request).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Quota);
    let quotas = world.provider.quota(ctx(), QuotaRequest {}).await.expect("a quota").quotas;
    assert_eq!((quotas[0].used, quotas[0].limit), (1, 1));
    world.destroy(&machine.id).await;
    world.assert_clean();

    let long = world.dir.path().join("x".repeat(80));
    let error = ProcessProvider::open(world.config.clone(), &long).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("run_dir"), "{error:?}");
    assert!(!long.exists());
}

#[tokio::test]
async fn destroying_never_walks_into_what_is_mounted() {
    let world = World::new().await;
    let machine = world.run("web").await;
    let precious = world.dir.path().join("precious");
    fs::create_dir(&precious).expect("made");
    fs::write(precious.join("file"), "kept").expect("written");
    let point = world.machine_dir(&machine.id).join("state/mounted here");
    fs::create_dir(&point).expect("made");
    let mounted = Command::new("mount").arg("--bind").args([&precious, &point]).status();
    assert!(mounted.expect("it runs").success());
    world.destroy(&machine.id).await;
    assert_eq!(fs::read_to_string(precious.join("file")).expect("still there"), "kept");
    world.assert_clean();
}

#[tokio::test]
async fn a_console_is_followed_until_the_machine_is_gone() {
    let world = World::new().await;
    let machine = world.run("web").await;
    let request = ConsoleRequest { id: machine.id.clone(), replay_bytes: u64::MAX, follow: true };
    let console = world.provider.console(ctx(), request).await.expect("a console");
    let reader = tokio::spawn(console.fold(String::new(), |text, chunk| async move {
        text + &String::from_utf8_lossy(&chunk.expect("a chunk").data)
    }));
    stop(&world, &machine.id, 30_000).await;
    assert!(!reader.is_finished(), "the machine is off, not gone");
    world.destroy(&machine.id).await;
    let text = timeout(Duration::from_secs(10), reader).await.expect("in time").expect("read");
    assert!(text.contains("listening") && text.contains("stopping"), "{text}");
}

#[tokio::test]
async fn one_directory_has_one_provider() {
    let world = World::new().await;
    let run = world.dir.path().join("run");
    let error = ProcessProvider::open(world.config.clone(), &run).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Conflict);
}

async fn answers(world: &World, id: &str) {
    let request = AddressesRequest { id: id.to_owned() };
    let addresses = world.provider.addresses(ctx(), request).await.expect("addresses");
    assert!(addresses.ips.is_empty());
    let path = addresses.agent.strip_prefix("unix://").expect("a socket");
    UnixStream::connect(path).await.expect("it accepts");
}

async fn stop(world: &World, id: &str, grace_ms: u64) {
    let request = StopMachineRequest { id: id.to_owned(), grace_ms };
    world.provider.stop(ctx(), request).await.expect("stopped");
}

async fn list(world: &World) -> Vec<Machine> {
    world.provider.list(ctx(), ListRequest::default()).await.expect("a list").machines
}

/// Keeper and agent, as the record names them.
fn pids(world: &World, id: &str) -> [i32; 2] {
    let text = fs::read(world.machine_dir(id).join("machine.json")).expect("read");
    let record: Value = serde_json::from_slice(&text).expect("JSON");
    ["keeper", "agent"].map(|name| {
        let pid = record[name]["pid"].as_i64().expect("a number");
        i32::try_from(pid).expect("a number")
    })
}

/// A process in a cgroup where the machine's containers go, outside of its pid namespace.
fn stray_process(world: &World, id: &str) -> std::process::Child {
    let stray = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("it starts");
    let parents = world.cgroups();
    let machines = fs::read_dir(&parents[0]).expect("read").flatten();
    let name = machines.map(|machine| machine.file_name());
    let name = name.into_iter().find(|name| name.to_string_lossy().ends_with(id));
    let mut entered = 0;
    // As a container provider does, in hierarchies that the machine itself is not in as well.
    for hierarchy in hierarchies() {
        let own = hierarchy.join(&world.config.cgroup).join(name.as_ref().expect("its cgroup"));
        let cgroup = own.join("pod/c1/c");
        if fs::create_dir_all(&cgroup).is_ok() {
            let written = fs::write(cgroup.join("cgroup.procs"), stray.id().to_string());
            entered += u32::from(written.is_ok());
        }
    }
    assert!(entered > 0, "the machine has no cgroup");
    stray
}

fn assert_gone(mut process: std::process::Child) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while process.try_wait().expect("asked").is_none() {
        assert!(std::time::Instant::now() < deadline, "a process of the machine lives on");
        std::thread::yield_now();
    }
    assert!(!Path::new(&format!("/proc/{}", process.id())).exists());
}
