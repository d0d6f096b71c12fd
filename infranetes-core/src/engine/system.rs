//! The outside world of an ordinary node: one directory, the kernel's randomness, the system's clock.
//!
//! For embedders that want no other world. What is in it can still be replaced, field by field.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use infranetes_sdk::PodProvider;

use crate::engine::config::{EngineConfig, HandlerConfig, HandlerNetwork, PhaseTimeouts};
use crate::engine::parts::{EngineParts, Entropy, WallClock};
use crate::image::ImageStore;
use crate::logs::DiskLogs;
use crate::mounts::{DiskFiles, MountPolicy};
use crate::record::{RecordError, RedbStore};
use crate::session::tls::{CaError, NodeCa, TlsConnector};
use crate::spec::SandboxResources;

/// The durable state of a node cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OnDiskError {
    /// Its directory cannot be made.
    #[error("the directory of the node's state cannot be made")]
    Directory(#[source] std::io::Error),
    /// The record cannot be opened.
    #[error("the record cannot be opened")]
    Record(#[source] RecordError),
    /// The node's certificate authority cannot be had.
    #[error("the node's keys cannot be used")]
    Keys(#[source] CaError),
}

impl EngineParts {
    /// What an engine works with, and no provider yet. Record and keys live in `directory`, which is made if it is missing and
    /// belongs to one engine at a time; an engine that is started over it again takes up what runs. Has to be called on a
    /// tokio runtime.
    pub async fn on_disk(directory: &Path, images: ImageStore) -> Result<Self, OnDiskError> {
        tokio::fs::create_dir_all(directory).await.map_err(OnDiskError::Directory)?;
        let records = RedbStore::open(&directory.join("records.redb")).await;
        let records = records.map_err(OnDiskError::Record)?;
        let ca = NodeCa::load_or_create(&records).await.map_err(OnDiskError::Keys)?;
        Ok(Self {
            providers: [].into(),
            connector: Arc::new(TlsConnector::new(ca)),
            images: Arc::new(images),
            records: Arc::new(records),
            logs: Arc::new(DiskLogs),
            files: Arc::new(DiskFiles::default()),
            network: None,
            entropy: Arc::new(OsEntropy),
            clock: Arc::new(SystemClock),
        })
    }

    /// Adds a provider instance under a name, which handlers say.
    #[must_use]
    pub fn with_provider(mut self, name: &str, provider: Arc<dyn PodProvider>) -> Self {
        self.providers.insert(name.to_owned(), Ok(provider));
        self
    }
}

impl EngineConfig {
    /// An engine without handlers, whose machines carry these names of a cluster and a node.
    pub fn new(cluster: &str, node: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            handlers: [].into(),
            concurrent_creates: CONCURRENT_CREATES,
            stats_period: STATS_PERIOD,
            mounts: MountPolicy::default(),
        }
    }

    /// Adds a handler; "" is the one of sandboxes that name none.
    #[must_use]
    pub fn with_handler(mut self, name: &str, handler: HandlerConfig) -> Self {
        self.handlers.insert(name.to_owned(), handler);
        self
    }
}

impl HandlerConfig {
    /// Machines of a provider instance: one CPU and 512 MiB unless the pod says otherwise, 128 MiB on top, any type and zone.
    pub fn new(provider: &str) -> Self {
        Self {
            provider: provider.to_owned(),
            default_resources: SandboxResources { cpu_millis: 1000, memory_bytes: 512 << 20 },
            default_overhead: SandboxResources { cpu_millis: 0, memory_bytes: 128 << 20 },
            machine_type: String::new(),
            zones: Vec::new(),
            spot: false,
            allowed_annotations: [].into(),
            network: HandlerNetwork::default(),
            timeouts: PhaseTimeouts::default(),
        }
    }
}

/// The kernel's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            // Only interruptions can fail here: the kernel has been asked for randomness since it booted.
            if let Ok(filled) =
                rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty())
            {
                rest = &mut rest[filled..];
            }
        }
    }
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl WallClock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// As the daemon has them.
const STATS_PERIOD: std::time::Duration = std::time::Duration::from_secs(10);
const CONCURRENT_CREATES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn randomness_fills_all_of_a_buffer() {
        let mut buffer = [0; 1024];
        OsEntropy.fill(&mut buffer);
        assert!(buffer.chunks(32).all(|part| part.iter().any(|byte| *byte != 0)));
    }
}
