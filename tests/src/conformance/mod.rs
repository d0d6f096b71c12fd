//! The conformance suite: the specs of CRI's public suite, by name and with the same meaning, on the real daemon.
//!
//! A run has a network and mounts of its own (the program enters them before anything else), a registry on loopback that
//! stands for the public ones, and one daemon with one provider. Each spec has a name space for its pods and removes them.
//! What a runtime behind a machine cannot do is listed with its reason in `tests/conformance-expected.toml`.

pub mod context;
mod critest;
mod images;
mod report;
mod runner;
mod spec;
mod specs;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

pub use report::{Expected, Report};
pub use runner::Finding;
pub use spec::Verdict;

use crate::network::Cni;
use crate::node::{Node, Programs};
use crate::registry::Registry;
use context::Suite;
use critest::Critest;

/// What to run.
#[derive(Clone, Debug, clap::Parser)]
#[command(about = "Runs the conformance specs of CRI on the daemon.")]
pub struct Options {
    /// What pods become: virtual machines, or namespaces of this node.
    #[arg(long, default_value = "process", value_parser = ["qemu", "process"])]
    pub provider: String,
    /// Let this critest, the public suite, judge instead of the specs here: a program, built from kubernetes-sigs/cri-tools.
    #[arg(long, value_name = "PROGRAM")]
    pub critest: Option<PathBuf>,
    /// The shell of the images. critest compares what busybox's says; it has to look for commands on the search path.
    #[arg(long, value_name = "PROGRAM", default_value = "/bin/dash")]
    pub shell: PathBuf,
    /// Only specs whose whole name has this text in it; may be given several times.
    #[arg(long)]
    pub filter: Vec<String>,
    /// Only those marked as conformance.
    #[arg(long)]
    pub conformance: bool,
    /// How many run side by side; those of critest run one by one.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub parallel: u8,
    /// Write all findings to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write the markdown table to this file.
    #[arg(long)]
    pub table: Option<PathBuf>,
    /// Exit with 1 if a spec does not pass that is not in this list, or one passes that is.
    #[arg(long)]
    pub expected: Option<PathBuf>,
    /// Exit with 1 below the targets.
    #[arg(long)]
    pub gate: bool,
    /// Show the daemon's log at the end if a spec failed, and what critest says.
    #[arg(long)]
    pub log: bool,
}

/// Runs the suite.
pub async fn run(options: &Options) -> Result<()> {
    let specs = chosen(options);
    ensure!(!specs.is_empty(), "no spec has {:?} in its name", options.filter);
    let expected = options.expected.as_deref().map(Expected::read).transpose()?;
    let report = on_node(options, specs).await?;
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &options.table {
        std::fs::write(path, report.markdown()).with_context(|| path.display().to_string())?;
    }
    println!("\n{}", report.markdown());
    let compared = expected.map(|expected| expected.compare(&report));
    println!("{}", report.summary());
    if options.gate {
        report.gate()?;
    }
    compared.unwrap_or(Ok(()))
}

/// The whole names of all specs.
pub fn names() -> Vec<String> {
    specs::all().iter().map(spec::Spec::full_name).collect()
}

fn chosen(options: &Options) -> Vec<spec::Spec> {
    let mut specs = specs::all();
    specs.retain(|spec| {
        let name = spec.full_name();
        (options.filter.is_empty() || options.filter.iter().any(|text| name.contains(text)))
            && (!options.conformance || spec.is_conformance())
    });
    specs
}

async fn on_node(options: &Options, specs: Vec<spec::Spec>) -> Result<Report> {
    let programs = Programs::from_env()?;
    let registry = Registry::start().await?;
    let digest = images::push_all(&registry.host(), &options.shell).await?;
    let node = Node::new(&programs, &options.provider, &registry.host())?;
    let cni = Cni::new(node.dir())?;
    cni.write_bridge()?;
    node.write_config(&(config(&options.provider, &registry.host()) + &cni.config()))?;
    let daemon = node.start().await?;
    let suite = Suite {
        provider: options.provider.clone(),
        digest,
        state_limit: state_limit(&options.provider),
        programs,
    };
    let started = Instant::now();
    let tell = |finding: &Finding| {
        let Finding { name, verdict, seconds, .. } = finding;
        println!("{:>7} {seconds:>5.1} s  {name}", verdict.word());
        if *verdict != Verdict::Pass {
            println!("                 {}", verdict.reason());
        }
    };
    let findings = match &options.critest {
        Some(program) => {
            let wanted = specs.iter().map(spec::Spec::full_name).collect();
            let critest = Critest {
                program,
                dir: node.dir(),
                socket: &node.socket(),
                digest: &suite.digest,
                verbose: options.log,
            };
            let findings = critest.run(&texts(options), &wanted).await?;
            findings.iter().for_each(tell);
            findings
        }
        None => runner::run(&daemon.client(), &suite, specs, options.parallel.into(), &tell).await,
    };
    let report = Report::new(&options.provider, findings, started.elapsed().as_secs_f64());
    daemon.stop().await?;
    if options.log && report.all.failed > 0 {
        println!("\nthe daemon's log:\n{}", node.log());
    }
    Ok(report)
}

/// For critest, which cannot ask for both.
fn texts(options: &Options) -> Vec<String> {
    match options.conformance && options.filter.is_empty() {
        true => vec![spec::MARK.to_owned()],
        false => options.filter.clone(),
    }
}

/// The loopback registry stands for those of the specs' images.
fn config(provider: &str, registry: &str) -> String {
    let mut text = format!("[handlers.{provider}]\nprovider = \"{provider}\"\nnetwork = \"cni\"\n");
    // The specs mount directories of their own, from where temporary files are.
    let temporary = std::env::temp_dir().display().to_string();
    text += &format!("[mounts]\nshared_host_paths = [{temporary:?}]\n");
    for host in images::MIRRORED {
        text += &format!(
            "[images.registries.\"{host}\"]\nmirrors = [{{ url = \"http://{registry}\" }}]\n"
        );
    }
    text
}

/// An emulated machine is slow.
fn state_limit(provider: &str) -> Duration {
    match provider {
        "process" => Duration::from_secs(30),
        _ => Duration::from_secs(90),
    }
}
