//! What pods use, what happens to them, and limits that change: on the real daemon, each case with the `process` provider and
//! with real machines of `qemu`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1::{self as cri, ContainerEventType as Kind};
use infranetes_tests::case::Case;
use infranetes_tests::client::{Client, container};
use infranetes_tests::footprint::processes_with;
use infranetes_tests::on_both;
use infranetes_tests::wait::until;

on_both!(
    figures_grow_with_what_a_container_does,
    figures_outlive_a_kill_of_the_daemon,
    a_frozen_machine_keeps_no_list_waiting,
    changes_are_told_in_order,
    limits_change_at_once_and_for_good,
);

async fn figures_grow_with_what_a_container_does(case: &mut Case) -> Result<()> {
    count_every_second(case).await?;
    let mut client = case.client();
    let pod = case.pod("busy");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    let mut config = container("worker", &case.image, &["sh", "-c", "while :; do :; done"]);
    config.labels.insert("role".to_owned(), "worker".to_owned());
    let worker = client.run_container(&sandbox, &pod, config).await?;
    let config = container("idle", &case.image, &["sleep", "600"]);
    let idle = client.run_container(&sandbox, &pod, config).await?;

    // Right after its start it is there, with a time.
    let first = stats(&mut client, &worker).await?;
    ensure!(first.cpu.as_ref().is_some_and(|cpu| cpu.timestamp > 0), "{first:?}");
    let listed = list(&mut client, cri::ContainerStatsFilter::default()).await?;
    ensure!(ids(&listed) == sorted([&worker, &idle]), "{listed:?}");

    until(SAMPLES, "the busy one has used a second and a rate is known", async || {
        let now = stats(&mut client, &worker).await?;
        Ok(cpu_ns(&now) > 1_000_000_000 && nano_cores(&now) > 100_000_000)
    })
    .await?;
    let (busy, idle_now) = (stats(&mut client, &worker).await?, stats(&mut client, &idle).await?);
    ensure!(nano_cores(&idle_now) < nano_cores(&busy) / 2, "{idle_now:?} is as busy as {busy:?}");
    let memory = busy.memory.context("no memory")?;
    ensure!(value(&memory.working_set_bytes) > 0 && value(&memory.page_faults) > 0, "{memory:?}");

    let before = value(&layer(&busy)?.used_bytes);
    let write = "dd if=/dev/zero of=/written bs=1M count=5 && touch /a /b /c && sync";
    let written = client.exec(&worker, &["sh", "-c", write]).await?;
    ensure!(written.exit_code == 0, "{written:?}");
    until(SAMPLES, "what it wrote is counted", async || {
        let layer = layer(&stats(&mut client, &worker).await?)?;
        Ok(value(&layer.used_bytes) >= before + (5 << 20) && value(&layer.inodes_used) >= 4)
    })
    .await?;

    let by_label = cri::ContainerStatsFilter {
        label_selector: [("role".to_owned(), "worker".to_owned())].into(),
        ..Default::default()
    };
    ensure!(ids(&list(&mut client, by_label).await?) == sorted([&worker]));
    let by_id = cri::ContainerStatsFilter { id: idle.clone(), ..Default::default() };
    ensure!(ids(&list(&mut client, by_id).await?) == sorted([&idle]));

    let of_pod = pod_stats(&mut client, &sandbox).await?;
    ensure!(of_pod.containers.len() == 2, "{of_pod:?}");
    let pod_cpu = of_pod.cpu.as_ref().map(|cpu| value(&cpu.usage_core_nano_seconds));
    ensure!(pod_cpu >= Some(cpu_ns(&busy)), "the pod used less than its container: {of_pod:?}");
    let pod_memory = of_pod.memory.as_ref().map(|memory| value(&memory.working_set_bytes));
    ensure!(pod_memory > Some(0), "{of_pod:?}");
    let processes = of_pod.process.as_ref().map(|process| value(&process.process_count));
    ensure!(processes >= Some(2), "{of_pod:?}");
    if case.node.provider() == "qemu" {
        let network = of_pod.network.clone().context("no network")?;
        let default = network.default_interface.context("no default interface")?;
        ensure!(value(&default.rx_bytes) > 0 && value(&default.tx_bytes) > 0, "{default:?}");
    }
    every_metric_has_its_labels(&mut client, &sandbox, &worker).await?;

    // What it used last stays until it is removed.
    let last = cpu_ns(&stats(&mut client, &worker).await?);
    client.stop_container(&worker, 0).await?;
    ensure!(cpu_ns(&stats(&mut client, &worker).await?) >= last, "it went back");
    let running = list(&mut client, cri::ContainerStatsFilter::default()).await?;
    ensure!(ids(&running) == sorted([&idle]), "{running:?}");
    let pod_before = pod_cpu_ns(&mut client, &sandbox).await?;
    let request = cri::RemoveContainerRequest { container_id: worker.clone() };
    client.runtime.remove_container(request).await?;
    let gone = stats(&mut client, &worker).await.err().context("a removed one has figures")?;
    ensure!(gone.to_string().contains("no container"), "{gone}");
    let pod_after = pod_cpu_ns(&mut client, &sandbox).await?;
    ensure!(pod_after >= pod_before, "the pod's CPU time went back: {pod_before} to {pod_after}");
    Ok(())
}

async fn figures_outlive_a_kill_of_the_daemon(case: &mut Case) -> Result<()> {
    count_every_second(case).await?;
    let mut client = case.client();
    let pod = case.pod("steady");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    let config = container("worker", &case.image, &["sh", "-c", "while :; do :; done"]);
    let worker = client.run_container(&sandbox, &pod, config).await?;
    let mut last = 0;
    for _ in 0..3 {
        let goal = last + 300_000_000;
        until(SAMPLES, "it used more", async || {
            let listed = list(&mut client, cri::ContainerStatsFilter::default()).await?;
            // A machine that has not told yet is left out of the list, and never 0 in it.
            let Some(now) = listed.first() else { return Ok(false) };
            ensure!(cpu_ns(now) >= last, "{} after {last}", cpu_ns(now));
            last = cpu_ns(now);
            Ok(last > goal)
        })
        .await?;
        case.restart_hard().await?;
        client = case.client();
        let now = stats(&mut client, &worker).await?;
        ensure!(now.cpu.is_none() || cpu_ns(&now) >= last, "{now:?} after {last}");
    }
    Ok(())
}

async fn a_frozen_machine_keeps_no_list_waiting(case: &mut Case) -> Result<()> {
    count_every_second(case).await?;
    let mut client = case.client();
    let pod = case.pod("frozen");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    let config = container("idle", &case.image, &["sleep", "600"]);
    let idle = client.run_container(&sandbox, &pod, config).await?;
    until(SAMPLES, "there are figures", async || Ok(cpu_ns(&stats(&mut client, &idle).await?) > 0))
        .await?;

    let machine = machine_processes(case);
    ensure!(!machine.is_empty(), "the machine has no processes");
    signal(&machine, "-STOP")?;
    let outcome = ask_everything(&mut client, &sandbox, &idle).await;
    signal(&machine, "-CONT")?;
    outcome?;
    let frozen_at = timestamp(&stats(&mut client, &idle).await?);
    until(Duration::from_secs(60), "it tells again", async || {
        Ok(timestamp(&stats(&mut client, &idle).await?) > frozen_at)
    })
    .await
}

/// Each of these has to be answered at once, from what the node holds.
async fn ask_everything(client: &mut Client, sandbox: &str, id: &str) -> Result<()> {
    let before = timestamp(&stats(client, id).await?);
    let began = Instant::now();
    let mut last = before;
    while began.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        let now = stats(client, id).await?;
        let listed = list(client, cri::ContainerStatsFilter::default()).await?;
        ensure!(ids(&listed) == [id.to_owned()], "{listed:?}");
        let of_pod = pod_stats(client, sandbox).await?;
        ensure!(of_pod.containers.len() == 1, "{of_pod:?}");
        let all = client.runtime.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default());
        ensure!(all.await?.into_inner().stats.len() == 1);
        let metrics = client.runtime.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {});
        ensure!(metrics.await?.into_inner().pod_metrics.len() == 1);
        client.container(id).await?;
        client.sandbox(sandbox).await?;
        ensure!(asked.elapsed() < AT_ONCE, "it took {:?}", asked.elapsed());
        last = timestamp(&now);
    }
    let age = unix_nanos()? - last;
    ensure!(age > 1_000_000_000, "figures of a machine that tells nothing are {age} ns old");
    Ok(())
}

async fn changes_are_told_in_order(case: &mut Case) -> Result<()> {
    let mut client = case.client();
    let pod = case.pod("told");
    client.pull(&case.image).await?;
    let mut events =
        client.runtime.get_container_events(cri::GetEventsRequest {}).await?.into_inner();
    let sandbox = client.run_pod(&pod).await?;
    let config = container("one", &case.image, &["sleep", "600"]);
    let id = client.run_container(&sandbox, &pod, config).await?;
    client.stop_container(&id, 0).await?;
    let request = cri::RemoveContainerRequest { container_id: id.clone() };
    client.runtime.remove_container(request).await?;
    client.remove_pod(&sandbox).await?;

    let expected = [
        (&sandbox, Kind::ContainerCreatedEvent),
        (&sandbox, Kind::ContainerStartedEvent),
        (&id, Kind::ContainerCreatedEvent),
        (&id, Kind::ContainerStartedEvent),
        (&id, Kind::ContainerStoppedEvent),
        (&id, Kind::ContainerDeletedEvent),
        (&sandbox, Kind::ContainerStoppedEvent),
        (&sandbox, Kind::ContainerDeletedEvent),
    ];
    for (about, kind) in expected {
        let event = tokio::time::timeout(SAMPLES, events.message()).await;
        let event = event.with_context(|| format!("no {kind:?}"))??.context("the stream ended")?;
        ensure!(event.container_id == *about, "{kind:?} of {about} expected: {event:?}");
        ensure!(event.container_event_type == kind as i32, "{kind:?} expected: {event:?}");
        ensure!(event.created_at > 0);
        let of_pod = event.pod_sandbox_status.context("no status of the sandbox")?;
        ensure!(of_pod.metadata.is_some_and(|metadata| metadata.uid == "uid-told"));
        let state = event.containers_statuses.iter().find(|one| one.id == id).map(|one| one.state);
        let expected = match kind {
            _ if about == &sandbox => None,
            Kind::ContainerCreatedEvent => Some(cri::ContainerState::ContainerCreated),
            Kind::ContainerStartedEvent => Some(cri::ContainerState::ContainerRunning),
            Kind::ContainerStoppedEvent => Some(cri::ContainerState::ContainerExited),
            Kind::ContainerDeletedEvent => None,
        };
        ensure!(state == expected.map(|one| one as i32), "{kind:?}: {state:?}");
    }
    // The stream stays open: the case's end shows that it does not keep the daemon from ending.
    tokio::spawn(async move { while let Ok(Some(_)) = events.message().await {} });
    Ok(())
}

async fn limits_change_at_once_and_for_good(case: &mut Case) -> Result<()> {
    count_every_second(case).await?;
    let mut client = case.client();
    let pod = case.pod("limited");
    client.pull(&case.image).await?;
    let sandbox = client.run_pod(&pod).await?;
    // 20 MiB that nothing can take back.
    let hold = "dd if=/dev/zero of=/dev/shm/held bs=1M count=20 2>/dev/null; exec sleep 600";
    let mut config = container("one", &case.image, &["sh", "-c", hold]);
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(cri::LinuxContainerResources {
        cpu_shares: 512,
        memory_limit_in_bytes: 256 << 20,
        oom_score_adj: 300,
        ..Default::default()
    });
    let id = client.create_container(&sandbox, &pod, config).await?;

    // A created one starts with its new limits.
    let new = cri::LinuxContainerResources { oom_score_adj: 400, ..Default::default() };
    update(&mut client, &id, new).await?;
    let request = cri::StartContainerRequest { container_id: id.clone() };
    client.runtime.start_container(request).await?;
    ensure!(oom_score(&mut client, &id).await? == "400");
    until(SAMPLES, "it holds its memory", async || {
        let now = stats(&mut client, &id).await?;
        Ok(now.memory.is_some_and(|memory| value(&memory.usage_bytes) > 20 << 20))
    })
    .await?;

    let new = cri::LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 96 << 20,
        oom_score_adj: 500,
        ..Default::default()
    };
    update(&mut client, &id, new).await?;
    ensure!(oom_score(&mut client, &id).await? == "500");
    until(SAMPLES, "its cgroup has the new limit", async || {
        let now = stats(&mut client, &id).await?.memory.unwrap_or_default();
        let limit = value(&now.available_bytes) + value(&now.working_set_bytes);
        Ok(limit == 96 << 20)
    })
    .await?;

    let less =
        cri::LinuxContainerResources { memory_limit_in_bytes: 8 << 20, ..Default::default() };
    let refused =
        update(&mut client, &id, less).await.err().context("less than is used was taken")?;
    let refused = refused.to_string();
    ensure!(refused.contains("memory cannot be limited to 8388608 bytes"), "{refused}");

    for round in 0..2 {
        let status = client.container(&id).await?.status.unwrap_or_default();
        ensure!(status.state == cri::ContainerState::ContainerRunning as i32, "{status:?}");
        let shown = status.resources.and_then(|one| one.linux).unwrap_or_default();
        let expected = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 96 << 20,
            oom_score_adj: 500,
            ..Default::default()
        };
        ensure!(shown == expected, "round {round}: {shown:?}");
        if round == 0 {
            case.restart_hard().await?;
            client = case.client();
        }
    }

    // No machine here can be resized: it is recorded, and the kubelet's change goes through.
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: sandbox.clone(),
        resources: Some(cri::LinuxContainerResources {
            cpu_quota: 100_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 128 << 20,
            ..Default::default()
        }),
        overhead: None,
    };
    client.runtime.update_pod_sandbox_resources(request).await?;
    until(SAMPLES, "its machine is reached again", async || {
        Ok(client.exec(&id, &["true"]).await.is_ok())
    })
    .await?;
    client.stop_container(&id, 0).await?;
    let more = cri::LinuxContainerResources { cpu_shares: 2, ..Default::default() };
    let refused =
        update(&mut client, &id, more).await.err().context("one that ended was changed")?;
    ensure!(refused.to_string().contains("exited"), "{refused}");
    Ok(())
}

async fn every_metric_has_its_labels(client: &mut Client, sandbox: &str, id: &str) -> Result<()> {
    let request = cri::ListMetricDescriptorsRequest {};
    let described = client.runtime.list_metric_descriptors(request).await?.into_inner().descriptors;
    let labels: BTreeMap<_, _> =
        described.into_iter().map(|one| (one.name, one.label_keys)).collect();
    let request = cri::ListPodSandboxMetricsRequest {};
    let all = client.runtime.list_pod_sandbox_metrics(request).await?.into_inner().pod_metrics;
    let pod = all.into_iter().find(|one| one.pod_sandbox_id == sandbox).context("no metrics")?;
    let own = pod.container_metrics.iter().find(|one| one.container_id == id);
    let own = &own.context("no metrics of the container")?.metrics;
    for metric in pod.metrics.iter().chain(own) {
        let keys =
            labels.get(&metric.name).with_context(|| format!("{metric:?} is not described"))?;
        ensure!(keys.len() == metric.label_values.len(), "{metric:?} has labels {keys:?}");
    }
    let names: Vec<_> = pod.metrics.iter().map(|one| one.name.as_str()).collect();
    ensure!(names.contains(&"container_network_receive_bytes_total"), "{names:?}");
    let at_least = [
        ("container_cpu_usage_seconds_total", 1),
        ("container_memory_working_set_bytes", 1),
        ("container_memory_rss", 1),
        ("container_fs_usage_bytes", 5 << 20),
        ("container_fs_limit_bytes", 1 << 20),
        ("container_processes", 1),
        ("container_threads", 1),
        ("container_file_descriptors", 1),
        ("container_ulimits_soft", 1),
        ("container_start_time_seconds", 1_000_000_000),
        ("container_last_seen", 1_000_000_000),
    ];
    for (name, least) in at_least {
        let metric = own.iter().find(|one| one.name == name).with_context(|| name.to_owned())?;
        ensure!(value(&metric.value) >= least && metric.timestamp > 0, "{metric:?}");
        let keys = &labels[name];
        let label = |key: &str| {
            let at = keys.iter().position(|one| one == key);
            at.map(|at| metric.label_values[at].as_str()).unwrap_or_default()
        };
        let found = (label("container"), label("namespace"), label("pod"), label("name"));
        ensure!(found == ("worker", "default", "busy", id), "{metric:?}");
    }

    // The same in pieces.
    let request = cri::StreamPodSandboxMetricsRequest {};
    let mut pieces = client.runtime.stream_pod_sandbox_metrics(request).await?.into_inner();
    let piece = pieces.message().await?.context("no piece")?;
    ensure!(piece.pod_sandbox_metrics.len() == 1);
    let request = cri::StreamContainerStatsRequest::default();
    let mut pieces = client.runtime.stream_container_stats(request).await?.into_inner();
    ensure!(pieces.message().await?.context("no piece")?.container_stats.len() == 2);
    let request = cri::StreamContainersRequest::default();
    let mut pieces = client.runtime.stream_containers(request).await?.into_inner();
    ensure!(pieces.message().await?.context("no piece")?.containers.len() == 2);
    Ok(())
}

/// Waiting for samples would take ten times as long with the usual period.
async fn count_every_second(case: &mut Case) -> Result<()> {
    let (provider, registry) = (case.node.provider(), case.registry.host());
    case.node.write_config(&format!(
        "[handlers.{provider}]\nprovider = \"{provider}\"\n\
         [images.registries.\"{registry}\"]\nurl = \"http://{registry}\"\n\
         [agent]\nstats_period = \"1s\"\n"
    ))?;
    case.restart_hard().await
}

async fn update(
    client: &mut Client,
    id: &str,
    resources: cri::LinuxContainerResources,
) -> Result<()> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(resources),
        ..Default::default()
    };
    client.runtime.update_container_resources(request).await?;
    Ok(())
}

async fn oom_score(client: &mut Client, id: &str) -> Result<String> {
    let said = client.exec(id, &["cat", "/proc/1/oom_score_adj"]).await?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

async fn stats(client: &mut Client, id: &str) -> Result<cri::ContainerStats> {
    let request = cri::ContainerStatsRequest { container_id: id.to_owned() };
    client.runtime.container_stats(request).await?.into_inner().stats.context("no stats")
}

async fn list(
    client: &mut Client,
    filter: cri::ContainerStatsFilter,
) -> Result<Vec<cri::ContainerStats>> {
    let request = cri::ListContainerStatsRequest { filter: Some(filter) };
    Ok(client.runtime.list_container_stats(request).await?.into_inner().stats)
}

async fn pod_stats(client: &mut Client, id: &str) -> Result<cri::LinuxPodSandboxStats> {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    let stats = client.runtime.pod_sandbox_stats(request).await?.into_inner().stats;
    stats.and_then(|stats| stats.linux).context("no stats of the pod")
}

async fn pod_cpu_ns(client: &mut Client, id: &str) -> Result<u64> {
    let cpu = pod_stats(client, id).await?.cpu.context("no CPU time of the pod")?;
    Ok(value(&cpu.usage_core_nano_seconds))
}

fn machine_processes(case: &Case) -> Vec<u32> {
    let (dir, daemon) = (case.node.dir().display().to_string(), case.daemon.pid());
    // The agent in its namespaces runs under another name than the keeper that started it.
    let names = ["qemu-system", "infranetes-agent", "--isolated"];
    let is_machine = |line: &str| names.iter().any(|name| line.contains(name));
    let all = processes_with(&dir).into_iter();
    all.filter(|(pid, line)| Some(*pid) != daemon && is_machine(line)).map(|(pid, _)| pid).collect()
}

fn signal(pids: &[u32], signal: &str) -> Result<()> {
    for pid in pids {
        let sent = std::process::Command::new("kill").args([signal, &pid.to_string()]).status()?;
        ensure!(sent.success(), "{signal} could not be sent to {pid}");
    }
    Ok(())
}

fn unix_nanos() -> Result<i64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(i64::try_from(now.as_nanos())?)
}

fn ids(stats: &[cri::ContainerStats]) -> Vec<String> {
    let ids = stats.iter().filter_map(|one| Some(one.attributes.as_ref()?.id.clone()));
    let mut ids: Vec<_> = ids.collect();
    ids.sort();
    ids
}

fn sorted<const N: usize>(ids: [&String; N]) -> Vec<String> {
    let mut ids = ids.map(String::clone).to_vec();
    ids.sort();
    ids
}

fn layer(stats: &cri::ContainerStats) -> Result<cri::FilesystemUsage> {
    stats.writable_layer.clone().context("no writable layer")
}

fn cpu_ns(stats: &cri::ContainerStats) -> u64 {
    stats.cpu.as_ref().map_or(0, |cpu| value(&cpu.usage_core_nano_seconds))
}

fn nano_cores(stats: &cri::ContainerStats) -> u64 {
    stats.cpu.as_ref().map_or(0, |cpu| value(&cpu.usage_nano_cores))
}

fn timestamp(stats: &cri::ContainerStats) -> i64 {
    stats.cpu.as_ref().map_or(0, |cpu| cpu.timestamp)
}

fn value(value: &Option<cri::UInt64Value>) -> u64 {
    value.as_ref().map_or(0, |one| one.value)
}

/// Long enough for a few samples of an emulated machine.
const SAMPLES: Duration = Duration::from_secs(60);
/// A round of calls that wait for nobody, on a machine that is busy otherwise.
const AT_ONCE: Duration = Duration::from_secs(2);
