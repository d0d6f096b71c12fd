//! The main job, shown: a container runs in a real virtual machine.
//!
//! Everything goes through CRI, as a kubelet would do it; what is said about the machine is looked up from outside.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::client::{Client, Pod, container};
use crate::footprint::{Footprint, nothing_left, processes_with};
use crate::image::TestImage;
use crate::node::{Node, Programs};
use crate::registry::Registry;
use crate::wait::until;

/// How the demo is to run.
#[derive(Clone, Debug, clap::Parser)]
#[command(about = "Runs a pod with two containers in a real virtual machine, through CRI alone.")]
pub struct Options {
    /// An image to run instead of the one made here; it needs `sh`, `true`, `uname`, `httpd` and `wget`.
    #[arg(long)]
    pub image: Option<String>,
    /// Leave the pod up until Ctrl-C.
    #[arg(long)]
    pub keep: bool,
    /// What the pod becomes: a virtual machine, or namespaces of this node.
    #[arg(long, default_value = "qemu", value_parser = ["qemu", "process"])]
    pub provider: String,
}

/// Runs the demo; cleans up whatever happens, Ctrl-C included.
pub async fn run(options: &Options) -> Result<()> {
    let before = Footprint::take(&[]);
    let programs = Programs::from_env()?;
    let outcome = {
        let registry = Registry::start().await?;
        let node = Node::new(&programs, &options.provider, &registry.host())?;
        let outcome = on_node(options, &registry, &node).await;
        if outcome.as_ref().is_err_and(|error| !error.is::<Interrupted>()) {
            eprintln!("\nthe daemon's log ends with:\n{}", tail(&node.log(), LOG_LINES));
        }
        outcome
    };
    let left = nothing_left(&before, &[]).await.context("the demo did not clean up");
    outcome.and(left)?;
    step("nothing is left: no process, no mount, no namespace, no cgroup");
    Ok(())
}

/// Between the daemon's start and its end. The pod goes first, whatever happened.
async fn on_node(options: &Options, registry: &Registry, node: &Node) -> Result<()> {
    let daemon = node.start().await?;
    step("infranetes-cri answers on its socket");
    let mut shown = Shown { client: daemon.client(), begun: None };
    let outcome = tokio::select! {
        // With `--keep`, the demo itself waits for the interruption: that one is its good end.
        biased;
        outcome = show(options, registry, node, &mut shown) => outcome,
        _ = interrupted() => Err(Interrupted.into()),
    };
    let removed = shown.remove().await;
    daemon.stop().await?;
    outcome.and(removed)
}

struct Shown {
    client: Client,
    /// Asked for, whether or not the answer came.
    begun: Option<Pod>,
}

impl Shown {
    /// A pod that still boots is in no list; the same wish again joins it, and tells its id.
    async fn remove(&mut self) -> Result<()> {
        let Some(pod) = self.begun.take() else { return Ok(()) };
        let joined = self.client.run_pod(&pod).await;
        let sandbox =
            joined.context("the pod never became ready; the daemon destroys its machine")?;
        self.client.remove_pod(&sandbox).await.context("the pod could not be removed")?;
        step("stopped and removed: containers, pod, machine");
        Ok(())
    }
}

async fn show(
    options: &Options,
    registry: &Registry,
    node: &Node,
    shown: &mut Shown,
) -> Result<()> {
    let image = match &options.image {
        Some(image) => image.clone(),
        None => {
            TestImage::busybox()?.push(&registry.host(), "demo/busybox", "1").await?;
            format!("{}/demo/busybox:1", registry.host())
        }
    };
    let mut client = shown.client.clone();
    let pulled = Instant::now();
    client.pull(&image).await?;
    step(&format!("pulled {image} once, onto the node, in {}", seconds(pulled.elapsed())));

    let pod = Pod {
        name: "demo".to_owned(),
        handler: String::new(),
        log_directory: node.log_directory().display().to_string(),
    };
    let wanted = Instant::now();
    shown.begun = Some(pod.clone());
    let sandbox = client.run_pod(&pod).await?;
    step(&format!("the pod is ready after {}", seconds(wanted.elapsed())));

    let server = container("server", &image, &["sh", "-c", SERVER]);
    let server = client.run_container(&sandbox, &pod, server).await?;
    step(&format!("the first container runs after {}", seconds(wanted.elapsed())));
    let reader = container("reader", &image, &["sh", "-c", READER]);
    let reader = client.run_container(&sandbox, &pod, reader).await?;
    step("the second container runs");

    show_log(&pod, "reader").await?;
    show_exec(&mut client, &reader).await?;
    prove_machine(&mut client, options, node, &reader).await?;
    print_timeline(&mut client, &sandbox, &server).await?;

    if options.keep {
        println!("\nThe pod stays until Ctrl-C. CRI socket: unix://{}", node.socket().display());
        interrupted().await;
    }
    Ok(())
}

async fn show_log(pod: &Pod, name: &str) -> Result<()> {
    let path = PathBuf::from(&pod.log_directory).join(format!("{name}.log"));
    let mut text = String::new();
    until(LOG_LIMIT, "the two containers met on localhost", async || {
        text = std::fs::read_to_string(&path).unwrap_or_default();
        Ok(text.contains(GREETING))
    })
    .await
    .with_context(|| format!("the log says:\n{text}"))?;
    let line = text.lines().find(|line| line.contains(GREETING)).unwrap_or_default();
    step(&format!("the containers see each other on localhost; the log says: {line}"));
    Ok(())
}

async fn show_exec(client: &mut Client, container: &str) -> Result<()> {
    for (command, expected) in [("true", 0), ("exit 7", 7)] {
        let result = client.exec(container, &["sh", "-c", command]).await?;
        ensure!(result.exit_code == expected, "{command:?} gave exit code {}", result.exit_code);
        step(&format!("exec sh -c {command:?}: exit code {}", result.exit_code));
    }
    Ok(())
}

/// What only a machine of its own can show.
async fn prove_machine(
    client: &mut Client,
    options: &Options,
    node: &Node,
    container: &str,
) -> Result<()> {
    let inside = client.exec(container, &["uname", "-r"]).await?;
    let inside = String::from_utf8_lossy(&inside.stdout).trim().to_owned();
    let outside = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    if options.provider != "qemu" {
        step(&format!("kernel of the container: {inside}; it is the node's own ({outside})"));
        return Ok(());
    }
    ensure!(inside != outside, "the container runs on the node's kernel, {outside}");
    let machines = qemu_of(node.dir());
    ensure!(machines.len() == 1, "expected one QEMU process, found {machines:?}");
    step(&format!("kernel of the container: {inside}; kernel of the node: {outside}"));
    step(&format!("the machine is process {} of the node, seen from outside", machines[0]));
    Ok(())
}

fn qemu_of(dir: &Path) -> Vec<u32> {
    let found = processes_with(&dir.display().to_string());
    let qemu = found.into_iter().filter(|(_, line)| line.contains("qemu-system"));
    qemu.map(|(pid, _)| pid).collect()
}

/// Where the start-up time went, from what the daemon recorded.
async fn print_timeline(client: &mut Client, sandbox: &str, container: &str) -> Result<()> {
    let steps = client.timeline(sandbox).await?;
    println!("\nWhere the time went (milliseconds since the pod was wanted):");
    for (name, at) in &steps {
        println!("  {name:<16} {at:>7}");
    }
    let container = client.container(container).await?;
    if let Some(timeline) = container.info.get("timeline") {
        let steps: Vec<(String, u64)> = serde_json::from_str(timeline)?;
        println!("and for its first container (milliseconds since it was wanted):");
        for (name, at) in &steps {
            println!("  {name:<16} {at:>7}");
        }
    }
    println!();
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error("interrupted; everything was removed")]
struct Interrupted;

async fn interrupted() {
    // Where no signal can be listened for, the demo ends by itself.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn step(text: &str) {
    println!("==> {text}");
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

const GREETING: &str = "hello from the other container";
const SERVER: &str = "mkdir -p /www && echo 'hello from the other container' > /www/index.html && exec httpd -f -p 127.0.0.1:8080 -h /www";
const READER: &str = "while :; do wget -q -O - http://127.0.0.1:8080/ 2>/dev/null; sleep 1; done";
const LOG_LIMIT: Duration = Duration::from_secs(60);
const LOG_LINES: usize = 40;
