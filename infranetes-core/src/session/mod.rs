//! What the engine needs from the agent in a machine, whoever carries it.
//!
//! [`AgentConnector`] is handed to the engine: the real one (`session::tls`) speaks gRPC over mutual TLS, a simulated world
//! brings its own. The engine keeps one [`AgentSession`] per machine and dials again when it ends.

pub mod duplex;
pub(crate) mod names;
mod shared;
pub mod tls;
mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::stream::BoxStream;

use self::duplex::{ExecStart, PortInputs, PortOutputs, ProgramInputs, ProgramOutputs};
pub use self::shared::{
    MachineEntry, VolumeChange, VolumeChanges, VolumePart, VolumeParts, VolumeScan,
};
pub use self::volumes::{VolumeKind, VolumeMount, VolumeMountSource, VolumeSource};
use crate::error::FailureKind;
use crate::ids::{ContainerId, SandboxId};
use crate::mounts::{FilesError, Limits};
use crate::network::NetworkLayout;
use crate::spec::{
    ContainerResources, DeviceSpec, Dns, EnvVar, MachineMount, PidMode, PodIdentity, SecuritySpec,
    UserNamespace,
};
use crate::stats::StatsSample;
use crate::status::ProcessUser;

/// Makes agents known to this node and opens sessions to them.
#[async_trait]
pub trait AgentConnector: Send + Sync + 'static {
    /// Makes what a new machine must know to enrol: the user-data, and what the node keeps. Pure but for randomness: nothing is
    /// remembered here, so it is recorded by the caller before the machine is made.
    fn invite(&self, sandbox: &SandboxId) -> Result<Invitation, SessionError>;

    /// A name that no agent has, for one that leaves its own behind: see [`AgentSession::rename`].
    fn another_name(&self) -> Result<String, SessionError> {
        let message = "agents keep their names here".to_owned();
        Err(SessionError::Refused { kind: FailureKind::Unsupported, message })
    }

    /// Enrols the agent at `endpoint` by the ticket. A ticket works once: on success the identity has to be recorded, and
    /// [`AgentConnector::connect`] is what follows where no session came with it, also after a restart.
    ///
    /// Fails with [`SessionError::NotYet`] while nobody answers there: the caller goes on asking until its own deadline.
    async fn enrol(&self, endpoint: &str, ticket: &Ticket) -> Result<Enrolled, SessionError>;

    /// Opens a session to an agent that is enrolled; says hello.
    async fn connect(
        &self,
        endpoint: &str,
        identity: &AgentIdentity,
    ) -> Result<Arc<dyn AgentSession>, SessionError>;
}

/// What `invite` gives: one half for the machine, one for the node.
pub struct Invitation {
    /// For the machine: the node's CA, the agent's name, the one-time token.
    pub user_data: Vec<u8>,
    /// For the node's record.
    pub ticket: Ticket,
}

/// The node's half of an invitation. Durable; secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The name that the agent's certificate will carry.
    pub agent_name: String,
    /// The one-time token.
    pub token: Vec<u8>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("agent_name", &self.agent_name).finish_non_exhaustive()
    }
}

/// What an enrolment gives.
pub struct Enrolled {
    /// Who the agent is.
    pub identity: AgentIdentity,
    /// A session that is open already. Its first call should be `bind`, and soon.
    pub session: Option<Arc<dyn AgentSession>>,
}

/// Who an enrolled agent is. Durable; not secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentIdentity {
    /// The name in its certificate.
    pub agent_name: String,
}

/// An open session to one agent. All calls are cancelled by dropping them.
#[async_trait]
pub trait AgentSession: Send + Sync + 'static {
    /// What the agent said of itself when the session opened.
    fn hello(&self) -> &AgentHello;

    /// Tells the machine which sandbox it serves. The same again succeeds.
    async fn bind(&self, binding: &Binding) -> Result<Bound, SessionError>;

    /// Gives the agent a new certificate when the one it has is due; does nothing before that.
    async fn rotate_if_due(&self) -> Result<(), SessionError>;

    /// Gives the agent a new key, and a certificate for another name: whoever connects from then on has to know it by that. The same
    /// again gives another key. An agent from before there were checkpoints refuses with an error that is no broken session.
    async fn rename(&self, agent_name: &str) -> Result<(), SessionError> {
        let _ = agent_name;
        let message = "this agent keeps its name".to_owned();
        Err(SessionError::Refused { kind: FailureKind::Unsupported, message })
    }

    /// Digests of the layers that the machine lacks.
    async fn missing_layers(&self, image: &MachineImage) -> Result<Vec<String>, SessionError>;

    /// Streams layers in; each is verified by the agent.
    async fn import_layers(&self, layers: Vec<LayerSource>) -> Result<(), SessionError>;

    /// Creates a container. The same id and plan again succeeds.
    async fn create_container(
        &self,
        id: &ContainerId,
        plan: &ContainerPlan,
    ) -> Result<(), SessionError>;

    /// Starts a created container; one that runs already succeeds.
    async fn start_container(&self, id: &ContainerId) -> Result<(), SessionError>;

    /// Stops a container and returns once it exited; gone is success.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), SessionError>;

    /// Gives a container that is created or runs new limits; what is 0 or empty stays. A refusal changes nothing.
    async fn update_container(
        &self,
        id: &ContainerId,
        resources: &ContainerResources,
    ) -> Result<(), SessionError>;

    /// Removes a container, killing it if need be; gone is success.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), SessionError>;

    /// Runs a command in a container to its end, without input.
    async fn exec_sync(&self, request: ExecRequest) -> Result<ExecResult, SessionError>;

    /// Runs a command in a container, on streams; see [`duplex`].
    async fn exec(
        &self,
        start: ExecStart,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, SessionError>;

    /// Connects to a running container's own streams: its output from now on, its input if it has one. Several at once may. The
    /// output ends with the container's; one who falls far behind it is dropped with an error, and the container does not wait.
    async fn attach(
        &self,
        id: &ContainerId,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, SessionError>;

    /// Connects to a TCP port on the machine's loopback; fails with [`FailureKind::Unavailable`] when nobody listens there.
    async fn port_forward(&self, port: u16, input: PortInputs)
    -> Result<PortOutputs, SessionError>;

    /// A container's output after `after`; ends when all was sent.
    async fn logs(&self, id: &ContainerId, after: u64) -> Result<Box<dyn LogSource>, SessionError>;

    /// How all containers are, then every change. Ends with an error when the session does.
    async fn watch(
        &self,
    ) -> Result<BoxStream<'static, Result<WatchEvent, SessionError>>, SessionError>;

    /// What the machine and its containers use: a sample at once, one soon after each start of a container, and one at the
    /// end of each period. An agent from before there were samples refuses with [`FailureKind::Unsupported`]. Ends with an
    /// error when the session does.
    async fn stats(
        &self,
        period: Duration,
    ) -> Result<BoxStream<'static, Result<StatsSample, SessionError>>, SessionError>;

    /// Brings a volume into the machine, where containers can mount it from then on. Dropped or failed, it changes nothing.
    async fn put_volume(&self, source: VolumeSource) -> Result<(), SessionError>;

    /// The volumes that the machine has, with their revisions.
    async fn volumes(&self) -> Result<BTreeMap<String, String>, SessionError>;

    /// The last bytes, at most so many, of a volume that is one file; `None` when it is as it was delivered.
    async fn read_volume(&self, id: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, SessionError>;

    /// What the machine has of a shared directory, unless that is what it was at this revision. An agent from before there were
    /// shared directories refuses with [`FailureKind::Unsupported`], and already their delivery.
    async fn scan_volume(
        &self,
        id: &str,
        known: &[u8],
        limits: Limits,
    ) -> Result<VolumeScan, SessionError> {
        let _ = (id, known, limits);
        Err(shares_nothing())
    }

    /// Reads entries of a shared directory. What is gone is left out.
    async fn read_entries(
        &self,
        id: &str,
        paths: Vec<PathBuf>,
    ) -> Result<VolumeParts, SessionError> {
        let _ = (id, paths);
        Err(shares_nothing())
    }

    /// Changes entries of a shared directory, and says what is agreed on; answers how many were left alone.
    async fn put_entries(&self, id: &str, changes: VolumeChanges) -> Result<u64, SessionError> {
        let _ = (id, changes);
        Err(shares_nothing())
    }

    /// What the machine uses.
    async fn usage(&self) -> Result<MachineUsage, SessionError>;

    /// Lets these containers, all that run, stand still for a checkpoint of the machine. An agent from before there were
    /// checkpoints refuses with [`FailureKind::Unsupported`].
    async fn begin_checkpoint(&self, containers: &[ContainerId]) -> Result<(), SessionError> {
        let _ = containers;
        let message = "this agent knows no checkpoints".to_owned();
        Err(SessionError::Refused { kind: FailureKind::Unsupported, message })
    }

    /// Lets them go on; says whether they stood still until now.
    async fn end_checkpoint(&self) -> Result<bool, SessionError> {
        Ok(false)
    }

    /// Stops all containers and powers the machine off; returns when the agent agreed.
    async fn shutdown(&self, grace: Duration) -> Result<(), SessionError>;
}

fn shares_nothing() -> SessionError {
    let message = "this agent knows no shared directories".to_owned();
    SessionError::Refused { kind: FailureKind::Unsupported, message }
}

/// One container's output on its way.
#[async_trait]
pub trait LogSource: Send {
    /// The next piece; `None` when the container's output ended and all of it came.
    ///
    /// Has to be cancel-safe: a call that is dropped before it answered has taken nothing, and the next one gives the piece.
    /// The engine waits for it and for others at once, and drops it whenever another comes first.
    async fn next(&mut self) -> Result<Option<LogChunk>, SessionError>;

    /// Everything up to this sequence number is durable on the node.
    async fn acknowledge(&mut self, sequence: u64) -> Result<(), SessionError>;
}

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentHello {
    /// New with every start of the agent: a change means that its containers are gone.
    pub boot_id: String,
    /// Version of the agent.
    pub agent_version: String,
    /// The sandbox it serves, if it knows.
    pub sandbox_id: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// How long after the kernel's start the agent started.
    pub agent_started: Duration,
    /// How long after the kernel's start the agent answered hello.
    pub now: Duration,
}

/// What a machine is told when it gets its sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Its pod.
    pub pod: PodIdentity,
    /// Host name; empty leaves the machine's own.
    pub hostname: String,
    /// DNS client settings.
    pub dns: Dns,
    /// Kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// How the pod's network namespace looks, where the node gives the network: a machine with a network stack of its own
    /// makes it look the same.
    pub network: Option<NetworkLayout>,
}

/// What a machine says when it got its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// Its addresses as it sees them.
    pub ips: Vec<String>,
}

/// An image, as far as a machine has to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineImage {
    /// Digest of the configuration.
    pub id: String,
    /// Lowest first.
    pub layers: Vec<MachineLayer>,
}

/// A layer of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineLayer {
    /// Digest of the blob as it travels.
    pub digest: String,
    /// Digest of the unpacked tar.
    pub diff_id: String,
    /// Size of the blob.
    pub size_bytes: u64,
    /// Tells the compression.
    pub media_type: String,
}

/// A layer and its bytes.
pub struct LayerSource {
    /// Which one.
    pub layer: MachineLayer,
    /// Its bytes, read as the session asks for them.
    pub reader: std::pin::Pin<Box<dyn tokio::io::AsyncRead + Send>>,
}

/// A container as the machine gets it: the image's defaults are merged in.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerPlan {
    /// Its image.
    pub image: MachineImage,
    /// Program and arguments; never empty.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<EnvVar>,
    /// Working directory.
    pub cwd: String,
    /// Runs on a terminal.
    pub tty: bool,
    /// Has a standard input.
    pub stdin: bool,
    /// It closes when the first client leaves.
    pub stdin_once: bool,
    /// What stops it.
    pub stop_signal: String,
    /// The image's user, used where `security` names none.
    pub image_user: String,
    /// Who it runs as and what it may do.
    pub security: SecuritySpec,
    /// Limits.
    pub resources: ContainerResources,
    /// Whose processes it sees.
    pub pid_mode: PidMode,
    /// Its users are others in the machine.
    pub users: Option<UserNamespace>,
    /// Mounts within the machine.
    pub mounts: Vec<MachineMount>,
    /// Mounts of volumes and images.
    pub volumes: Vec<VolumeMount>,
    /// Devices of the machine.
    pub devices: Vec<DeviceSpec>,
}

/// A command for a running container.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// The container.
    pub container: ContainerId,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Killed after this time.
    pub timeout: Option<Duration>,
    /// The most bytes kept of each stream; the rest is read and dropped.
    pub output_limit: usize,
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecResult {
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// Its exit code; 128 + signal when killed.
    pub exit_code: i32,
    /// It was killed because its time was over.
    pub timed_out: bool,
}

/// A piece of a container's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// 1, 2, 3 … per container.
    pub sequence: u64,
    /// Where it was written.
    pub stream: LogStream,
    /// When it was read.
    pub timestamp: SystemTime,
    /// The bytes.
    pub data: Vec<u8>,
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Something a machine tells by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// All containers there are; always the first.
    Snapshot(Vec<ObservedContainer>),
    /// One changed.
    Changed(ObservedContainer),
    /// One was removed.
    Removed(ContainerId),
}

/// A container as its machine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Its id.
    pub id: ContainerId,
    /// Whether it was created, runs or exited.
    pub state: ObservedState,
    /// When it started.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub finished_at: Option<SystemTime>,
    /// How it ended.
    pub exit_code: i32,
    /// One word on how it ended.
    pub reason: String,
    /// A sentence on how it ended.
    pub message: String,
    /// Whom its first process runs as.
    pub user: Option<ProcessUser>,
}

/// What a machine says of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservedState {
    /// Ready to start.
    Created,
    /// Runs.
    Running,
    /// Ended.
    Exited,
}

/// What a machine and its agent use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineUsage {
    /// Resident memory of the agent.
    pub agent_rss_bytes: u64,
    /// Memory of the machine.
    pub memory_total_bytes: u64,
    /// Memory that is free for use.
    pub memory_available_bytes: u64,
}

/// Why a call to an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Nobody answers at this address yet.
    #[error("no agent answers at {endpoint}")]
    NotYet {
        /// Where.
        endpoint: String,
        /// What was seen.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Whoever answers is not the agent that was invited.
    #[error("who answers at {endpoint} did not prove to be the invited agent: {problem}")]
    Untrusted {
        /// Where.
        endpoint: String,
        /// What did not fit.
        problem: String,
    },
    /// No common version of the protocol.
    #[error("the agent speaks protocol {agent}, this node {oldest} to {newest}")]
    Version {
        /// The agent's.
        agent: String,
        /// The node's oldest.
        oldest: u32,
        /// The node's newest.
        newest: u32,
    },
    /// The agent refused the request.
    #[error("{message}")]
    Refused {
        /// What kind of refusal.
        kind: FailureKind,
        /// The agent's sentence.
        message: String,
    },
    /// The session broke; another one may work.
    #[error("the session to the agent broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time.
    #[error("the agent did not answer within {0:?}")]
    TimedOut(Duration),
    /// What the agent sent cannot be.
    #[error("the agent sent what it must not: {0}")]
    Violation(String),
    /// What was to be brought cannot be read on the node.
    #[error(transparent)]
    Files(FilesError),
    /// The node's own key, certificate or source failed.
    #[error("the node's side of the session failed: {problem}")]
    Local {
        /// What failed.
        problem: String,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl SessionError {
    /// What kind of failure this is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NotYet { .. } | Self::Broken(_) => FailureKind::Unavailable,
            Self::Untrusted { .. } => FailureKind::Denied,
            Self::Version { .. } => FailureKind::Unsupported,
            Self::Refused { kind, .. } => *kind,
            Self::Files(error) => error.kind(),
            Self::TimedOut(_) => FailureKind::TimedOut,
            Self::Violation(_) | Self::Local { .. } => FailureKind::Internal,
        }
    }
}
