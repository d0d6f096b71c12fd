//! The engine: wishes in, machines out, nothing lost in between.
//!
//! ```text
//!  Intended ─► Submitted ─► Allocated ─► Booted ─► Bound ─► Ready ─► Stopping ─► Stopped ─► Removing ─► (gone)
//!     │           │             │           │        │        │
//!     └───────────┴─────────────┴───────────┴────────┴────────┴──► Failed ─► Removing
//! ```

mod config;
mod parts;

use std::sync::Arc;
use std::time::Duration;

pub use config::{EngineConfig, HandlerConfig, PhaseTimeouts};
pub use parts::{EngineParts, Entropy, HandlerStatus, ImageSource, ResolvedImage, WallClock};

use crate::error::EngineError;
use crate::ids::{ContainerId, SandboxId};
use crate::session::{ExecResult, MachineUsage};
use crate::spec::{ContainerSpec, SandboxSpec};
use crate::status::{ContainerStatus, SandboxStatus};

/// Runs sandboxes. Cheap to clone; all clones are one engine.
#[derive(Clone)]
pub struct Engine {
    config: Arc<EngineConfig>,
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
