//! What an engine works with: everything that touches the outside world.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use infranetes_sdk::PodProvider;

use crate::engine::config::HandlerNetwork;
use crate::error::EngineError;
use crate::logs::LogFiles;
use crate::mounts::NodeFiles;
use crate::network::PodNetwork;
use crate::record::RecordStore;
use crate::session::{AgentConnector, LayerSource, MachineImage, MachineLayer};

/// What an engine works with. Everything that touches the outside world is handed in here.
pub struct EngineParts {
    /// Provider instances by name: ready, or why not.
    pub providers: BTreeMap<String, Result<Arc<dyn PodProvider>, String>>,
    /// The way to agents.
    pub connector: Arc<dyn AgentConnector>,
    /// The node's images.
    pub images: Arc<dyn ImageSource>,
    /// The node's files, for mounts.
    pub files: Arc<dyn NodeFiles>,
    /// Durable state.
    pub records: Arc<dyn RecordStore>,
    /// Where containers' output goes.
    pub logs: Arc<dyn LogFiles>,
    /// The pod network of this node, for handlers that take part in it; `None` where there is none.
    pub network: Option<Arc<dyn PodNetwork>>,
    /// Randomness for ids and tokens.
    pub entropy: Arc<dyn Entropy>,
    /// The wall clock, for what people and records read. Waiting goes by tokio's clock.
    pub clock: Arc<dyn WallClock>,
}

/// Images of this node, as far as the engine needs them.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// Finds an image that is on the node, by tag, digest or id.
    async fn resolve(&self, image: &str) -> Result<ResolvedImage, EngineError>;

    /// Opens a layer of an image that is on the node.
    async fn open_layer(&self, layer: &MachineLayer) -> Result<LayerSource, EngineError>;
}

/// An image and its defaults for containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedImage {
    /// What a machine has to know.
    pub image: MachineImage,
    /// Prefix of every command.
    pub entrypoint: Vec<String>,
    /// Arguments unless the container brings its own.
    pub cmd: Vec<String>,
    /// Environment, "NAME=value".
    pub env: Vec<String>,
    /// USER or USER:GROUP.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// Signal that stops it.
    pub stop_signal: String,
}

/// Randomness.
pub trait Entropy: Send + Sync + 'static {
    /// Fills the buffer with bytes that nobody can guess.
    fn fill(&self, buffer: &mut [u8]);
}

/// Wall-clock time.
pub trait WallClock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> SystemTime;
}

/// Whether a handler can run pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerStatus {
    /// Its name.
    pub name: String,
    /// The provider instance behind it.
    pub provider: String,
    /// Why it cannot run pods; `None` when it can.
    pub problem: Option<String>,
    /// Who gives its pods their network.
    pub network: HandlerNetwork,
    /// Why the pod network of this node, which it needs, is not there; `None` when it is, or is not needed.
    pub network_problem: Option<String>,
}
