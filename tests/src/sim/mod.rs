//! A node in a simulated world: the real engine, a scripted cloud, agents without machines, paused time, one seed.
//!
//! What outlives a crash stands in [`World`]: the cloud, the agents, the durable store, the log files. An engine is dropped
//! whole at any of the [`seam`]s, where it touches one of those, before or after the effect; then another engine starts
//! over what is left. A [`kubelet`] that survives everything drives pods through their lives. Whatever happened, at the end the
//! [`World`] knows of no broken promise, or says which.
//!
//! One seed is one history, to the last await: a failure prints its seed and its transcript, and `run_seed` replays it.

pub mod agent;
pub mod files;
pub mod kubelet;
pub mod logs;
pub mod network;
pub mod provider;
pub mod random;
pub mod report;
pub mod scenario;
pub mod seam;
pub mod store;
pub mod world;

pub use kubelet::plain_container;
pub use report::Report;
pub use scenario::{Sabotage, Scenario};
pub use world::{History, World};

/// Runs one scenario to its end and tells what happened.
pub fn run(scenario: &Scenario) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O can always be made");
    runtime.block_on(World::run(scenario))
}

/// Runs the scenario of a seed.
pub fn run_seed(seed: u64) -> History {
    run(&Scenario::of_seed(seed))
}
