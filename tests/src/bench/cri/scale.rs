//! What the daemon needs to hold many sandboxes, and how long its lists take then.
//!
//! The sandboxes come out of a record that is written before the daemon starts, one container each, with machines of the fake
//! provider, which does not know them: a node whose cloud lost everything. What a live session needs is not in these figures.
//! Labels and annotations are those that a kubelet writes.

use std::fmt;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use infranetes_core::record::{Change, Entry, RecordStore, RedbStore, Table};
use infranetes_cri::api::v1 as cri;
use serde::Serialize;
use serde_json::{Value, json};

use super::Percentiles;
use crate::footprint::resident_bytes;
use crate::node::{Node, Programs};

/// The figures of one count.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Held {
    pub(super) sandboxes: usize,
    pub(super) rss_mib: f64,
    list_pod_sandbox: Percentiles,
    list_containers: Percentiles,
    list_container_stats: Percentiles,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p50 = |times: &Percentiles| format!("{:.2} ms", times.p50_ms);
        write!(
            f,
            "{:>6} sandboxes: {:.1} MiB; ListPodSandbox {}, ListContainers {}, ListContainerStats {} (p50)",
            self.sandboxes,
            self.rss_mib,
            p50(&self.list_pod_sandbox),
            p50(&self.list_containers),
            p50(&self.list_container_stats),
        )
    }
}

/// Starts a daemon over so many sandboxes and measures it.
pub(super) async fn hold(programs: &Programs, registry: &str, count: usize) -> Result<Held> {
    let node = Node::new(programs, "fake", registry)?;
    write_record(&node, count).await.context("the record could not be written")?;
    let daemon = node.start().await?;
    let runtime = &mut daemon.client().runtime;
    let request = cri::ListPodSandboxRequest::default();
    let listed = runtime.list_pod_sandbox(request).await?.into_inner().items.len();
    ensure!(listed == count, "{listed} of {count} sandboxes are listed");
    let (mut sandboxes, mut containers, mut stats) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
        sandboxes.push(started.elapsed());
        let started = Instant::now();
        runtime.list_containers(cri::ListContainersRequest::default()).await?;
        containers.push(started.elapsed());
        let started = Instant::now();
        runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await?;
        stats.push(started.elapsed());
    }
    let pid = daemon.pid().context("the daemon has ended")?;
    let rss = resident_bytes(pid).context("the daemon's memory is not readable")?;
    daemon.stop().await?;
    Ok(Held {
        sandboxes: count,
        rss_mib: rss as f64 / f64::from(1 << 20),
        list_pod_sandbox: Percentiles::of(sandboxes),
        list_containers: Percentiles::of(containers),
        list_container_stats: Percentiles::of(stats),
    })
}

async fn write_record(node: &Node, count: usize) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(node.path("state"))?;
    let store = RedbStore::open(&node.path("state").join("records.redb")).await?;
    let (sandbox, container): (Value, Value) =
        (serde_json::from_str(SANDBOX)?, serde_json::from_str(CONTAINER)?);
    let mut changes = Vec::new();
    for number in 0..count {
        let (id, container_id) = (format!("{number:064x}"), format!("c{number:063x}"));
        let (mut sandbox, mut container) = (sandbox.clone(), container.clone());
        sandbox["record"]["id"] = json!(id);
        sandbox["record"]["goal"] = json!("run");
        sandbox["record"]["failure"] = Value::Null;
        let spec = &mut sandbox["record"]["spec"];
        let (pod, uid) = (format!("pod-{number}"), format!("uid-{number}"));
        (spec["handler"], spec["uid"]) = (json!("fake"), json!(uid));
        spec["labels"] = labels_of_pod(&pod, &uid);
        spec["annotations"] = json!({
            "kubernetes.io/config.seen": "2026-01-01T00:00:00.000000000Z",
            "kubernetes.io/config.source": "api",
        });
        // Few pods ask for any.
        spec["sysctls"] = json!({});
        let machine = &mut sandbox["record"]["machine"];
        (machine["provider"], machine["doomed"]) = (json!("fake"), json!(false));
        (machine["id"], machine["name"]) =
            (json!(format!("i-{number}")), json!(format!("m-{number}")));
        container["record"]["id"] = json!(container_id);
        container["record"]["sandbox"] = json!(id);
        let spec = &mut container["record"]["spec"];
        spec["labels"] = labels_of_pod(&pod, &uid);
        spec["labels"]["io.kubernetes.container.name"] = json!("main");
        spec["annotations"] = json!({
            "io.kubernetes.container.hash": "2b8c3ac9",
            "io.kubernetes.container.restartCount": "0",
            "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
            "io.kubernetes.container.terminationMessagePolicy": "File",
            "io.kubernetes.pod.terminationGracePeriod": "30",
        });
        (spec["resources"]["unified"], spec["resources"]["hugepage_limits"]) =
            (json!({}), json!({}));
        changes.push(put(Table::Sandboxes, id, &sandbox)?);
        changes.push(put(Table::Containers, container_id, &container)?);
    }
    Ok(store.commit(changes).await?)
}

fn labels_of_pod(name: &str, uid: &str) -> Value {
    json!({
        "app": "web",
        "io.kubernetes.pod.name": name,
        "io.kubernetes.pod.namespace": "default",
        "io.kubernetes.pod.uid": uid,
    })
}

fn put(table: Table, key: String, record: &Value) -> Result<Change> {
    Ok(Change::Put(Entry { table, key, value: serde_json::to_vec(record)? }))
}

const ROUNDS: usize = 30;
/// Records as they are stored, from the engine's own tests.
const SANDBOX: &str = include_str!("../../../../infranetes-core/tests/records/v1-sandbox.json");
const CONTAINER: &str = include_str!("../../../../infranetes-core/tests/records/v1-container.json");
