//! Checkpoints of pods on the real daemon, and pods that go on from one, with real machines.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1::{self as cri, ContainerState, PodSandboxState};
use infranetes_tests::case::Case;
use infranetes_tests::client::{Client, Pod, container};
use infranetes_tests::kubelet::{PodDir, mount};
use infranetes_tests::wait::until;
use tonic::Code;

infranetes_tests::cases!(infranetes_tests::case::run; qemu: [
    a_pod_goes_on_from_its_checkpoint,
    what_a_pod_has_mounted_is_the_new_pods,
    a_checkpoint_that_cannot_be_written_or_read_is_refused_and_leaves_nothing,
    a_daemon_that_dies_over_a_checkpoint_leaves_a_pod_that_runs,
]);
infranetes_tests::cases!(infranetes_tests::case::run; process: [
    processes_of_the_node_have_no_checkpoints,
]);

async fn processes_of_the_node_have_no_checkpoints(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let pod = case.pod("plain");
    let sandbox = client.run_pod(&pod).await?;
    let counter = client.run_container(&sandbox, &pod, counter(&case.image, "a")).await?;
    let directory = case.directory("none")?;
    let refused = client.checkpoint(&sandbox, &[&counter], &directory).await;
    let error = refused.err().context("it was not refused")?;
    ensure!(error.code() == Code::Unimplemented, "{error}");
    ensure!(error.message().contains("no checkpoints"), "{error}");
    ensure!(entries(&directory) == 0, "something was written");
    Ok(())
}

/// Counts in memory, and keeps the number in a file of its own, too (/dev/shm is the whole pod's).
fn counter(image: &str, name: &str) -> cri::ContainerConfig {
    let count = "n=0; while :; do n=$((n + 1)); echo $n > /number; echo number $n; sleep 0.2; done";
    container(name, image, &["sh", "-c", count])
}

async fn a_pod_goes_on_from_its_checkpoint(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let (pod, checkpoint) = (case.pod("first"), case.directory("checkpoint")?);
    let sandbox = client.run_pod(&pod).await?;
    let mut containers = Vec::new();
    for name in ["a", "b"] {
        let id = client.run_container(&sandbox, &pod, counter(&case.image, name)).await?;
        containers.push(id);
        case.wait_log(&pod, name, "number 3").await?;
    }
    let ids: Vec<&str> = containers.iter().map(String::as_str).collect();

    // All that run, or nothing: a machine is written as a whole.
    let error = client.checkpoint(&sandbox, &ids[..1], &checkpoint).await.err();
    let error = error.context("half of a pod was written")?;
    ensure!(error.code() == Code::InvalidArgument, "{error}");
    ensure!(entries(&checkpoint) == 0, "something was written");

    let before = [number(&mut client, ids[0]).await?, number(&mut client, ids[1]).await?];
    let began = Instant::now();
    client.checkpoint(&sandbox, &ids, &checkpoint).await?;
    println!("checkpoint of the pod: {} ms", began.elapsed().as_millis());
    let after = [number(&mut client, ids[0]).await?, number(&mut client, ids[1]).await?];
    let then = Then { before, after };
    for file in ["pod.json", "machine/machine.json", "machine/machine.state"] {
        let mode = std::fs::metadata(checkpoint.join(file))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{file} has mode {mode:o}");
    }
    // The first pod goes on.
    reaches(case, &pod, "a", then.after[0] + 3).await?;
    let second = case.pod("second");
    let wanted = [counter(&case.image, "a"), counter(&case.image, "b")];

    // What has to be the same is looked at.
    let mut other = wanted.clone();
    other[0].command = vec!["sh".to_owned(), "-c".to_owned(), "exit".to_owned()];
    for (wanted, words) in
        [(&wanted[..1], "it has the containers"), (&other[..], "another command")]
    {
        let error = client.restore(&second, wanted, &checkpoint).await.err();
        let error = error.context("it was not refused")?;
        ensure!(error.code() == Code::InvalidArgument, "{error}");
        ensure!(error.message().contains(words), "{error}");
    }

    let mut newest = None;
    for name in ["second", "third"] {
        let pod = case.pod(name);
        let began = Instant::now();
        let restored = client.restore(&pod, &wanted, &checkpoint).await?;
        println!("restore of the pod: {} ms", began.elapsed().as_millis());
        lives_again(case, &mut client, &pod, &restored, &then).await?;
        if name == "second" {
            // A daemon of later takes it up.
            case.restart_hard().await?;
            client = case.client();
        }
        newest = Some(restored);
    }
    // All of them go on, each with what is its own.
    for name in ["first", "second", "third"] {
        let pod = case.pod(name);
        let there = last(case, &pod, "a")?;
        reaches(case, &pod, "a", there + 3).await?;
    }
    // One that was restored can be written down and restored as well.
    let again = case.directory("again")?;
    let newest = newest.context("nothing was restored")?;
    let ids = newest.restored_containers.iter().map(|one| one.container_id.as_str());
    let ids: Vec<&str> = ids.collect();
    client.checkpoint(&newest.pod_sandbox_id, &ids, &again).await?;
    client.remove_pod(&newest.pod_sandbox_id).await?;
    let fourth = case.pod("fourth");
    let restored = client.restore(&fourth, &wanted, &again).await?;
    for one in &restored.restored_containers {
        start(&mut client, &one.container_id).await?;
    }
    reaches(case, &fourth, "a", last(case, &case.pod("third"), "a")?).await
}

/// Both containers are created, go on one by one, and have what they had.
async fn lives_again(
    case: &Case,
    client: &mut Client,
    pod: &Pod,
    restored: &cri::RestorePodResponse,
    then: &Then,
) -> Result<()> {
    let status = client.sandbox(&restored.pod_sandbox_id).await?.status.unwrap_or_default();
    ensure!(status.state == PodSandboxState::SandboxReady as i32, "{status:?}");
    let mut containers = restored.restored_containers.clone();
    containers.sort_by(|one, other| one.name.cmp(&other.name));
    let names: Vec<&str> = containers.iter().map(|one| one.name.as_str()).collect();
    ensure!(names == ["a", "b"], "{names:?}");
    for one in &containers {
        let status = client.container(&one.container_id).await?.status.unwrap_or_default();
        ensure!(status.state == ContainerState::ContainerCreated as i32, "{status:?}");
    }
    goes_on_from(case, client, pod, &containers[0], then.before[0], then.after[0]).await?;
    // The other one stands still as long as nobody starts it.
    let log = Path::new(&pod.log_directory).join("b.log");
    let written = std::fs::read_to_string(log).unwrap_or_default();
    ensure!(written.is_empty(), "it ran before it was started: {written}");
    goes_on_from(case, client, pod, &containers[1], then.before[1], then.after[1]).await?;
    let id = &containers[0].container_id;
    let said = client.exec(id, &["date", "+%s"]).await?;
    let clock: u64 = String::from_utf8_lossy(&said.stdout).trim().parse()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    ensure!(now.abs_diff(clock) <= 10, "the guest's clock says {clock}, and it is {now}");
    Ok(())
}

/// An emptyDir is as it was, what comes from the node is as it is now, and follows it; what is written goes to the new pod's files.
async fn what_a_pod_has_mounted_is_the_new_pods(case: &mut Case) -> Result<()> {
    let kubelet = case.node.path("kubelet");
    std::fs::create_dir_all(&kubelet)?;
    case.configure(&format!("[mounts]\nkubelet_dir = \"{}\"\n", kubelet.display())).await?;
    let mut client = case.client();
    client.pull(&case.image).await?;
    let of = |uid: &str, word: &str| -> Result<(PodDir, PathBuf, Vec<cri::Mount>)> {
        let dir = PodDir::new(&kubelet, uid)?;
        let config = dir.kept("configmap", "config", &[("word", word)])?;
        let mounts = vec![
            mount(&config, "/config", true),
            mount(&dir.empty_dir("disk")?, "/disk", false),
            mount(&dir.termination_log("main")?, "/dev/termination-log", false),
        ];
        Ok((dir, config, mounts))
    };
    let run =
        "trap 'echo farewell > /dev/termination-log; exit 3' TERM; while :; do sleep 0.1; done";
    let main = |mounts| cri::ContainerConfig {
        mounts,
        ..container("main", &case.image, &["sh", "-c", run])
    };
    let (pod, second) = (case.pod("first"), case.pod("second"));
    let (_first_dir, _, mounts) = of("uid-first", "old")?;
    let sandbox = client.run_pod(&pod).await?;
    let id = client.run_container(&sandbox, &pod, main(mounts)).await?;
    client.exec(&id, &["sh", "-c", "echo kept > /disk/file"]).await?;
    let checkpoint = case.directory("checkpoint")?;
    client.checkpoint(&sandbox, &[&id], &checkpoint).await?;
    client.remove_pod(&sandbox).await?;

    let (dir, config, mounts) = of("uid-second", "new")?;
    let elsewhere: Vec<_> = mounts[..2].to_vec();
    let error = client.restore(&second, &[main(elsewhere)], &checkpoint).await.err();
    let error = error.context("a container lost a mount")?;
    ensure!(error.message().contains("mounts at other places"), "{error}");
    let restored = client.restore(&second, &[main(mounts)], &checkpoint).await?;
    let id = restored.restored_containers[0].container_id.clone();
    start(&mut client, &id).await?;
    let said = client.exec(&id, &["cat", "/disk/file", "/config/word"]).await?;
    ensure!(said.stdout == b"kept\nnew", "{:?}", String::from_utf8_lossy(&said.stdout));
    dir.swap(&config, &[("word", "newer")])?;
    until(START_LIMIT, "the volume follows the node", async || {
        let said = client.clone().exec(&id, &["cat", "/config/word"]).await?;
        Ok(said.stdout == b"newer")
    })
    .await?;
    // A container that comes later shares what the restored one has.
    let later = cri::ContainerConfig {
        mounts: vec![mount(&dir.path("volumes/kubernetes.io~empty-dir/disk"), "/disk", false)],
        ..container("later", &case.image, &["cat", "/disk/file"])
    };
    client.run_container(&restored.pod_sandbox_id, &second, later).await?;
    case.wait_log(&second, "later", "kept").await?;
    client.stop_container(&id, 20).await?;
    let words = std::fs::read_to_string(dir.path("containers/main/0a1b2c3d"))?;
    ensure!(words == "farewell\n", "{words:?}");
    let status = client.container(&id).await?.status.unwrap_or_default();
    ensure!(status.exit_code == 3, "{status:?}");
    Ok(())
}

/// The numbers of both containers right before and after the checkpoint.
struct Then {
    before: [u64; 2],
    after: [u64; 2],
}

/// Starts a restored container, which counts on from where it was.
async fn goes_on_from(
    case: &Case,
    client: &mut Client,
    pod: &Pod,
    one: &cri::RestoredContainer,
    before: u64,
    after: u64,
) -> Result<()> {
    start(client, &one.container_id).await?;
    reaches(case, pod, &one.name, after + 3).await?;
    let counted = numbers(case, pod, &one.name)?;
    // What the first pod's log did not have yet comes again.
    ensure!(counted[0] <= after + 1, "{counted:?}: it was between {before} and {after}");
    ensure!(counted.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counted:?}");
    let memory = number(client, &one.container_id).await?;
    ensure!(memory >= before, "{memory} after {before}");
    Ok(())
}

/// The number that a counter has in memory.
async fn number(client: &mut Client, id: &str) -> Result<u64> {
    // It may be about to write it.
    let read = "until n=$(cat /number) && [ -n \"$n\" ]; do :; done; echo $n";
    let said = client.exec(id, &["sh", "-c", read]).await?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().parse()?)
}

async fn reaches(case: &Case, pod: &Pod, name: &str, number: u64) -> Result<()> {
    until(COUNT_LIMIT, "the counter counts on", async || {
        Ok(last(case, pod, name).is_ok_and(|last| last >= number))
    })
    .await
}

async fn a_checkpoint_that_cannot_be_written_or_read_is_refused_and_leaves_nothing(
    case: &mut Case,
) -> Result<()> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let pod = case.pod("first");
    let sandbox = client.run_pod(&pod).await?;
    let id = client.run_container(&sandbox, &pod, counter(&case.image, "a")).await?;
    case.wait_log(&pod, "a", "number 2").await?;

    let small = case.directory("small")?;
    mount_small(&small)?;
    let refused = client.checkpoint(&sandbox, &[&id], &small).await;
    let left = entries(&small);
    unmount(&small)?;
    let error = refused.err().context("8 MiB were enough")?;
    ensure!(error.code() == Code::ResourceExhausted, "{error}");
    ensure!(left == 0, "a part of it is left");
    let then = last(case, &pod, "a")?;
    reaches(case, &pod, "a", then + 3).await?;

    let good = case.directory("good")?;
    for (path, options, words) in [
        ("relative".to_owned(), &[][..], "not an absolute path"),
        ("/no/such/directory".to_owned(), &[], "cannot be written or used"),
        (good.display().to_string(), &[("color", "blue")], "\"color\" is not known"),
    ] {
        let request = cri::CheckpointPodRequest {
            pod_sandbox_id: sandbox.clone(),
            output_path: path,
            container_ids: vec![id.clone()],
            options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        let error = client.runtime.checkpoint_pod(request).await.err();
        let error = error.context("it was not refused")?;
        ensure!(error.code() == Code::InvalidArgument, "{error}");
        ensure!(error.message().contains(words), "{error}");
    }
    client.checkpoint(&sandbox, &[&id], &good).await?;
    client.remove_pod(&sandbox).await?;

    // One bit anywhere.
    let wanted = [counter(&case.image, "a")];
    for file in ["machine/machine.state", "machine/machine.json", "pod.json"] {
        let path = good.join(file);
        let whole = std::fs::read(&path)?;
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(&path, damaged)?;
        let error = client.restore(&case.pod("second"), &wanted, &good).await.err();
        let error = error.with_context(|| format!("a damaged {file} was taken"))?;
        ensure!(error.message().contains("damaged"), "{file}: {error}");
        std::fs::write(&path, whole)?;
    }
    let listed = client.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
    ensure!(listed.into_inner().items.is_empty(), "something of it is left");
    client.restore(&case.pod("second"), &wanted, &good).await?;
    Ok(())
}

async fn a_daemon_that_dies_over_a_checkpoint_leaves_a_pod_that_runs(
    case: &mut Case,
) -> Result<()> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let pod = case.pod("first");
    let sandbox = client.run_pod(&pod).await?;
    let id = client.run_container(&sandbox, &pod, counter(&case.image, "a")).await?;
    case.wait_log(&pod, "a", "number 2").await?;
    for (number, millis) in [20, 120, 250, 400].into_iter().enumerate() {
        let checkpoint = case.directory(&format!("c{number}"))?;
        let writing = tokio::spawn({
            let (mut client, sandbox, id) = (client.clone(), sandbox.clone(), id.clone());
            async move { client.checkpoint(&sandbox, &[&id], &checkpoint).await }
        });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let then = last(case, &pod, "a")?;
        case.restart_hard().await?;
        let _ = writing.await?;
        client = case.client();
        ensure!(last(case, &pod, "a")? >= then, "the log lost what somebody may have read");
        reaches(case, &pod, "a", then + 3).await?;
    }
    // Each line once, over all daemons.
    let counted = numbers(case, &pod, "a")?;
    ensure!(counted.iter().copied().eq(1..=counted.len() as u64), "{counted:?}");
    Ok(())
}

async fn start(client: &mut Client, id: &str) -> Result<()> {
    let request = cri::StartContainerRequest { container_id: id.to_owned() };
    client.runtime.start_container(request).await?;
    let running = ContainerState::ContainerRunning;
    client.wait_container(id, running, START_LIMIT).await.map(drop)
}

fn numbers(case: &Case, pod: &Pod, name: &str) -> Result<Vec<u64>> {
    let lines = case.log_lines(pod, name)?;
    let number =
        |(_, _, text): &(String, String, String)| text.strip_prefix("number ")?.parse().ok();
    Ok(lines.iter().filter_map(number).collect())
}

fn last(case: &Case, pod: &Pod, name: &str) -> Result<u64> {
    numbers(case, pod, name)?.last().copied().context("it counted nothing")
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

fn mount_small(at: &Path) -> Result<()> {
    let mut command = std::process::Command::new("mount");
    let status =
        command.args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "small"]).arg(at).status()?;
    ensure!(status.success(), "tmpfs could not be mounted");
    Ok(())
}

fn unmount(at: &Path) -> Result<()> {
    let status = std::process::Command::new("umount").arg("-l").arg(at).status()?;
    ensure!(status.success(), "tmpfs could not be unmounted");
    Ok(())
}

const COUNT_LIMIT: Duration = Duration::from_secs(60);
const START_LIMIT: Duration = Duration::from_secs(30);
