//! Benchmarks: side by side in one run, as ratios, with the targets beside the figures.

pub mod abi;
pub mod author;
pub mod boot;
pub mod cri;
pub mod streaming;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

/// What every benchmark takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Output {
    /// Write all figures to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Exit with 1 when a target is missed, naming each.
    #[arg(long)]
    pub gate: bool,
}

/// A figure with the most that it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub measured: f64,
    /// The most it should be.
    pub at_most: f64,
    /// In what.
    pub unit: &'static str,
}

impl Target {
    /// Whether the figure is within the target.
    pub fn met(&self) -> bool {
        self.measured <= self.at_most
    }
}

impl Output {
    /// Prints the targets and one line that sums up, writes the figures, and applies the gate.
    pub fn conclude(&self, name: &str, targets: &[Target], figures: &impl Serialize) -> Result<()> {
        println!();
        for target in targets {
            let Target { name, measured, at_most, unit } = target;
            let word = if target.met() { "met" } else { "MISSED" };
            println!("  {name:<28} {measured:>9.2} {unit:<4} (at most {at_most} {unit}): {word}");
        }
        if let Some(path) = &self.json {
            let report = serde_json::json!({ "figures": figures, "targets": targets });
            std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
        }
        let missed: Vec<&str> =
            targets.iter().filter(|target| !target.met()).map(|target| &*target.name).collect();
        println!("bench {name}: {} of {} targets met", targets.len() - missed.len(), targets.len());
        if self.gate && !missed.is_empty() {
            bail!("targets missed: {}", missed.join(", "));
        }
        Ok(())
    }
}

/// Least and middle of some times, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// The least.
    pub min_ms: f64,
    /// The middle one; of an even number the upper.
    pub median_ms: f64,
}

impl Spread {
    /// Of at least one time.
    pub fn of(times: &[Duration]) -> Spread {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        Spread { min_ms: sorted[0], median_ms: sorted[sorted.len() / 2] }
    }
}
