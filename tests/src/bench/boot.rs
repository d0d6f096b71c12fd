//! What a sandbox costs over the bare boot of its machine.
//!
//! A bare boot is the very command line of a sandbox's QEMU with another initramfs, whose init prints one line. Both run in
//! turns, so that a busy machine slows both.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::{Output, Spread, Target};
use crate::client::{Client, Pod, container};
use crate::footprint::{processes_with, resident_bytes};
use crate::image::TestImage;
use crate::node::{Node, Programs};
use crate::registry::Registry;
use crate::wait::until;

/// How to run it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Pairs of a bare boot and a sandbox.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub pairs: u16,
    /// Where the figures go.
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Serialize)]
struct Figures {
    pairs: u16,
    bare: Spread,
    sandbox: Spread,
    /// When a sandbox reached each step, since it was wanted.
    steps: Vec<(String, Spread)>,
    ratio_at_median: f64,
    agent_rss_mib: f64,
    initramfs_mib: f64,
    daemon_idle_rss_mib: f64,
    daemon_listening_ms: Spread,
}

/// Runs the benchmark.
pub async fn run(options: &Options) -> Result<()> {
    let programs = Programs::from_env()?;
    let registry = Registry::start().await?;
    TestImage::busybox()?.push(&registry.host(), "busybox", "1").await?;
    let node = Node::new(&programs, "qemu", &registry.host())?;
    let listening = listening_times(&node).await?;
    let daemon = node.start().await?;
    let daemon_pid = daemon.pid().context("the daemon has ended")?;
    let idle = resident_bytes(daemon_pid).context("the daemon's memory is not readable")?;

    let mut client = daemon.client();
    let machine = Machine::look_at(&mut client, &node, &registry).await?;
    // A bare machine takes this over from here, as a sandbox's does from its provider.
    nix::sys::prctl::set_thp_disable(machine.small_pages)?;
    let (mut bare, mut sandbox, mut steps) = (Vec::new(), Vec::new(), Steps::default());
    for pair in 0..options.pairs {
        bare.push(bare_boot(&machine.arguments, &programs.guest).await?);
        sandbox.push(sandbox_boot(&mut client, &node, pair, &mut steps).await?);
        let (bare, sandbox) =
            (bare[bare.len() - 1].as_millis(), sandbox[sandbox.len() - 1].as_millis());
        println!("pair {:>2}: bare {bare:>5} ms, sandbox {sandbox:>5} ms", pair + 1);
    }
    daemon.stop().await?;

    let (bare, sandbox) = (Spread::of(&bare), Spread::of(&sandbox));
    let figures = Figures {
        pairs: options.pairs,
        bare,
        sandbox,
        steps: steps.spreads(),
        ratio_at_median: sandbox.median_ms / bare.median_ms,
        agent_rss_mib: machine.agent_rss_kib / 1024.0,
        initramfs_mib: mib(std::fs::metadata(programs.guest.join("initramfs"))?.len()),
        daemon_idle_rss_mib: mib(idle),
        daemon_listening_ms: Spread::of(&listening),
    };
    println!("bare boot:     min {:.0} ms, median {:.0} ms", bare.min_ms, bare.median_ms);
    println!("sandbox ready: min {:.0} ms, median {:.0} ms", sandbox.min_ms, sandbox.median_ms);
    for (name, spread) in &figures.steps {
        println!("  {name:<16} min {:>5.0} ms, median {:>5.0} ms", spread.min_ms, spread.median_ms);
    }
    options.output.conclude("boot", &figures.targets(), &figures)
}

impl Figures {
    /// From the issue that asked for them.
    fn targets(&self) -> Vec<Target> {
        let target = |name: &str, measured, at_most, unit| Target {
            name: name.to_owned(),
            measured,
            at_most,
            unit,
        };
        vec![
            target("sandbox ready / bare boot", self.ratio_at_median, 1.25, "x"),
            target("agent RSS in the guest", self.agent_rss_mib, 10.0, "MiB"),
            target("initramfs", self.initramfs_mib, 30.0, "MiB"),
            target("daemon idle RSS", self.daemon_idle_rss_mib, 20.0, "MiB"),
            target("daemon start to listening", self.daemon_listening_ms.median_ms, 50.0, "ms"),
        ]
    }
}

/// What the first machine tells: how it was started, and what its agent uses.
struct Machine {
    arguments: Vec<String>,
    /// Whether its memory has no huge pages.
    small_pages: bool,
    agent_rss_kib: f64,
}

impl Machine {
    async fn look_at(client: &mut Client, node: &Node, registry: &Registry) -> Result<Machine> {
        let image = format!("{}/busybox:1", registry.host());
        client.pull(&image).await?;
        let pod = pod(node, "first");
        let sandbox = client.run_pod(&pod).await?;
        let dir = node.dir().display().to_string();
        let found = processes_with(&dir).into_iter();
        let (pid, _) = found
            .clone()
            .find(|(_, line)| line.contains("qemu-system"))
            .context("no QEMU process belongs to the node")?;
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let mut arguments: Vec<String> =
            arguments.split_terminator('\0').map(str::to_owned).collect();
        name_kernel(&mut arguments, Path::new(&format!("/proc/{pid}/cwd")))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let small_pages = status.lines().any(|line| line == "THP_enabled:\t0");
        let agent_rss_kib = agent_rss_kib(client, &sandbox, &pod, &image).await?;
        client.remove_pod(&sandbox).await?;
        Ok(Machine { arguments, small_pages, agent_rss_kib })
    }
}

/// A sandbox's kernel may be a copy for the machine's user, named relative to the machine's directory, which goes with the machine.
fn name_kernel(arguments: &mut [String], directory: &Path) -> Result<()> {
    let option = arguments.iter().position(|word| word == "-kernel");
    let kernel = option.and_then(|at| arguments.get_mut(at + 1)).context("QEMU has no kernel")?;
    let path = directory.join(&*kernel);
    let path = path.canonicalize().with_context(|| format!("no kernel at {}", path.display()))?;
    *kernel = path.display().to_string();
    Ok(())
}

/// Read by a container that sees the machine's processes: the agent is number 1.
async fn agent_rss_kib(client: &mut Client, sandbox: &str, pod: &Pod, image: &str) -> Result<f64> {
    let mut config = container("looker", image, &["sleep", "600"]);
    let options =
        cri::NamespaceOption { pid: cri::NamespaceMode::Node as i32, ..Default::default() };
    let security = cri::LinuxContainerSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    };
    config.linux.get_or_insert_default().security_context = Some(security);
    let id = client.run_container(sandbox, pod, config).await?;
    let status = client.exec(&id, &["grep", "VmRSS", "/proc/1/status"]).await?;
    let status = String::from_utf8(status.stdout)?;
    let figure = status.split_whitespace().nth(1).context("no VmRSS of the agent")?;
    Ok(figure.parse()?)
}

/// When each step was reached, of all sandboxes, in the order of the steps.
#[derive(Default)]
struct Steps(Vec<(String, Vec<Duration>)>);

impl Steps {
    fn add(&mut self, timeline: Vec<(String, u64)>) {
        for (name, at) in timeline {
            let at = Duration::from_millis(at);
            match self.0.iter_mut().find(|(known, _)| *known == name) {
                Some((_, times)) => times.push(at),
                None => self.0.push((name, vec![at])),
            }
        }
    }

    fn spreads(self) -> Vec<(String, Spread)> {
        self.0.into_iter().map(|(name, times)| (name, Spread::of(&times))).collect()
    }
}

async fn listening_times(node: &Node) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..DAEMON_STARTS {
        let started = Instant::now();
        let mut daemon = node.spawn()?;
        let socket = node.socket();
        until(Duration::from_secs(10), "the daemon listens", async || {
            Ok(tokio::net::UnixStream::connect(&socket).await.is_ok())
        })
        .await?;
        times.push(started.elapsed());
        daemon.terminate()?;
        daemon.wait().await?;
    }
    Ok(times)
}

async fn sandbox_boot(
    client: &mut Client,
    node: &Node,
    number: u16,
    steps: &mut Steps,
) -> Result<Duration> {
    let pod = pod(node, &format!("pair-{number}"));
    let wanted = Instant::now();
    let sandbox = client.run_pod(&pod).await?;
    let ready = wanted.elapsed();
    steps.add(client.timeline(&sandbox).await?);
    client.remove_pod(&sandbox).await?;
    Ok(ready)
}

/// From QEMU's start until the line of init stands on the console.
async fn bare_boot(arguments: &[String], guest: &Path) -> Result<Duration> {
    let dir = tempfile::Builder::new().prefix("infranetes-bare-").tempdir()?;
    let arguments = bare_arguments(arguments, &guest.join("bare-initramfs"), dir.path());
    let started = Instant::now();
    let mut process = Command::new(&arguments[0])
        .args(&arguments[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} does not start", arguments[0]))?;
    let mut lines = BufReader::new(process.stdout.take().context("no console")?).lines();
    let mut seen = String::new();
    let line = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(BARE_LINE) {
                return Ok(());
            }
            seen.push_str(&line);
            seen.push('\n');
        }
        ensure!(!seen.is_empty(), "the bare machine said nothing");
        anyhow::bail!("the bare machine ended without its line; its console:\n{seen}")
    };
    tokio::time::timeout(BARE_LIMIT, line)
        .await
        .context("the bare machine never said its line")??;
    let took = started.elapsed();
    process.kill().await?;
    Ok(took)
}

/// The same machine without what belongs to one sandbox: console on standard output, control socket and user-data elsewhere.
fn bare_arguments(arguments: &[String], initramfs: &Path, dir: &Path) -> Vec<String> {
    let mut bare = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let Some(value) =
            OPTIONS_OF_A_SANDBOX.contains(&word.as_str()).then(|| words.next()).flatten()
        else {
            bare.push(word.clone());
            continue;
        };
        let value = match word.as_str() {
            "-initrd" => initramfs.display().to_string(),
            "-fw_cfg" => {
                format!("name=opt/infranetes/user-data,file={}", empty_file(dir).display())
            }
            "-smbios" => format!("type=11,path={}", empty_file(dir).display()),
            "-qmp" => format!("unix:{}/qmp,server=on,wait=off", dir.display()),
            "-chardev" if value.starts_with("socket") => {
                format!("socket,id={},path={}/qmp,server=on,wait=off", id_of(value), dir.display())
            }
            "-chardev" => format!("stdio,signal=off,id={}", id_of(value)),
            "-pidfile" => dir.join("pid").display().to_string(),
            _ => value.clone(),
        };
        bare.extend([word.clone(), value]);
    }
    bare
}

fn empty_file(dir: &Path) -> PathBuf {
    let path = dir.join("user-data");
    // A machine without user-data is what a bare one is; if the file cannot be made, QEMU says so.
    let _ = std::fs::write(&path, "{}");
    path
}

fn id_of(chardev: &str) -> &str {
    let id = chardev.split(',').find_map(|part| part.strip_prefix("id="));
    id.unwrap_or("console")
}

fn pod(node: &Node, name: &str) -> Pod {
    Pod {
        name: name.to_owned(),
        handler: String::new(),
        log_directory: node.log_directory().display().to_string(),
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

const OPTIONS_OF_A_SANDBOX: [&str; 6] =
    ["-initrd", "-fw_cfg", "-smbios", "-qmp", "-chardev", "-pidfile"];
/// What the init of the bare initramfs prints; `cargo xtask guest` makes it.
const BARE_LINE: &str = "infranetes-bare-ready";
const BARE_LIMIT: Duration = Duration::from_secs(120);
const DAEMON_STARTS: usize = 5;
