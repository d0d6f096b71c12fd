//! Containers in a machine by an OCI runtime, without a daemon.
//!
//! Layers are unpacked into directories and joined by overlayfs; `crun` (or `runc`) runs each container as a child of this
//! process, which keeps the container's streams, its output until it is acknowledged, and its exit code. Nothing else is needed
//! in the machine. See the README for what is supported and what is not.

mod attach;
mod cgroup;
mod client;
mod config;
mod console;
mod container;
mod convert;
mod create;
mod error;
mod exec;
mod image;
mod image_mounts;
mod live;
mod pause;
mod provider;
mod rootfs;
mod source;
mod spool;
mod stats;
mod update;
mod users;

use std::path::PathBuf;
use std::time::Duration;

use infranetes_sdk::{Host, Plugin, ProviderError, Providers, Result, async_trait};

pub use config::Config;
pub use provider::OciProvider;

use cgroup::Cgroups;
use client::Runtime;
use error::io_error;
use image::{ImageStore, Limits, make_private_dir};
use pause::Pause;
use provider::Setup;
use spool::{SpoolLimits, check_limits};

/// The plugin.
pub struct Oci;

infranetes_sdk::export_provider!(Oci);

#[async_trait]
impl Plugin for Oci {
    type Config = Config;

    async fn start(host: Host, config: Config) -> Result<Providers> {
        let root = match &config.root {
            Some(root) => root.clone(),
            None => host.state_dir()?.to_owned(),
        };
        Ok(Providers::default().with_containers(OciProvider::open(config, root).await?))
    }
}

impl OciProvider {
    /// Opens what is in `root`, and removes what containers of a former run left behind: containers do not outlive the process
    /// that supervises them, images do.
    pub async fn open(config: Config, root: PathBuf) -> Result<Self> {
        check_paths(&config, &root)?;
        let runtime_state = config.run.join("state");
        let cgroups = Cgroups::detect().map_err(io_error("cannot find this machine's cgroups"))?;
        make_private_dir(&config.run)?;
        provider::clean(&config.run, &root, &cgroups, &config.cgroup_parent).await?;
        for dir in [&runtime_state, &root, &root.join("writable")] {
            make_private_dir(dir)?;
        }
        let limits = Limits { bytes: config.layer_max_mib << 20, entries: LAYER_ENTRIES };
        let spool = SpoolLimits {
            memory_bytes: config.log_memory_kib << 10,
            file_bytes: config.log_file_mib << 20,
        };
        Ok(Self::new(Setup {
            images: ImageStore::open(&root, limits)?,
            root,
            runtime: Runtime::new(config.runtime, runtime_state),
            run: config.run,
            cgroups,
            cgroup_parent: config.cgroup_parent,
            spool: check_limits(spool)?,
            pause: Pause::new(config.pause),
            start_limit: Duration::from_secs(config.start_timeout_s.max(1)),
        }))
    }
}

fn check_paths(config: &Config, root: &std::path::Path) -> Result<()> {
    for (name, path) in [("root", root), ("run", &config.run)] {
        // Options of overlayfs take neither.
        if !path.is_absolute() || path.to_string_lossy().contains([',', ':', '\\']) {
            return Err(ProviderError::invalid(format!(
                "`{name}` has to be an absolute path without commas and colons, not {}",
                path.display()
            )));
        }
    }
    if config.run.as_os_str().len() > RUN_LENGTH {
        return Err(ProviderError::invalid(format!(
            "`run` has to be at most {RUN_LENGTH} bytes long: sockets are below it"
        )));
    }
    if config.cgroup_parent.split('/').any(|name| name == "..") || config.cgroup_parent.is_empty() {
        return Err(ProviderError::invalid("`cgroup_parent` has to name a cgroup"));
    }
    Ok(())
}

const LAYER_ENTRIES: u64 = 2_000_000;
const RUN_LENGTH: usize = 90;
