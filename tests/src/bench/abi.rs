//! What the boundary of a plugin costs: calls, streams, loading; and what an author waits for.
//!
//! `bench_host`, an example of the loader built for release, times the same call directly, through a plugin in its process, through one
//! in a process of its own, and over gRPC on a unix socket, in turns. This reads its figures.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use tokio::process::Command;

use super::{Output, Target, author};
use crate::node::Programs;

/// How to run it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Leave the author's template out: it builds for minutes.
    #[arg(long)]
    pub without_template: bool,
    /// Where the figures go.
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Serialize)]
struct Figures {
    host: Value,
    template: Option<author::Figures>,
}

/// Runs the benchmark.
pub async fn run(options: &Options) -> Result<()> {
    let programs = Programs::from_env()?;
    let host = measure(&programs.bin.join("examples")).await?;
    let template = (!options.without_template).then(|| author::measure(&programs)).transpose()?;
    let figures = Figures { host, template };
    figures.print()?;
    options.output.conclude("abi", &figures.targets()?, &figures)
}

async fn measure(examples: &Path) -> Result<Value> {
    let host = examples.join("bench_host");
    let mut command = Command::new(&host);
    command.arg(examples.join("libbench_plugin.so")).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output())
        .await
        .context("the host of the benchmark does not end")?
        .with_context(|| format!("cannot run {}", host.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the host of the benchmark: {}\n{said}", output.status);
    serde_json::from_slice(&output.stdout).context("the figures are not readable")
}

impl Figures {
    fn figure(&self, path: &str) -> Result<f64> {
        let value = self.host.pointer(path).and_then(Value::as_f64);
        value.with_context(|| format!("the host of the benchmark did not measure {path}"))
    }

    fn print(&self) -> Result<()> {
        for (name, path) in [
            ("direct", "direct"),
            ("in process", "in_process"),
            ("out of process", "out_of_process"),
            ("tonic", "tonic"),
        ] {
            let [min, median, p99] =
                ["min", "median", "p99"].map(|part| self.figure(&format!("/{path}_us/{part}")));
            println!(
                "call, {name:<15} min {:>7.1} us, median {:>7.1} us, p99 {:>7.1} us",
                min?, median?, p99?
            );
        }
        for (name, path) in [("in process", "in_process"), ("out of process", "out_of_process")] {
            let many = self.figure(&format!("/{path}_64_at_once_us"))?;
            let chunk = self.figure(&format!("/chunk_{path}_us"))?;
            println!(
                "{name:<21} {many:>7.1} us a call of 64 at once, {chunk:>7.1} us a chunk of 16 KiB"
            );
        }
        for way in ["plain", "pinned", "probed", "isolated"] {
            let [min, median] =
                ["min", "median"].map(|part| self.figure(&format!("/load_ms/{way}/{part}")));
            println!("load, {way:<15} min {:>7.1} ms, median {:>7.1} ms", min?, median?);
        }
        if let Some(template) = &self.template {
            let author::Figures { clean_build_seconds, incremental_build_seconds, .. } = template;
            println!(
                "template: clean build {clean_build_seconds:.1} s, incremental {incremental_build_seconds:.1} s"
            );
        }
        Ok(())
    }

    /// From the issue that asked for them. A busy machine makes medians of single calls meaningless: then the least says more.
    fn targets(&self) -> Result<Vec<Target>> {
        let in_process = self.figure("/in_process_us/median")?;
        let ratio = in_process / self.figure("/tonic_us/median")?;
        let target = |name: &str, measured, at_most, unit| Target {
            name: name.to_owned(),
            measured,
            at_most,
            unit,
        };
        let mut targets = vec![
            target("call in process", in_process, 10.0, "us"),
            target("call in process / tonic", ratio, 0.125, "x"),
            target("load", self.figure("/load_ms/plain/median")?, 10.0, "ms"),
        ];
        targets.extend(self.template.iter().flat_map(author::Figures::targets));
        Ok(targets)
    }
}

const LIMIT: std::time::Duration = std::time::Duration::from_secs(300);
