//! What the engine holds of one sandbox: the part that is durable. `record` writes and reads it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use infranetes_sdk::pod::MachineType;

use crate::engine::mounts::Kept;
use crate::error::Cause;
use crate::ids::{ContainerId, MachineId, SandboxId};
use crate::network::Attachment;
use crate::session::names::ContainerNames;
use crate::session::{AgentIdentity, Ticket};
use crate::spec::{ContainerSpec, SandboxSpec};
use crate::status::{ContainerState, ContainerStatus, Phase, ProcessUser, Timeline};

/// A sandbox, from the wish to its last trace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Life {
    pub(crate) id: SandboxId,
    pub(crate) spec: Arc<SandboxSpec>,
    pub(crate) created_at: SystemTime,
    pub(crate) goal: Goal,
    /// How many machines were begun for it; part of the next one's name and token.
    pub(crate) tries: u32,
    /// How many candidates of the provider's plan lacked capacity in this attempt.
    pub(crate) passed_over: u32,
    /// The one machine that exists, or may exist.
    pub(crate) machine: Option<Machine>,
    /// Why it does not run, until a retry starts over.
    pub(crate) failure: Option<Failure>,
    /// It was ready once: its containers may have run, so it never starts over.
    pub(crate) was_ready: bool,
    pub(crate) ips: Vec<String>,
    pub(crate) network: Network,
    /// The checkpoint that it goes on from.
    pub(crate) origin: Option<Box<Origin>>,
    pub(crate) timeline: Timeline,
}

impl Life {
    /// What its machine calls containers, where that is not what the node does.
    pub(crate) fn container_names(&self) -> ContainerNames {
        self.origin.as_ref().map(|origin| origin.names.clone()).unwrap_or_default()
    }

    /// Whose name its agent has, or will have once there is a machine: nobody else may have it meanwhile.
    pub(crate) fn agent_name(&self) -> Option<&str> {
        let promised = self.origin.as_ref().filter(|_| !self.was_ready);
        let promised = promised.map(|origin| origin.agent_name.as_str());
        match &self.machine {
            Some(Machine { identity: Some(identity), .. }) => Some(&identity.agent_name),
            Some(machine) => Some(&machine.ticket.agent_name),
            None => promised,
        }
    }

    /// What its machine calls volumes, where that is not what the node does.
    pub(crate) fn volume_names(&self) -> BTreeMap<String, String> {
        self.origin.as_ref().map(|origin| origin.volumes.clone()).unwrap_or_default()
    }
}

/// A checkpoint that a sandbox goes on from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Origin {
    /// The provider's directory of it.
    pub(crate) machine: PathBuf,
    /// Which sandbox it is of.
    pub(crate) sandbox: SandboxId,
    /// The agent that wakes up has a certificate for this name.
    pub(crate) agent_name: String,
    pub(crate) shape: MachineType,
    /// What its interfaces in the pod network are called; none of them brings its own network.
    pub(crate) interfaces: Vec<String>,
    /// What wakes up with it, by the node's ids.
    pub(crate) containers: Vec<ContainerId>,
    /// What the machine calls them.
    pub(crate) names: ContainerNames,
    /// Ids of volumes by the node, and what the machine calls them.
    pub(crate) volumes: BTreeMap<String, String>,
    /// The containers are written down. What died before that is of no use.
    pub(crate) done: bool,
}

/// All that is held of a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Aspect {
    pub(crate) life: Life,
    pub(crate) containers: Vec<(ContainerLife, LogMark)>,
}

/// How far a sandbox is connected to the pod network of the node. The network's life encloses those of the machines.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Network {
    /// Its machine brings one.
    #[default]
    Own,
    /// Nothing of it exists.
    Down,
    /// Some of it may exist.
    Unsettled,
    /// It is connected.
    Up(Box<Attachment>),
}

impl Network {
    /// Whether something of it may exist that has to be taken down.
    pub(crate) fn may_be(&self) -> bool {
        matches!(self, Self::Unsettled | Self::Up(_))
    }

    pub(crate) fn attachment(&self) -> Option<&Attachment> {
        match self {
            Self::Up(attachment) => Some(attachment),
            Self::Own | Self::Down | Self::Unsettled => None,
        }
    }
}

/// What is to become of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Goal {
    Run,
    Stop,
    Remove,
}

/// A machine from its intent on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Machine {
    /// Name of the provider instance.
    pub(crate) provider: String,
    /// The same token twice is one machine.
    pub(crate) token: String,
    pub(crate) name: String,
    pub(crate) shape: MachineType,
    pub(crate) why: String,
    /// Kept until the provider named the machine: the same token needs the same shape.
    pub(crate) user_data: UserData,
    pub(crate) ticket: Ticket,
    /// The provider's id, once it said one.
    pub(crate) id: Option<MachineId>,
    /// Where the agent answers.
    pub(crate) endpoint: String,
    /// Who the agent is, once it is enrolled.
    pub(crate) identity: Option<AgentIdentity>,
    /// The name that the agent is to have instead: who it is stands in a checkpoint. It may have it already.
    pub(crate) next_name: Option<String>,
    /// Tells a restart of the agent.
    pub(crate) boot_id: String,
    pub(crate) kernel_release: String,
    /// It serves nobody any more and has to be destroyed, whatever the goal is.
    pub(crate) doomed: bool,
}

/// Bytes for the guest; they hold a one-time token, so they never show.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct UserData(pub(crate) Vec<u8>);

impl std::fmt::Debug for UserData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

/// Why a sandbox does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) phase: Phase,
    pub(crate) cause: Cause,
    /// The console's last lines, or empty.
    pub(crate) console: String,
}

/// A container that exists in a machine, or did.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerLife {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: SandboxId,
    /// After a restart without command, args, env and seccomp profile: they may hold secrets, and nothing needs them.
    pub(crate) spec: Arc<ContainerSpec>,
    /// Tells whether the same (name, attempt) is the same wish.
    pub(crate) fingerprint: String,
    pub(crate) image_id: String,
    pub(crate) state: ContainerState,
    pub(crate) wanted_at: Option<SystemTime>,
    pub(crate) created_at: SystemTime,
    pub(crate) started_at: Option<SystemTime>,
    pub(crate) finished_at: Option<SystemTime>,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) image_ready_at: Option<SystemTime>,
    pub(crate) user: Option<ProcessUser>,
    /// Copies that follow the node, or that the node follows.
    pub(crate) kept: Vec<Kept>,
}

/// How far a container's log is durable on the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogMark {
    /// The last chunk that is in the file.
    pub(crate) sequence: u64,
    /// The file's length with it.
    pub(crate) offset: u64,
    /// All of it came.
    pub(crate) finished: bool,
}

impl ContainerLife {
    /// As the outside sees it.
    pub(crate) fn status(&self) -> ContainerStatus {
        ContainerStatus {
            id: self.id.clone(),
            sandbox: self.sandbox.clone(),
            spec: self.spec.clone(),
            image_id: self.image_id.clone(),
            state: self.state,
            wanted_at: self.wanted_at,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            exit_code: self.exit_code,
            reason: self.reason.clone(),
            message: self.message.clone(),
            image_ready_at: self.image_ready_at,
            user: self.user.clone(),
        }
    }
}
