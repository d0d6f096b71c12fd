//! The calls of CRI, ours and those of Debian's containerd, in one run with the same client and the same images.
//!
//! Both stand in the run's own namespaces, with pods of namespaces: ours by the `process` provider, theirs by runc. Rounds of
//! the two alternate, so that a busy machine slows both. `Version`, which says nothing of the node, is what any call costs.
//! Only the log is also measured with a real machine, where it comes over a network and out of a kernel of its own.

mod calls;
mod containerd;
mod flow;
mod machine;
mod many;
mod scale;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use self::calls::Samples;
use self::containerd::Containerd;
use super::{Output, Target};
use crate::client::Client;
use crate::image::TestImage;
use crate::node::{Daemon, Node, Programs};
use crate::registry::Registry;

/// How to run it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Lives of a pod, one after another, on each side.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub rounds: u16,
    /// What a container writes to its log, in MB.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=2000))]
    pub log_mb: u16,
    /// What a container in a virtual machine writes to its log, in MB; 0 leaves the machine out.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=2000))]
    pub machine_log_mb: u16,
    /// Pods, with a container each, that both sides hold while lists are timed; 0 leaves that out.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=500))]
    pub pods: u16,
    /// Sandboxes of the fake provider that the daemon holds; may be given several times.
    #[arg(long, default_values_t = [100, 1000, 5000])]
    pub sandboxes: Vec<usize>,
    /// Leave containerd out: only what is ours.
    #[arg(long)]
    pub alone: bool,
    /// Only the virtual machine: nothing to compare it with.
    #[arg(long, conflicts_with = "alone")]
    pub machine_alone: bool,
    /// Where the figures go.
    #[command(flatten)]
    pub output: Output,
}

/// One side of the comparison.
pub(super) struct Side {
    name: &'static str,
    client: Client,
    /// As this side has to call it.
    image: String,
    /// A second one, to be pulled again and again.
    pulled: String,
    logs: PathBuf,
    /// The daemon.
    pid: u32,
    /// What this side starts has it on its command line.
    dir: PathBuf,
}

#[derive(Debug, Default, Serialize)]
struct Figures {
    /// By side, then by call: one after another.
    sequential: BTreeMap<&'static str, BTreeMap<&'static str, Percentiles>>,
    /// Likewise, 16 at a time.
    parallel: BTreeMap<&'static str, BTreeMap<&'static str, Percentiles>>,
    /// Likewise, one after another, while both hold many pods.
    many: BTreeMap<&'static str, BTreeMap<&'static str, Percentiles>>,
    /// What both need for these pods: MiB of the daemon, and with all that runs beside the containers.
    many_mib: BTreeMap<&'static str, many::Memory>,
    /// MB of log a second, by side.
    log_mb_per_s: BTreeMap<&'static str, f64>,
    /// MB of output of a command a second, by side: the answer of ExecSync.
    exec_mb_per_s: BTreeMap<&'static str, f64>,
    /// Likewise, over a link.
    stream_mb_per_s: BTreeMap<&'static str, f64>,
    /// Of a virtual machine, and what it can do at all.
    machine: Option<machine::Rates>,
    /// What the daemon needs for sandboxes.
    scale: Vec<scale::Held>,
}

/// Of some times, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Percentiles {
    p50_ms: f64,
    p99_ms: f64,
    count: usize,
}

/// Runs the benchmark.
pub async fn run(options: &Options) -> Result<()> {
    let programs = Programs::from_env()?;
    let registry = Registry::start().await?;
    let host = registry.host();
    TestImage::busybox()?.push(&host, "busybox", "1").await?;
    TestImage::busybox()?
        .with_config(serde_json::json!({ "Env": ["PATH=/bin"], "Cmd": ["true"] }))
        .push(&host, "pulled", "1")
        .await?;
    let mut figures = Figures::default();
    if !options.machine_alone {
        side_by_side(options, &programs, &host, &mut figures).await?;
    }
    if options.machine_log_mb > 0 {
        let rates = in_machine(options, &programs, &host).await.context("a virtual machine")?;
        figures.log_mb_per_s.insert(MACHINE, rates.log);
        figures.machine = Some(rates);
    }
    for count in options.sandboxes.iter().filter(|_| !options.machine_alone) {
        let held = scale::hold(&programs, &host, *count).await;
        figures.scale.push(held.with_context(|| format!("{count} sandboxes"))?);
    }
    figures.show();
    options.output.conclude("cri", &figures.targets(), &figures)
}

async fn side_by_side(
    options: &Options,
    programs: &Programs,
    host: &str,
    figures: &mut Figures,
) -> Result<()> {
    let node = Node::new(programs, "process", host)?;
    let daemon = node.start().await?;
    let theirs = match options.alone {
        true => None,
        false => Some(Containerd::start(host).await?),
    };
    let mut sides = vec![Side::ours(OURS, &node, &daemon, host)?];
    if let Some(theirs) = &theirs {
        sides.push(Side {
            name: THEIRS,
            client: theirs.client().await?,
            logs: theirs.logs(),
            pid: theirs.pid()?,
            dir: theirs.dir(),
            ..Side::ours(OURS, &node, &daemon, host)?
        });
    }
    let measured = measure(options, &mut sides, figures).await;
    measured.with_context(|| {
        let theirs = theirs.as_ref().map(Containerd::log).unwrap_or_default();
        format!("our log:\n{}\ntheir log:\n{theirs}", node.log())
    })?;
    if let Some(theirs) = theirs {
        theirs.stop().await?;
    }
    daemon.stop().await
}

async fn in_machine(options: &Options, programs: &Programs, host: &str) -> Result<machine::Rates> {
    let node = Node::new(programs, "qemu", host)?;
    let daemon = node.start().await?;
    let mut side = Side::ours(MACHINE, &node, &daemon, host)?;
    let rates = machine::measure(&mut side, options.machine_log_mb).await;
    let rates = rates.with_context(|| format!("our log:\n{}", node.log()))?;
    daemon.stop().await?;
    Ok(rates)
}

async fn measure(options: &Options, sides: &mut [Side], figures: &mut Figures) -> Result<()> {
    let mut samples: Vec<Samples> = sides.iter().map(|_| Samples::default()).collect();
    // The first life brings images and caches; it does not count.
    for round in 0..=options.rounds {
        for (side, samples) in sides.iter_mut().zip(&mut samples) {
            let mut life = Samples::default();
            let name = format!("round-{round}");
            calls::life(side, &name, &mut life)
                .await
                .with_context(|| format!("{}: round {round}", side.name))?;
            if round > 0 {
                samples.add(life);
            }
        }
    }
    for (side, samples) in sides.iter_mut().zip(samples) {
        figures.sequential.insert(side.name, samples.percentiles());
        let parallel = calls::in_parallel(side).await;
        let parallel = parallel.with_context(|| format!("{}: in parallel", side.name))?;
        figures.parallel.insert(side.name, parallel.percentiles());
    }
    // In turns, and the best of each: what else the machine does only slows.
    for _ in 0..FLOWS {
        for side in sides.iter_mut() {
            let flows = figures.flows(options, side).await;
            flows.with_context(|| format!("{}: output in bulk", side.name))?;
        }
    }
    for side in sides.iter_mut().filter(|_| options.pods > 0) {
        let held = many::hold(side, options.pods).await;
        let (samples, memory) = held.with_context(|| format!("{}: many pods", side.name))?;
        figures.many.insert(side.name, samples.percentiles());
        figures.many_mib.insert(side.name, memory);
    }
    Ok(())
}

impl Side {
    fn ours(name: &'static str, node: &Node, daemon: &Daemon, host: &str) -> Result<Side> {
        Ok(Side {
            name,
            client: daemon.client(),
            image: format!("{host}/busybox:1"),
            pulled: format!("{host}/pulled:1"),
            logs: node.log_directory(),
            pid: daemon.pid().context("the daemon has ended")?,
            dir: node.dir().to_owned(),
        })
    }
}

impl Percentiles {
    fn of(mut times: Vec<Duration>) -> Percentiles {
        times.sort();
        let at = |share: f64| {
            let last = times.len().saturating_sub(1);
            // A share of a length is no index out of it.
            let index = (last as f64 * share).round() as usize;
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
        };
        Percentiles { p50_ms: at(0.5), p99_ms: at(0.99), count: times.len() }
    }
}

impl Figures {
    async fn flows(&mut self, options: &Options, side: &mut Side) -> Result<()> {
        let better = |known: &mut f64, rate: f64| *known = known.max(rate);
        let log = flow::log(side, options.log_mb).await.context("a log")?;
        better(self.log_mb_per_s.entry(side.name).or_default(), log);
        let exec = flow::exec(side).await.context("ExecSync")?;
        better(self.exec_mb_per_s.entry(side.name).or_default(), exec);
        let stream = flow::stream(side, STREAM_MB).await.context("a link")?;
        better(self.stream_mb_per_s.entry(side.name).or_default(), stream);
        Ok(())
    }

    fn show(&self) {
        for (title, calls) in [
            ("one after another", &self.sequential),
            ("16 at a time", &self.parallel),
            ("with many pods", &self.many),
        ] {
            let Some(ours) = calls.get(OURS) else { continue };
            println!("\n{title:<24} {:>20} {:>20}  ratio", "ours p50 / p99 ms", "containerd");
            for (call, figure) in ours {
                let other = calls.get(THEIRS).and_then(|calls| calls.get(call));
                let pair = |one: &Percentiles| format!("{:.2} / {:.2}", one.p50_ms, one.p99_ms);
                let ratio = other.map(|other| format!("{:.2}", figure.p50_ms / other.p50_ms));
                println!(
                    "{call:<24} {:>20} {:>20}  {}",
                    pair(figure),
                    other.map(pair).unwrap_or_default(),
                    ratio.unwrap_or_default(),
                );
            }
        }
        println!();
        for (title, figures) in [
            ("log", &self.log_mb_per_s),
            ("output of a command, ExecSync", &self.exec_mb_per_s),
            ("output of a command, link", &self.stream_mb_per_s),
        ] {
            let figures = figures.iter().map(|(side, rate)| format!("{side} {rate:.1} MB/s"));
            println!("{title}: {}", figures.collect::<Vec<_>>().join(", "));
        }
        if let Some(machine) = &self.machine {
            println!("{machine}");
        }
        for (side, many::Memory { daemon, all }) in &self.many_mib {
            println!("memory with many pods: {side} {daemon:.1} MiB, with helpers {all:.1} MiB");
        }
        for held in &self.scale {
            println!("{held}");
        }
    }

    /// From the issue that asked for them.
    fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut ratio = |name: String, ours: f64, theirs: f64, at_most: f64| {
            targets.push(Target { name, measured: ours / theirs, at_most, unit: "x" });
        };
        let manners =
            [("", &self.sequential), (" x16", &self.parallel), (" with many pods", &self.many)];
        for (manner, calls) in manners {
            let (Some(ours), Some(theirs)) = (calls.get(OURS), calls.get(THEIRS)) else { continue };
            for (call, ours) in ours {
                let Some(theirs) = theirs.get(call) else { continue };
                let at_most = match *call {
                    call if calls::READS.contains(&call) => 0.5,
                    "StartContainer" if manner.is_empty() => 1.0,
                    _ => continue,
                };
                ratio(format!("{call}{manner}"), ours.p50_ms, theirs.p50_ms, at_most);
            }
        }
        // As times, because less is better everywhere else.
        let logs = &self.log_mb_per_s;
        for (name, side, at_most) in
            [("time for a log", OURS, 1.0), ("time for a log of a VM", MACHINE, 2.0)]
        {
            if let (Some(ours), Some(theirs)) = (logs.get(side), logs.get(THEIRS)) {
                ratio(name.to_owned(), *theirs, *ours, at_most);
            }
        }
        for held in &self.scale {
            targets.push(Target {
                name: format!("RSS with {} sandboxes", held.sandboxes),
                measured: held.rss_mib,
                at_most: 30.0 + held.sandboxes as f64 * 16.0 / 1024.0,
                unit: "MiB",
            });
        }
        targets
    }
}

const FLOWS: usize = 3;
const STREAM_MB: u16 = 100;
const OURS: &str = "infranetes";
const THEIRS: &str = "containerd";
const MACHINE: &str = "infranetes (VM)";
