//! The daemon as a whole: what is started in which order, and what is left alone at the end.
//!
//! ```text
//!  lock the state directory ─► listen ─► load providers ─► open record and images ─► take up the sandboxes ─► serve
//! ```
//!
//! The socket is there before anything slow begins, so that a kubelet that dials early waits instead of failing. Ending
//! takes no new calls, lets those that run end within a grace period, and leaves every machine as it is.

mod lock;
mod notify;
mod providers;
mod services;
mod socket;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use infranetes_core::engine::{Engine, EngineConfig};
use infranetes_core::error::EngineError;
use infranetes_core::image::{ImageStore, ImageStoreConfig, OpenImageStoreError};
use infranetes_sdk::PodProvider;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

pub use self::lock::{StateDir, StateDirError};
pub use self::notify::Notify;
pub use self::providers::helper;
pub use self::services::InstanceServices;
pub use self::socket::{Socket, SocketError};
pub use self::world::WorldError;
use crate::config::{Config, ConfigError};
use crate::service::{Cri, Services};
use crate::streaming::{StreamingError, StreamingServer};

/// A daemon that listens, and whose lists answer.
pub struct Daemon {
    listener: tokio::net::UnixListener,
    engine: Engine,
    cri: Cri,
    streaming: StreamingServer,
    shutdown_grace: Duration,
    // Dropped last and in this order: the socket's file goes before somebody else can have the state.
    _socket: Socket,
    _state: StateDir,
}

/// The daemon cannot start. Nothing was changed that it found.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be had.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The socket cannot be waited for.
    #[error("the socket cannot be served")]
    Listen(#[source] std::io::Error),
    /// The streaming server cannot be had.
    #[error(transparent)]
    Streaming(#[from] StreamingError),
    /// The directory of provider instances cannot be read.
    #[error(transparent)]
    Providers(#[from] ConfigError),
    /// The image store cannot be opened.
    #[error(transparent)]
    Images(#[from] OpenImageStoreError),
    /// The record, or the node's keys in it, cannot be used.
    #[error(transparent)]
    World(#[from] WorldError),
    /// What the record says cannot be taken up.
    #[error("the sandboxes of this node cannot be taken up again")]
    Recover(#[source] EngineError),
}

/// The daemon ended by a failure of its socket.
#[derive(Debug, thiserror::Error)]
#[error("the socket failed")]
pub struct ServeError(#[source] tonic::transport::Error);

impl Daemon {
    /// Starts everything; `linked` are providers that need no plugin.
    pub async fn start(
        config: Config,
        linked: BTreeMap<String, Arc<dyn PodProvider>>,
    ) -> Result<Daemon, StartError> {
        let state = StateDir::lock(&config.state_dir)?;
        let socket = Socket::bind(&config.socket)?;
        tracing::info!(socket = %config.socket.display(), "listening");
        let listener = socket.listener().map_err(StartError::Listen)?;
        let streaming = StreamingServer::bind(&config.streaming).await?;
        let images = ImageStore::open(image_store(&config));
        let (providers, images) = tokio::join!(providers::load(&config, &state, linked), images);
        let ((providers, plugins), images) = (providers?, images?);
        let parts = world::parts(&config, &state, providers, images.clone()).await?;
        let engine =
            Engine::start(engine_config(&config), parts).await.map_err(StartError::Recover)?;
        tracing::info!(sandboxes = engine.sandboxes().len(), "ready");
        Ok(Daemon {
            listener,
            cri: Cri::new(engine.clone(), images, streaming.links(), config.limits.message_bytes)
                .with_plugins(plugins),
            streaming,
            engine,
            shutdown_grace: config.shutdown_grace,
            _socket: socket,
            _state: state,
        })
    }

    /// Serves until `end`, then lets running calls end within the grace period. Machines run on.
    pub async fn serve(self, end: impl Future<Output = ()>) -> Result<(), ServeError> {
        let notify = Notify::from_environment();
        let (stop, mut stopping) = tokio::sync::watch::channel(false);
        let (services, incoming) =
            (Services::new(self.cri), UnixListenerStream::new(self.listener));
        let serving = Server::builder()
            .max_concurrent_streams(Some(MAX_CALLS))
            .serve_with_incoming_shutdown(services, incoming, async move {
                // An error means that the sender is gone, which ends the server as well.
                let _ = stopping.wait_for(|stop| *stop).await;
            });
        let mut serving = std::pin::pin!(serving);
        // Ends with this function, and cuts off its streams: nobody could say to whom they belong afterwards.
        let mut streaming = JoinSet::new();
        streaming.spawn(self.streaming.serve(self.engine.clone()));
        notify.ready();
        tokio::select! {
            result = &mut serving => return result.map_err(ServeError),
            () = end => {}
        }
        tracing::info!(grace = ?self.shutdown_grace, "ending; machines run on");
        notify.stopping();
        stop.send_replace(true);
        let drained = tokio::time::timeout(self.shutdown_grace, serving);
        let (drained, ()) = tokio::join!(drained, self.engine.shutdown(self.shutdown_grace));
        match drained {
            Ok(result) => result.map_err(ServeError),
            Err(_) => {
                tracing::warn!(
                    "calls that still run are cut off; asking again joins what they began"
                );
                Ok(())
            }
        }
    }
}

fn image_store(config: &Config) -> ImageStoreConfig {
    let mut store = ImageStoreConfig::new(&config.images.root);
    store.registries = config.images.registries.clone();
    store.pinned = config.images.pinned.clone();
    store.limits.parallel_pulls = config.images.parallel_pulls;
    store
}

fn engine_config(config: &Config) -> EngineConfig {
    EngineConfig {
        cluster: config.cluster.clone(),
        node: config.node.clone(),
        handlers: config.handlers.clone(),
        concurrent_creates: config.limits.concurrent_creates,
        stats_period: config.agent_stats_period,
        mounts: config.mounts.clone(),
    }
}

/// Calls at once on one connection. A kubelet has a few for each pod.
const MAX_CALLS: u32 = 4096;
