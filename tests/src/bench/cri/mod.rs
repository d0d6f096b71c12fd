//! The calls of CRI, ours and those of Debian's containerd, in one run with the same client and the same images.
//!
//! Both stand in the run's own namespaces, with pods of namespaces: ours by the `process` provider, theirs by runc. Rounds of
//! the two alternate, so that a busy machine slows both.

mod calls;
mod containerd;
mod flow;
mod scale;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use self::calls::Samples;
use self::containerd::Containerd;
use super::{Output, Target};
use crate::client::Client;
use crate::image::TestImage;
use crate::node::{Node, Programs};
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
    /// Sandboxes of the fake provider that the daemon holds; may be given several times.
    #[arg(long, default_values_t = [100, 1000, 5000])]
    pub sandboxes: Vec<usize>,
    /// Leave containerd out: only what is ours.
    #[arg(long)]
    pub alone: bool,
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
    logs: std::path::PathBuf,
}

#[derive(Debug, Default, Serialize)]
struct Figures {
    /// By side, then by call: one after another.
    sequential: BTreeMap<&'static str, BTreeMap<&'static str, Percentiles>>,
    /// Likewise, 16 at a time.
    parallel: BTreeMap<&'static str, BTreeMap<&'static str, Percentiles>>,
    /// MB of log a second, by side.
    log_mb_per_s: BTreeMap<&'static str, f64>,
    /// MB of output of a command a second, by side.
    exec_mb_per_s: BTreeMap<&'static str, f64>,
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
    {
        let node = Node::new(&programs, "process", &host)?;
        let daemon = node.start().await?;
        let theirs = match options.alone {
            true => None,
            false => Some(Containerd::start(&host).await?),
        };
        let side = |name, client, logs| Side {
            name,
            client,
            image: format!("{host}/busybox:1"),
            pulled: format!("{host}/pulled:1"),
            logs,
        };
        let mut sides = vec![side(OURS, daemon.client(), node.log_directory())];
        if let Some(theirs) = &theirs {
            sides.push(side(THEIRS, theirs.client().await?, theirs.logs()));
        }
        let measured = measure(options, &mut sides, &mut figures).await;
        measured.with_context(|| {
            let theirs = theirs.as_ref().map(Containerd::log).unwrap_or_default();
            format!("our log:\n{}\ntheir log:\n{theirs}", node.log())
        })?;
        if let Some(theirs) = theirs {
            theirs.stop().await?;
        }
        daemon.stop().await?;
    }
    for count in &options.sandboxes {
        let held = scale::hold(&programs, &host, *count).await;
        figures.scale.push(held.with_context(|| format!("{count} sandboxes"))?);
    }
    figures.show();
    options.output.conclude("cri", &figures.targets(), &figures)
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
        let log = flow::log(side, options.log_mb).await;
        figures.log_mb_per_s.insert(side.name, log.with_context(|| side.name.to_owned())?);
        let exec = flow::exec(side).await;
        figures.exec_mb_per_s.insert(side.name, exec.with_context(|| side.name.to_owned())?);
    }
    Ok(())
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
    fn show(&self) {
        for (title, calls) in
            [("one after another", &self.sequential), ("16 at a time", &self.parallel)]
        {
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
        println!(
            "\nlog MB/s: {:?}, output of a command MB/s: {:?}",
            self.log_mb_per_s, self.exec_mb_per_s
        );
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
        for (manner, calls) in [("", &self.sequential), (" x16", &self.parallel)] {
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
        if let (Some(ours), Some(theirs)) =
            (self.log_mb_per_s.get(OURS), self.log_mb_per_s.get(THEIRS))
        {
            ratio("time for a log".to_owned(), *theirs, *ours, 1.0);
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

const OURS: &str = "infranetes";
const THEIRS: &str = "containerd";
