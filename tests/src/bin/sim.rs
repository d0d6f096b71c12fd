//! Kills simulated nodes at every place, and lives through many seeds; `cargo xtask sim` runs it.

use std::ops::Range;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use infranetes_tests::sim::{self, Report};

/// Options.
#[derive(Parser)]
struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 3000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Replays one seed and prints its transcript.
    #[arg(long)]
    replay: Option<u64>,
    /// Replays a pod's calm life whose engine dies at this place.
    #[arg(long)]
    replay_point: Option<u64>,
    /// Threads; 0 means one per CPU.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Writes the report here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Ends with an error when a promise was broken.
    #[arg(long)]
    gate: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Some(seed) = options.replay {
        return replay(&sim::run_seed(seed));
    }
    if let Some(point) = options.replay_point {
        return replay(&sim::run(&sim::Scenario::crash_at(point)));
    }
    let begin = Instant::now();
    let mut report = Report::default();
    report.every_crash_point();
    report.every_crash_point_of_checkpoints();
    let threads = match options.threads {
        0 => thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let parts: Vec<_> = (0..threads as u64)
        .map(|part| {
            let share = share(options.from, options.seeds, part, threads as u64);
            thread::spawn(move || {
                let mut report = Report::default();
                report.seeds(share);
                report
            })
        })
        .collect();
    for part in parts {
        report.merge(part.join().map_err(|_| anyhow::anyhow!("a world panicked"))?);
    }
    report.seconds = begin.elapsed().as_secs_f64();
    print(&report);
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    ensure!(!options.gate || report.failures.is_empty(), "promises were broken");
    Ok(())
}

fn share(from: u64, seeds: u64, part: u64, parts: u64) -> Range<u64> {
    from + seeds * part / parts..from + seeds * (part + 1) / parts
}

fn replay(history: &sim::History) -> anyhow::Result<()> {
    println!("{}", history.transcript.join("\n"));
    ensure!(history.broken.is_empty(), "promises were broken: {:#?}", history.broken);
    println!("no promise was broken");
    Ok(())
}

fn print(report: &Report) {
    println!(
        "{} histories in {:.1} s: {} crash points of a calm life, each tried; {} crashes, {} machines, {} passages, {:.0} simulated hours",
        report.histories,
        report.seconds,
        report.crash_points,
        report.crashes,
        report.machines,
        report.passages,
        report.simulated_hours,
    );
    for failure in &report.failures {
        println!("{}:", failure.scenario);
        for broken in &failure.broken {
            println!("    {broken}");
        }
    }
    println!("{} histories with a broken promise", report.failures.len());
}
