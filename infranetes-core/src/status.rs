//! What is: sandboxes and containers as the engine sees them, ready to be listed without asking a machine.

use std::time::SystemTime;

use crate::ids::{ContainerId, MachineId, SandboxId};
use crate::spec::{ContainerSpec, SandboxSpec};

/// A sandbox as it is now.
#[derive(Clone, Debug)]
pub struct SandboxStatus {
    /// Its id.
    pub id: SandboxId,
    /// What was wanted.
    pub spec: std::sync::Arc<SandboxSpec>,
    /// Where it is in its life.
    pub phase: Phase,
    /// When the wish was recorded.
    pub created_at: SystemTime,
    /// The pod's addresses, best first; empty until they are known.
    pub ips: Vec<String>,
    /// The machine, once the provider named it.
    pub machine: Option<MachineInfo>,
    /// Why it failed or is not ready, for people; empty otherwise.
    pub reason: String,
    /// Where its start-up time went.
    pub timeline: Timeline,
}

impl SandboxStatus {
    /// Whether CRI calls it ready.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether a kubelet may see it in lists. One that still boots is left out: a kubelet that sees it "not ready" asks for
    /// the next attempt instead of joining this one, and so would never get a pod that boots slowly.
    pub fn is_listed(&self) -> bool {
        !self.phase.is_booting() && self.phase != Phase::Removing
    }
}

/// Where a sandbox is in its life. See [`crate::engine`] for the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Recorded; the provider knows nothing yet.
    Intended,
    /// The create call is on its way.
    Submitted,
    /// The provider named the machine.
    Allocated,
    /// The machine runs.
    Booted,
    /// Its agent is enrolled and knows which sandbox it serves.
    Bound,
    /// Network, DNS and host name are in place.
    Ready,
    /// Containers end, then the machine.
    Stopping,
    /// No machine runs any more.
    Stopped,
    /// The last traces go.
    Removing,
    /// It did not become ready, or its machine vanished.
    Failed,
}

impl Phase {
    /// On the way to ready.
    pub fn is_booting(self) -> bool {
        matches!(
            self,
            Self::Intended | Self::Submitted | Self::Allocated | Self::Booted | Self::Bound
        )
    }
}

/// The machine behind a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineInfo {
    /// The provider's id.
    pub id: MachineId,
    /// Name of the provider instance.
    pub provider: String,
    /// The machine type that was chosen.
    pub machine_type: String,
    /// Why this type.
    pub why: String,
    /// `uname -r` in the machine; empty until its agent said.
    pub kernel_release: String,
}

/// When a sandbox reached each step of its start, as the node saw it; `None` for steps not reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The wish arrived.
    pub wanted: Option<SystemTime>,
    /// The provider answered the create call.
    pub allocated: Option<SystemTime>,
    /// The provider says that it runs.
    pub booted: Option<SystemTime>,
    /// The guest's kernel started, by the agent's account.
    pub kernel_started: Option<SystemTime>,
    /// The agent's first instruction, by its own account.
    pub agent_started: Option<SystemTime>,
    /// The agent is enrolled.
    pub enrolled: Option<SystemTime>,
    /// The agent knows its sandbox.
    pub bound: Option<SystemTime>,
    /// Ready.
    pub ready: Option<SystemTime>,
}

/// A change of a sandbox or a container, and how its pod is right after.
#[derive(Clone, Debug)]
pub struct Event {
    /// Id of the sandbox or container that changed.
    pub id: String,
    /// What happened.
    pub kind: EventKind,
    /// When the node knew.
    pub at: SystemTime,
    /// Its sandbox; of one that is gone, how it was last.
    pub sandbox: Option<SandboxStatus>,
    /// The containers that the sandbox has.
    pub containers: Vec<ContainerStatus>,
}

/// What can happen to a sandbox or a container, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventKind {
    /// It is there; of a sandbox: it is listed.
    Created,
    /// It runs; of a sandbox: it is ready.
    Started,
    /// It ended; of a sandbox: no container of it can run any more.
    Stopped,
    /// It is forgotten.
    Deleted,
}

/// A container as it is now.
#[derive(Clone, Debug)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// The sandbox it belongs to.
    pub sandbox: SandboxId,
    /// What was wanted.
    pub spec: std::sync::Arc<ContainerSpec>,
    /// Id of the image that it runs ("sha256:…").
    pub image_id: String,
    /// Where it is in its life.
    pub state: ContainerState,
    /// When the wish for it arrived; `None` for one that a former version made.
    pub wanted_at: Option<SystemTime>,
    /// When its machine had it, ready to start.
    pub created_at: SystemTime,
    /// When it started, by the node's clock as all of these.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub finished_at: Option<SystemTime>,
    /// How it ended; 0 before that.
    pub exit_code: i32,
    /// One word on how it ended: "Completed", "Error", "OOMKilled", "StartError", "MachineLost".
    pub reason: String,
    /// A sentence on how it ended.
    pub message: String,
    /// When its layers were in the machine.
    pub image_ready_at: Option<SystemTime>,
    /// Whom its first process runs as, once the machine said it.
    pub user: Option<ProcessUser>,
}

/// Whom a process runs as, by numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessUser {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContainerState {
    /// Ready to start.
    Created,
    /// Runs.
    Running,
    /// Ended, or its machine is gone.
    Exited,
    /// The node lost sight of it for now.
    Unknown,
}
