//! Checkpoints of real machines: a number in a guest's memory goes on from where it was.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use infranetes_sdk::pod::{CheckpointRequest, CreateRequest, Machine, MachineState};
use infranetes_sdk::{CallContext, ErrorKind, PodProvider, ProviderError};
use tokio::time::{Instant, sleep};

use crate::support::{World, config, ctx};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_go_on_from_a_checkpoint_as_often_as_one_likes() {
    let world = World::new("test=count").await;
    let directory = world.checkpoints("one");
    let first = world.create("first").await.id;
    world.wait_for_console(&first, "number 5").await;
    let before = numbers(&world.console(&first).await);
    let began = Instant::now();
    world.checkpoint(&first, &directory).await.expect("written");
    println!("checkpoint: {} ms, {} bytes", began.elapsed().as_millis(), size(&directory));
    let at = numbers(&world.console(&first).await).len();
    assert!(at >= before.len());
    // The first goes on, and two more come out of the same checkpoint while it does; a new provider finds it, too.
    world.count_on(&first, at as u64 + 3).await;
    let world = world.restarted().await;
    let mut restored = Vec::new();
    for name in ["second", "third"] {
        let began = Instant::now();
        let id = world.restore(name, &directory).await.expect("created").id;
        let running = world.wait_for(&id, MachineState::Running).await;
        println!("restore to Running: {} ms", began.elapsed().as_millis());
        assert!(!running.addresses.expect("addresses").agent.is_empty());
        restored.push(id);
    }
    for id in &restored {
        world.count_on(id, at as u64 + 3).await;
        let console = world.console(id).await;
        assert!(!console.contains("guest is up"), "it booted: {console}");
        let counted = numbers(&console);
        let first = counted.first().copied().expect("a number");
        assert!((at as u64 - 1..=at as u64 + 2).contains(&first), "{first} after {at}");
        assert!(counted.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counted:?}");
    }
    // The same token again is the machine that there is.
    let again = world.restore("second", &directory).await.expect("the same");
    assert_eq!(again.id, restored[0]);
    // A machine that was restored is a machine like others.
    let world = world.restarted().await;
    world.count_on(&restored[0], at as u64 + 6).await;
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_does_not_fit_makes_no_machine() {
    let world = World::new("test=count").await;
    let directory = world.checkpoints("one");
    let first = world.create("first").await.id;
    world.wait_for_console(&first, "number 1").await;
    world.checkpoint(&first, &directory).await.expect("written");
    let error = world.checkpoint(&first, &directory).await.expect_err("not empty");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error:?}");

    let mut request = world.request("large").await;
    request.checkpoint = directory.display().to_string();
    let mut size = request.machine_type.take().expect("a type");
    size.memory_bytes *= 2;
    size.name = String::new();
    let wish = infranetes_sdk::pod::PlanRequest { memory_bytes: 512 << 20, ..Default::default() };
    let plan = world.provider.plan(ctx(), wish).await.expect("a plan");
    request.machine_type = plan.candidates.into_iter().next();
    let error = world.provider.create(ctx(), request).await.expect_err("another size");
    assert!(error.message.contains("512 MiB"), "{error:?}");

    // One bit of some hundred million.
    let state = directory.join("machine.state");
    let mut bytes = fs::read(&state).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&state, bytes).expect("written");
    let error = world.restore("damaged", &directory).await.expect_err("damaged");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error:?}");
    assert!(error.message.contains("machine.state is damaged"), "{error:?}");
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_cannot_be_written_leaves_nothing_and_the_guest_runs() {
    let world = World::new("test=count").await;
    let first = world.create("first").await.id;
    world.wait_for_console(&first, "number 1").await;

    let small = world.checkpoints("small");
    mount("tmpfs", &small, &["-t", "tmpfs", "-o", "size=8m,mode=0700"]);
    let error = world.checkpoint(&first, &small).await.expect_err("full");
    assert_eq!(error.kind, ErrorKind::Capacity, "{error:?}");
    assert_eq!(entries(&small), 0, "a part is left");
    unmount(&small);
    world.count_on_from_here(&first).await;

    // Nobody waits any more, in two ways.
    let late = world.checkpoints("late");
    let request = CheckpointRequest { id: first.clone(), directory: late.display().to_string() };
    let soon = CallContext::new("soon").with_timeout(Duration::from_millis(3050));
    let error = world.provider.checkpoint(soon, request.clone()).await.expect_err("late");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded, "{error:?}");
    assert_eq!(entries(&late), 0, "a part is left");
    let dropped = tokio::time::timeout(
        Duration::from_millis(60),
        world.provider.checkpoint(ctx(), request.clone()),
    )
    .await;
    if dropped.is_err() {
        let deadline = Instant::now() + Duration::from_secs(30);
        while entries(&late) > 0 {
            assert!(Instant::now() < deadline, "a part is left");
            sleep(Duration::from_millis(20)).await;
        }
    }
    world.count_on_from_here(&first).await;

    let open = world.checkpoints("open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("opened");
    let error = world.checkpoint(&first, &open).await.expect_err("open to all");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error:?}");
    world.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_of_another_machine_fails_with_what_differs() {
    let world = World::new("test=count").await;
    let directory = world.checkpoints("one");
    let first = world.create("first").await.id;
    world.wait_for_console(&first, "number 1").await;
    world.checkpoint(&first, &directory).await.expect("written");
    world.clean_up().await;
    let cpu = Some("max,-erms,-fsrm,-la57,-sha-ni".to_owned());
    let other = World::with(infranetes_provider_qemu::Config { cpu, ..config("") }).await;
    let id = other.restore("second", &directory).await.expect("accepted").id;
    let failure = other.wait_for(&id, MachineState::Failed).await.failure.expect("a reason");
    assert!(failure.message.contains("it fits another machine: CPU was"), "{failure:?}");
    other.clean_up().await;
}

impl World {
    fn checkpoints(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("closed");
        path
    }

    async fn checkpoint(&self, id: &str, directory: &Path) -> Result<(), ProviderError> {
        let directory = directory.display().to_string();
        let request = CheckpointRequest { id: id.to_owned(), directory };
        self.provider.checkpoint(ctx(), request).await.map(drop)
    }

    async fn restore(&self, name: &str, directory: &Path) -> Result<Machine, ProviderError> {
        let checkpoint = directory.display().to_string();
        let request = CreateRequest { checkpoint, ..self.request(name).await };
        self.provider.create(ctx(), request).await
    }

    async fn count_on(&self, id: &str, number: u64) {
        self.wait_for_console(id, &format!("number {number}\r\n")).await;
    }

    async fn count_on_from_here(&self, id: &str) {
        let at = numbers(&self.console(id).await).last().copied().unwrap_or_default();
        self.count_on(id, at + 3).await;
    }
}

/// The numbers that were counted, in whole lines.
fn numbers(console: &str) -> Vec<u64> {
    let lines = console.split_inclusive('\n').filter_map(|line| line.strip_suffix("\r\n"));
    lines.filter_map(|line| line.strip_prefix("number ")?.parse().ok()).collect()
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).expect("a list").count()
}

fn size(directory: &Path) -> u64 {
    fs::metadata(directory.join("machine.state")).expect("there").len()
}

fn mount(what: &str, at: &Path, options: &[&str]) {
    let status = std::process::Command::new("mount").args(options).arg(what).arg(at).status();
    assert!(status.expect("it starts").success(), "mounting takes root");
}

fn unmount(at: &Path) {
    let status = std::process::Command::new("umount").arg("-l").arg(at).status();
    assert!(status.expect("it starts").success());
}
