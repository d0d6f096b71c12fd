//! What real machines do: they come up, outlive daemons, end in every way, and leave nothing.

mod checkpoints;

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use infranetes_provider_qemu::{Config, QemuProvider};
use infranetes_sdk::pod::{
    DestroyRequest, EventsRequest, MachineEventKind, MachineState, StartMachineRequest,
    StopMachineRequest, SweepRequest,
};
use infranetes_sdk::{ErrorKind, PodProvider, StreamExt};

use crate::support::{World, config, ctx, kill, processes_naming};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_boots_with_its_user_data_and_leaves_nothing() {
    let world = World::new("").await;
    let start = Instant::now();
    let id = world.create("first").await.id;
    let running = world.wait_for(&id, MachineState::Running).await;
    println!("create to Running: {} ms", start.elapsed().as_millis());
    let addresses = running.addresses.expect("addresses");
    assert_eq!(addresses.ips, ["10.0.2.15"]);
    let port = addresses.agent.strip_prefix("tcp://127.0.0.1:").expect("a forwarded port");
    port.parse::<u16>().expect("a port");
    world.wait_for_console(&id, "guest is up").await;
    println!("create to init: {} ms", start.elapsed().as_millis());
    world.wait_for_console(&id, "user-data: hello first.").await;
    let [pid] = world.processes()[..] else { panic!("processes: {:?}", world.processes()) };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    println!("{}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default());
    let machine_dir = world.dir.path().join("machines").join(&id);
    assert!(!machine_dir.join("user-data.boot").exists(), "QEMU's copy is still there");
    world.destroy(&id).await;
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_root_every_machine_has_a_user_of_its_own_and_no_privilege() {
    let world = World::new("").await;
    let own_uid = std::fs::metadata("/proc/self").expect("/proc").uid();
    let mut uids = Vec::new();
    for name in ["a", "b"] {
        let id = world.create(name).await.id;
        world.wait_for(&id, MachineState::Running).await;
    }
    for pid in world.processes() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("a field");
            line.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned()
        };
        uids.push(field("Uid:").parse::<u32>().expect("a uid"));
        assert_eq!(field("Seccomp:"), "2", "it is not filtered");
        assert_eq!(field("NoNewPrivs:"), "1");
        if own_uid == 0 {
            assert_eq!(field("CapEff:"), "0000000000000000");
            assert_eq!(field("Groups:"), "", "it has groups");
        }
    }
    uids.sort_unstable();
    let first = world.config.uids.first;
    let expected = if own_uid == 0 { vec![first, first + 1] } else { vec![own_uid, own_uid] };
    assert_eq!(uids, expected);
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_outlive_the_daemon_and_are_taken_up() {
    let world = World::new("").await;
    let id = world.create("stays").await.id;
    let before = world.wait_for(&id, MachineState::Running).await;
    let pids = world.processes();
    let world = world.restarted().await;
    let after = world.wait_for(&id, MachineState::Running).await;
    assert_eq!(after.addresses, before.addresses);
    assert_eq!(world.processes(), pids);
    assert_eq!(world.create("stays").await.id, id, "the token is forgotten");

    // What ends while it is watched by the second daemon is noticed by it.
    kill(pids[0]);
    let failure = world.wait_for(&id, MachineState::Failed).await.failure.expect("a reason");
    // The second daemon may still be on its way to it.
    assert!(failure.message.starts_with("QEMU ended w"), "{failure:?}");
    world.destroy(&id).await;
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_while_nobody_watched_is_found_out() {
    let world = World::new("").await;
    let id = world.create("dies").await.id;
    world.wait_for(&id, MachineState::Running).await;
    let pids = world.processes();
    let World { dir, config, provider } = world;
    drop(provider);
    kill(pids[0]);
    let path = dir.path().display().to_string();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes_naming(&path).is_empty() {
        assert!(Instant::now() < deadline, "it lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let provider = QemuProvider::open(config.clone(), dir.path()).await.expect("a provider");
    let world = World { dir, config, provider };
    let failed = world.wait_for(&id, MachineState::Failed).await;
    let failure = failed.failure.expect("a reason");
    assert_eq!(failure.message, "QEMU ended while no daemon watched it");
    world.destroy(&id).await;
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_before_the_daemon_died_is_launched_by_the_next() {
    let world = World::new("").await;
    let id = world.create("accepted").await.id;
    world.wait_for(&id, MachineState::Running).await;
    let request = StopMachineRequest { id: id.clone(), grace_ms: 0 };
    world.provider.stop(ctx(), request).await.expect("stopped");
    // As the disk was between the record and the process.
    let World { dir, config, provider } = world;
    drop(provider);
    let path = dir.path().join("machines").join(&id).join("machine.json");
    let mut record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("a record")).expect("JSON");
    record["wanted"] = "on".into();
    record["end"] = serde_json::Value::Null;
    std::fs::write(&path, record.to_string()).expect("written");
    // And what a daemon leaves that dies in the middle of making or removing one.
    let machines = dir.path().join("machines");
    for leftover in [".new-vm-1", ".gone-vm-2"] {
        std::fs::create_dir_all(machines.join(leftover).join("control")).expect("made");
    }
    let provider = QemuProvider::open(config.clone(), dir.path()).await.expect("a provider");
    let world = World { dir, config, provider };
    world.wait_for(&id, MachineState::Running).await;
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_read_is_left_alone_and_shown() {
    let world = World::new("").await;
    let damaged = world.dir.path().join("machines").join("vm-damaged");
    std::fs::create_dir(&damaged).expect("made");
    std::fs::write(damaged.join("machine.json"), "{").expect("written");
    let world = world.restarted().await;
    let answer = world.provider.sweep(ctx(), SweepRequest::default()).await.expect("swept");
    let ids: Vec<_> = answer.leftovers.iter().map(|left| left.id.as_str()).collect();
    assert_eq!(ids, ["vm-damaged"]);
    let request = DestroyRequest { id: "vm-damaged".to_owned() };
    let error = world.provider.destroy(ctx(), request).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains(&damaged.display().to_string()), "{error:?}");
    assert!(damaged.join("machine.json").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_do_not_share_a_directory() {
    let world = World::new("").await;
    let second = QemuProvider::open(world.config.clone(), world.dir.path()).await;
    assert_eq!(second.expect_err("refused").kind, ErrorKind::Conflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_qemu_is_a_failed_machine_with_a_reason_and_an_event() {
    let world = World::new("").await;
    let mut events = world.provider.events(ctx(), EventsRequest {}).await.expect("events");
    let id = world.create("victim").await.id;
    world.wait_for(&id, MachineState::Running).await;
    kill(world.processes()[0]);
    let event = events.next().await.expect("an event").expect("no error");
    assert_eq!((event.machine_id.as_str(), event.kind()), (id.as_str(), MachineEventKind::Gone));
    let failure = world.wait_for(&id, MachineState::Failed).await.failure.expect("a reason");
    assert_eq!(failure.message, "QEMU was killed by signal 9");
    world.destroy(&id).await;
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_powers_off_is_stopped_and_one_that_panics_has_failed() {
    for (words, state, message) in [
        ("test=poweroff", MachineState::Stopped, None),
        ("test=panic", MachineState::Failed, Some("the guest restarted itself")),
    ] {
        let world = World::new(words).await;
        let id = world.create("ends").await.id;
        let machine = world.wait_for(&id, state).await;
        let failure = machine.failure.map(|failure| failure.message);
        match (failure, message) {
            (None, None) => {}
            (Some(failure), Some(message)) => assert!(failure.contains(message), "{failure}"),
            (failure, message) => panic!("{failure:?} instead of {message:?}"),
        }
        world.destroy(&id).await;
        world.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_machine_boots_again_with_the_same_user_data() {
    let world = World::new("").await;
    let id = world.create("again").await.id;
    world.wait_for_console(&id, "user-data: hello again.").await;
    // This guest does not listen to its power button: the grace passes, and the power is cut.
    let request = StopMachineRequest { id: id.clone(), grace_ms: 200 };
    world.provider.stop(ctx(), request).await.expect("stopped");
    assert_eq!(world.get(&id).await.state(), MachineState::Stopped);
    assert!(world.processes().is_empty());
    let world = world.restarted().await;
    assert_eq!(world.get(&id).await.state(), MachineState::Stopped);
    let request = StartMachineRequest { id: id.clone() };
    world.provider.start(ctx(), request).await.expect("started");
    world.wait_for(&id, MachineState::Running).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while world.console(&id).await.matches("user-data: hello again.").count() < 2 {
        assert!(Instant::now() < deadline, "{}", world.console(&id).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.destroy(&id).await;
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_floods_its_console_does_not_fill_the_disk() {
    let config = Config { console_kib: 32, ..config("test=flood") };
    let limit = config.console_kib * 1024;
    let world = World::with(config).await;
    let id = world.create("flood").await.id;
    world.wait_for_console(&id, "all work and no play").await;
    let file = world.dir.path().join("machines").join(&id).join("console.log");
    let size = || std::fs::metadata(&file).expect("a console").len();
    let mut largest = 0;
    let deadline = Instant::now() + Duration::from_secs(8);
    while Instant::now() < deadline {
        largest = largest.max(size());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("largest console: {largest} bytes, limit {limit}");
    assert!(largest > limit / 2, "it did not flood");
    assert!(largest <= 4 * limit, "it grew to {largest}");

    // Nobody trims while no daemon runs, and QEMU stops by itself.
    let World { dir, config, provider } = world;
    drop(provider);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(size() <= 4 * limit, "it grew to {}", size());
    let provider = QemuProvider::open(config.clone(), dir.path()).await.expect("a provider");
    let world = World { dir, config, provider };
    world.wait_for(&id, MachineState::Running).await;
    world.destroy(&id).await;
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_machines_at_once_come_and_go() {
    let world = World::new("").await;
    let names = ["a", "b", "c", "d"];
    let start = Instant::now();
    let machines = futures::future::join_all(names.iter().map(|name| world.create(name))).await;
    for machine in &machines {
        world.wait_for_console(&machine.id, "guest is up").await;
    }
    println!("four machines: {} ms", start.elapsed().as_millis());
    let ports: std::collections::BTreeSet<String> = {
        let mut ports = std::collections::BTreeSet::new();
        for machine in &machines {
            ports.insert(world.get(&machine.id).await.addresses.expect("addresses").agent);
        }
        ports
    };
    assert_eq!(ports.len(), 4);
    assert_eq!(world.processes().len(), 4);
    futures::future::join_all(machines.iter().map(|machine| world.destroy(&machine.id))).await;
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_named_with_its_remedy_and_nothing_is_made() {
    let good = config("");
    for (config, parts) in [
        (
            Config { qemu: "/no/such/qemu-system-x86_64".into(), ..good.clone() },
            ["/no/such/qemu-system-x86_64", "apt-get install qemu-system-x86"],
        ),
        (
            Config { kernel: "/no/such/vmlinux".into(), ..good.clone() },
            ["/no/such/vmlinux", "cargo xtask guest"],
        ),
        (
            Config { initramfs: "/no/such/initramfs".into(), ..good.clone() },
            ["/no/such/initramfs", "cargo xtask guest"],
        ),
    ] {
        let world = World::with(config).await;
        let request = world.request("x").await;
        let error = world.provider.create(ctx(), request).await.expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Unsupported);
        for part in parts {
            assert!(error.message.contains(part), "{error:?}");
        }
        world.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qemu_that_refuses_its_command_line_is_quoted() {
    let world = World::with(Config { machine: "no-such-machine".to_owned(), ..config("") }).await;
    let id = world.create("x").await.id;
    let failure = world.wait_for(&id, MachineState::Failed).await.failure.expect("a reason");
    assert!(failure.message.contains("QEMU ended with status 1"), "{failure:?}");
    assert!(failure.sources.join("\n").contains("no-such-machine"), "{failure:?}");
    world.destroy(&id).await;
    world.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_answer_with_their_kinds() {
    for (config, kind) in [
        (Config { max_machines: 1, ..config("test=hang") }, ErrorKind::Quota),
        (Config { memory_limit_mib: Some(400), ..config("test=hang") }, ErrorKind::Capacity),
    ] {
        let world = World::with(config).await;
        let id = world.create("first").await.id;
        let request = world.request("second").await;
        let error = world.provider.create(ctx(), request).await.expect_err("full");
        assert_eq!(error.kind, kind, "{error:?}");
        world.destroy(&id).await;
        world.create("second").await;
        world.clean_up().await;
    }
}
