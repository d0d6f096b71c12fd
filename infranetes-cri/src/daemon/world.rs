//! The outside world, as the engine is given it: disk, network, randomness and time.

use std::sync::Arc;

use infranetes_cni::CniNetwork;
use infranetes_core::engine::{EngineParts, OsEntropy, SystemClock};
use infranetes_core::image::ImageStore;
use infranetes_core::logs::DiskLogs;
use infranetes_core::mounts::DiskFiles;
use infranetes_core::record::{RecordError, RedbStore};
use infranetes_core::session::tls::{CaError, NodeCa, TlsConnector};

use super::lock::StateDir;
use super::providers::Providers;
use crate::config::Config;

/// The outside world cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The record cannot be opened.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The node's certificate authority cannot be had.
    #[error("the node's keys cannot be used")]
    Keys(#[source] CaError),
}

/// Opens what the engine works with.
pub(super) async fn parts(
    config: &Config,
    state: &StateDir,
    providers: Providers,
    images: ImageStore,
) -> Result<EngineParts, WorldError> {
    let records = RedbStore::open(&state.path("records.redb")).await?;
    let ca = NodeCa::load_or_create(&records).await.map_err(WorldError::Keys)?;
    let connector = TlsConnector::with_certificate_life(ca, config.agent_certificate_lifetime);
    Ok(EngineParts {
        providers,
        connector: Arc::new(connector),
        images: Arc::new(images),
        files: Arc::new(DiskFiles::default()),
        records: Arc::new(records),
        logs: Arc::new(DiskLogs),
        network: Some(Arc::new(CniNetwork::new(config.cni.clone()))),
        entropy: Arc::new(OsEntropy),
        clock: Arc::new(SystemClock),
    })
}
