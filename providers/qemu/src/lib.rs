//! Real virtual machines on this node, run by QEMU.
//!
//! Each machine is one QEMU process with a directory, a user and a cgroup of its own; the directory's record is the
//! truth, written before QEMU starts, so that machines outlive the daemon and are taken up by the next one. The network
//! is QEMU's user mode: it needs no privileges, the node reaches the agent through a forwarded port of 127.0.0.1, and the
//! guest's address means nothing outside.
//!
//! What it promises is in [`PodProvider`](infranetes_sdk::PodProvider); what it cannot do is denied by `describe`.

mod cgroup;
mod check;
mod checkpoint;
mod client;
mod config;
mod console;
mod convert;
mod dir;
mod ending;
mod error;
mod files;
mod launch;
mod machine;
mod node;
mod pages;
mod plan;
mod process;
mod provider;
mod record;
mod registry;
mod streams;
mod taps;

pub use config::{Accel, Config, TypeEntry, UidRange};
pub use provider::QemuProvider;

use infranetes_sdk::{Host, Plugin, Providers, Result, async_trait};

/// The plugin: each instance has a run directory of its own.
#[derive(Debug)]
pub struct Qemu;

#[async_trait]
impl Plugin for Qemu {
    type Config = Config;

    async fn start(host: Host, config: Config) -> Result<Providers> {
        let run_dir = match &config.run_dir {
            Some(run_dir) => run_dir.clone(),
            None => host.state_dir()?.to_owned(),
        };
        Ok(Providers::default().with_pods(QemuProvider::open(config, &run_dir).await?))
    }
}

infranetes_sdk::export_provider!(Qemu);
