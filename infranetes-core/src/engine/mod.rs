//! The engine: wishes in, machines out, nothing lost in between.
//!
//! ```text
//!  Intended ─► Submitted ─► Allocated ─► Booted ─► Bound ─► Ready ─► Stopping ─► Stopped ─► Removing ─► (gone)
//!     │           │             │           │        │        │
//!     └───────────┴─────────────┴───────────┴────────┴────────┴──► Failed ─► Removing
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use infranetes_sdk::PodProvider;

use crate::error::EngineError;
use crate::ids::{ContainerId, SandboxId};
use crate::session::{
    AgentConnector, ExecResult, LayerSource, MachineImage, MachineLayer, MachineUsage,
};
use crate::spec::{ContainerSpec, SandboxResources, SandboxSpec};
use crate::status::{ContainerStatus, SandboxStatus};

/// Runs sandboxes. Cheap to clone; all clones are one engine.
#[derive(Clone)]
pub struct Engine {
    config: Arc<EngineConfig>,
}

/// What an engine is told once.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Names this cluster in ownership tags: [a-z0-9_-]{1,63}.
    pub cluster: String,
    /// Names this node in ownership tags: [a-z0-9_-]{1,63}.
    pub node: String,
    /// Handlers by name; "" is the default handler.
    pub handlers: BTreeMap<String, HandlerConfig>,
    /// The most machines that are being created at once.
    pub concurrent_creates: usize,
}

/// A RuntimeClass handler: a provider and the shape of its machines.
#[derive(Clone, Debug)]
pub struct HandlerConfig {
    /// Name of a provider instance.
    pub provider: String,
    /// Size of a machine whose pod says nothing.
    pub default_resources: SandboxResources,
    /// What is added for kernel and agent when the pod brings no overhead.
    pub default_overhead: SandboxResources,
    /// A fixed machine type, or empty.
    pub machine_type: String,
    /// Zones that may be used, best first; empty means any.
    pub zones: Vec<String>,
    /// Ask for spot machines.
    pub spot: bool,
    /// Pod annotations that reach the provider's plan.
    pub allowed_annotations: BTreeSet<String>,
    /// How long each phase of a boot may take.
    pub timeouts: PhaseTimeouts,
}

/// How long the phases of a boot may take. Inner waits are shorter than outer ones; a test asserts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseTimeouts {
    /// The provider's answer to one call.
    pub provider_call: Duration,
    /// From the provider's answer until the machine runs.
    pub boot: Duration,
    /// From running until the agent is enrolled.
    pub enrol: Duration,
    /// From enrolled to ready.
    pub bind: Duration,
    /// How long RunPodSandbox waits before it says that the boot goes on; below the kubelet's four minutes.
    pub run_call: Duration,
}

/// What an engine works with. Everything that touches the outside world is handed in here.
pub struct EngineParts {
    /// Provider instances by name: ready, or why not.
    pub providers: BTreeMap<String, Result<Arc<dyn PodProvider>, String>>,
    /// The way to agents.
    pub connector: Arc<dyn AgentConnector>,
    /// The node's images.
    pub images: Arc<dyn ImageSource>,
    /// Durable state.
    pub records: Arc<dyn crate::record::RecordStore>,
    /// Where containers' output goes.
    pub logs: Arc<dyn crate::logs::LogFiles>,
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
}

impl Engine {
    /// Reads the record and takes up every sandbox where it was. Returns when lists answer; machines are visited afterwards.
    pub async fn start(config: EngineConfig, parts: EngineParts) -> Result<Engine, EngineError> {
        let _ = parts;
        Ok(Engine { config: Arc::new(config) })
    }

    /// Makes a sandbox and returns when it is ready. Keyed by (pod uid, attempt): the same wish again joins the first and
    /// answers the same id; dropping the call does not stop the boot.
    pub async fn run_sandbox(&self, _spec: SandboxSpec) -> Result<SandboxId, EngineError> {
        Err(EngineError::ShuttingDown)
    }

    /// Ends a sandbox's containers and its machine. Stopped already is success.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        Err(EngineError::SandboxNotFound(id.clone()))
    }

    /// Removes a sandbox with all it owns; stops it first if need be. Succeeds when the machine is gone or a durable deletion exists.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        Err(EngineError::SandboxNotFound(id.clone()))
    }

    /// One sandbox, from what the node holds.
    pub fn sandbox(&self, _id: &SandboxId) -> Option<SandboxStatus> {
        None
    }

    /// All sandboxes, from what the node holds.
    pub fn sandboxes(&self) -> Vec<SandboxStatus> {
        Vec::new()
    }

    /// Creates a container in a ready sandbox: brings its image into the machine, then creates it.
    /// The same (name, attempt) again joins or answers the same id if the spec is the same.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        _spec: ContainerSpec,
    ) -> Result<ContainerId, EngineError> {
        Err(EngineError::SandboxNotFound(sandbox.clone()))
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), EngineError> {
        Err(EngineError::ContainerNotFound(id.clone()))
    }

    /// Stops a container: its stop signal, then after `grace` the hard way. Stopped already is success.
    pub async fn stop_container(
        &self,
        id: &ContainerId,
        _grace: Duration,
    ) -> Result<(), EngineError> {
        Err(EngineError::ContainerNotFound(id.clone()))
    }

    /// Removes a container, killing it if it runs.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), EngineError> {
        Err(EngineError::ContainerNotFound(id.clone()))
    }

    /// One container, from what the node holds.
    pub fn container(&self, _id: &ContainerId) -> Option<ContainerStatus> {
        None
    }

    /// All containers, from what the node holds.
    pub fn containers(&self) -> Vec<ContainerStatus> {
        Vec::new()
    }

    /// Runs a command in a running container to its end. `timeout` kills it and gives [`EngineError::ExecTimedOut`].
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        _args: Vec<String>,
        _timeout: Option<Duration>,
    ) -> Result<ExecResult, EngineError> {
        Err(EngineError::ContainerNotFound(id.clone()))
    }

    /// Closes a container's log file and opens it by its name again, for log rotation.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), EngineError> {
        Err(EngineError::ContainerNotFound(id.clone()))
    }

    /// What a sandbox's machine uses; asks the machine, so it is for people and benchmarks, never for lists.
    pub async fn machine_usage(&self, id: &SandboxId) -> Result<MachineUsage, EngineError> {
        Err(EngineError::SandboxNotFound(id.clone()))
    }

    /// Which handlers can run pods.
    pub fn handlers(&self) -> Vec<HandlerStatus> {
        let status = |(name, handler): (&String, &HandlerConfig)| HandlerStatus {
            name: name.clone(),
            provider: handler.provider.clone(),
            problem: None,
        };
        self.config.handlers.iter().map(status).collect()
    }

    /// Takes no new wishes, lets running calls end within `grace`, and leaves every machine as it is.
    pub async fn shutdown(&self, _grace: Duration) {}
}
