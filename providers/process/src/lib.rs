//! Machines that are none: the agent as a process in namespaces of this node.
//!
//! Each machine is one `infranetes-agent --isolate` with a directory and cgroups of its own; the directory's record is the
//! truth, written before the agent starts, so that machines outlive the daemon and are taken up by the next one. It boots
//! in a blink and needs no virtualization, which is what it is for: tests, demos, nodes that trust their pods.
//!
//! What it promises is in [`PodProvider`](infranetes_sdk::PodProvider). What it does not: isolation. A pod shares the node's
//! kernel, and whoever becomes root in a privileged container is root on the node. `describe` says so.

mod cgroup;
mod check;
mod client;
mod config;
mod console;
mod convert;
mod dir;
mod ending;
mod error;
mod machine;
mod mounts;
mod pages;
mod plan;
mod plugins;
mod process;
mod provider;
mod record;
mod registry;
mod streams;

pub use config::Config;
pub use provider::ProcessProvider;

use infranetes_sdk::{Host, Plugin, Providers, Result, async_trait};

/// The plugin: each instance has a run directory of its own.
#[derive(Debug)]
pub struct Process;

#[async_trait]
impl Plugin for Process {
    type Config = Config;

    async fn start(host: Host, config: Config) -> Result<Providers> {
        let run_dir = match &config.run_dir {
            Some(run_dir) => run_dir.clone(),
            None => host.state_dir()?.to_owned(),
        };
        Ok(Providers::default().with_pods(ProcessProvider::open(config, &run_dir).await?))
    }
}

infranetes_sdk::export_provider!(Process);
