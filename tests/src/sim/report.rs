//! Many histories in a few numbers.

use std::time::Duration;

use serde::Serialize;

use crate::sim::scenario::Scenario;
use crate::sim::world::History;

/// What a run over many scenarios came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Scenarios that were run.
    pub histories: u64,
    /// Places at which an engine can die in one calm life of a pod; each was tried.
    pub crash_points: u64,
    /// Engines that died.
    pub crashes: u64,
    /// Seams passed.
    pub passages: u64,
    /// Machines made.
    pub machines: u64,
    /// Hours that passed in the worlds.
    pub simulated_hours: f64,
    /// Seconds that passed here.
    pub seconds: f64,
    /// Histories with a broken promise: seed or crash point, and which.
    pub failures: Vec<Failure>,
}

/// A history with a broken promise.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// What to run to see it again.
    pub scenario: String,
    /// What was broken.
    pub broken: Vec<String>,
    /// The last lines of what happened.
    pub transcript: Vec<String>,
}

impl Report {
    /// Kills the engine once at every place of a pod's calm life.
    pub fn every_crash_point(&mut self) {
        let whole = super::run(&Scenario::calm(1));
        self.add("calm".to_owned(), &whole);
        self.crash_points += whole.passages;
        for point in 1..=whole.passages {
            self.add(format!("crash point {point}"), &super::run(&Scenario::crash_at(point)));
        }
    }

    /// Kills the engine once at every place of the life of a pod that is written down and goes on from there as another one, too.
    pub fn every_crash_point_of_checkpoints(&mut self) {
        let whole = super::run(&Scenario::with_checkpoints(Vec::new()));
        self.add("checkpoints".to_owned(), &whole);
        self.crash_points += whole.passages;
        for point in 1..=whole.passages {
            let history = super::run(&Scenario::with_checkpoints(vec![point]));
            self.add(format!("crash point {point} of checkpoints"), &history);
        }
    }

    /// Runs the worlds of these seeds.
    pub fn seeds(&mut self, seeds: std::ops::Range<u64>) {
        for seed in seeds {
            self.add(format!("seed {seed}"), &super::run_seed(seed));
        }
    }

    /// Takes another one's part in.
    pub fn merge(&mut self, other: Self) {
        self.histories += other.histories;
        self.crash_points += other.crash_points;
        self.crashes += other.crashes;
        self.passages += other.passages;
        self.machines += other.machines;
        self.simulated_hours += other.simulated_hours;
        self.failures.extend(other.failures);
    }

    /// Counts one history.
    pub fn add(&mut self, scenario: String, history: &History) {
        self.histories += 1;
        self.crashes += history.crashes as u64;
        self.passages += history.passages;
        self.machines += history.machines;
        self.simulated_hours += hours(history.simulated);
        if !history.broken.is_empty() && self.failures.len() < FAILURES_MAX {
            let from = history.transcript.len().saturating_sub(LINES_MAX);
            self.failures.push(Failure {
                scenario,
                broken: history.broken.clone(),
                transcript: history.transcript[from..].to_vec(),
            });
        }
    }
}

fn hours(time: Duration) -> f64 {
    time.as_secs_f64() / 3600.0
}

const FAILURES_MAX: usize = 20;
const LINES_MAX: usize = 400;
