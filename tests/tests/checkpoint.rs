//! Checkpoints of pods on the real daemon, and pods that go on from one, with real machines.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1::{self as cri, ContainerState, PodSandboxState};
use infranetes_tests::case::{self, Case};
use infranetes_tests::client::{Client, Pod, container};
use infranetes_tests::wait::until;
use tonic::Code;

#[tokio::test]
async fn a_pod_goes_on_from_its_checkpoint() -> Result<()> {
    case::run("qemu", goes_on).await
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_written_or_read_is_refused_and_leaves_nothing() -> Result<()> {
    case::run("qemu", is_refused).await
}

#[tokio::test]
async fn a_daemon_that_dies_over_a_checkpoint_leaves_a_pod_that_runs() -> Result<()> {
    case::run("qemu", survives_kills).await
}

#[tokio::test]
async fn processes_of_the_node_have_no_checkpoints() -> Result<()> {
    case::run("process", async |case| {
        let mut client = case.client();
        client.pull(&case.image).await?;
        let pod = case.pod("plain");
        let sandbox = client.run_pod(&pod).await?;
        let counter = client.run_container(&sandbox, &pod, counter(&case.image, "a")).await?;
        let directory = directory(case, "none")?;
        let refused = client.checkpoint(&sandbox, &[&counter], &directory).await;
        let error = refused.err().context("it was not refused")?;
        ensure!(error.code() == Code::Unimplemented, "{error}");
        ensure!(error.message().contains("no checkpoints"), "{error}");
        ensure!(entries(&directory) == 0, "something was written");
        Ok(())
    })
    .await
}

/// Counts in memory, and keeps the number in a file of memory, too.
fn counter(image: &str, name: &str) -> cri::ContainerConfig {
    let count =
        "n=0; while :; do n=$((n + 1)); echo $n > /dev/shm/n; echo number $n; sleep 0.2; done";
    container(name, image, &["sh", "-c", count])
}

async fn goes_on(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let (pod, checkpoint) = (case.pod("first"), directory(case, "checkpoint")?);
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

    let began = Instant::now();
    client.checkpoint(&sandbox, &ids, &checkpoint).await?;
    println!("checkpoint of the pod: {} ms", began.elapsed().as_millis());
    for file in ["pod.json", "machine/machine.json", "machine/machine.state"] {
        let mode = std::fs::metadata(checkpoint.join(file))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{file} has mode {mode:o}");
    }
    // The first pod goes on, and as long as it is there nobody else can be it.
    let then = last(case, &pod, "a")?;
    case.wait_log(&pod, "a", &format!("number {}", then + 3)).await?;
    let second = case.pod("second");
    let wanted = [counter(&case.image, "a"), counter(&case.image, "b")];
    let error = client.restore(&second, &wanted, &checkpoint).await.err();
    let error = error.context("two pods have one identity")?;
    ensure!(error.message().contains("share one identity"), "{error}");
    client.remove_pod(&sandbox).await?;

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

    for name in ["second", "third"] {
        let pod = case.pod(name);
        let began = Instant::now();
        let restored = client.restore(&pod, &wanted, &checkpoint).await?;
        println!("restore of the pod: {} ms", began.elapsed().as_millis());
        lives_again(case, &mut client, &pod, &restored, then).await?;
        if name == "second" {
            // A daemon of later takes it up, and removes it.
            case.restart_hard().await?;
            client = case.client();
            let there = last(case, &pod, "a")?;
            case.wait_log(&pod, "a", &format!("number {}", there + 3)).await?;
        }
        client.remove_pod(&restored.pod_sandbox_id).await?;
    }
    Ok(())
}

/// Both containers are created, go on one by one, and have what they had.
async fn lives_again(
    case: &Case,
    client: &mut Client,
    pod: &Pod,
    restored: &cri::RestorePodResponse,
    then: u64,
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
    start(client, &containers[0].container_id).await?;
    case.wait_log(pod, "a", &format!("number {}", then + 3)).await?;
    // The other one stands still as long as nobody starts it.
    let log = Path::new(&pod.log_directory).join("b.log");
    let written = std::fs::read_to_string(log).unwrap_or_default();
    ensure!(written.is_empty(), "it ran before it was started: {written}");
    start(client, &containers[1].container_id).await?;
    case.wait_log(pod, "b", &format!("number {}", then + 1)).await?;
    let counted = numbers(case, pod, "a")?;
    let first = counted.first().copied().context("it counted nothing")?;
    ensure!(
        (then.saturating_sub(10)..=then + 2).contains(&first),
        "{first} is not where {then} was"
    );
    ensure!(counted.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counted:?}");
    let id = &containers[0].container_id;
    let said = client.exec(id, &["sh", "-c", "cat /dev/shm/n; hostname; date +%s"]).await?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut words = said.split_whitespace();
    let number: u64 = words.next().unwrap_or_default().parse().context(said.clone())?;
    ensure!(number >= then, "{number} after {then}");
    words.next();
    let clock: u64 = words.next().unwrap_or_default().parse().context(said.clone())?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    ensure!(now.abs_diff(clock) <= 5, "the guest's clock says {clock}, and it is {now}");
    Ok(())
}

async fn is_refused(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let pod = case.pod("first");
    let sandbox = client.run_pod(&pod).await?;
    let id = client.run_container(&sandbox, &pod, counter(&case.image, "a")).await?;
    case.wait_log(&pod, "a", "number 2").await?;

    let small = directory(case, "small")?;
    mount(&small)?;
    let refused = client.checkpoint(&sandbox, &[&id], &small).await;
    let left = entries(&small);
    unmount(&small)?;
    let error = refused.err().context("8 MiB were enough")?;
    ensure!(error.code() == Code::ResourceExhausted, "{error}");
    ensure!(left == 0, "a part of it is left");
    let then = last(case, &pod, "a")?;
    case.wait_log(&pod, "a", &format!("number {}", then + 3)).await?;

    let good = directory(case, "good")?;
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

async fn survives_kills(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let pod = case.pod("first");
    let sandbox = client.run_pod(&pod).await?;
    let id = client.run_container(&sandbox, &pod, counter(&case.image, "a")).await?;
    case.wait_log(&pod, "a", "number 2").await?;
    for (number, millis) in [20, 120, 250, 400].into_iter().enumerate() {
        let checkpoint = directory(case, &format!("c{number}"))?;
        let writing = tokio::spawn({
            let (mut client, sandbox, id) = (client.clone(), sandbox.clone(), id.clone());
            async move { client.checkpoint(&sandbox, &[&id], &checkpoint).await }
        });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        case.restart_hard().await?;
        let _ = writing.await?;
        client = case.client();
        let then = last(case, &pod, "a")?;
        case.wait_log(&pod, "a", &format!("number {}", then + 3)).await?;
    }
    Ok(())
}

async fn start(client: &mut Client, id: &str) -> Result<()> {
    let request = cri::StartContainerRequest { container_id: id.to_owned() };
    client.runtime.start_container(request).await?;
    let running = ContainerState::ContainerRunning;
    client.wait_container(id, running, START_LIMIT).await.map(drop)
}

/// An empty directory, as a kubelet makes it.
fn directory(case: &Case, name: &str) -> Result<PathBuf> {
    let path = case.node.path(name);
    std::fs::create_dir(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
    Ok(path)
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

fn mount(at: &Path) -> Result<()> {
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

const START_LIMIT: Duration = Duration::from_secs(30);
