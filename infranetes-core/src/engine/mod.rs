//! The engine: wishes in, machines out, nothing lost in between.
//!
//! ```text
//!  Intended ─► Submitted ─► Allocated ─► Booted ─► Bound ─► Ready ─► Stopping ─► Stopped ─► Removing ─► (gone)
//!     │           │             │           │        │        │
//!     └───────────┴─────────────┴───────────┴────────┴────────┴──► Failed ─► Removing
//! ```
//!
//! - *Intended*: the wish, the connection to the pod network where the node gives it (`connect`), and then the machine's name, token and invitation, are durable; the provider knows nothing.
//! - *Submitted*: the create call is on its way. It is never dropped half-way, and always repeated with the same token.
//! - *Allocated*: the provider named the machine. *Booted*: it runs, its agent enrols. *Bound*: the agent is enrolled
//!   and is told its sandbox.
//! - *Ready*: containers may come. It stays ready while the session is away, and while this process is.
//! - *Failed*: it did not become ready, or lost its machine. What exists of the machine is destroyed. One that was never
//!   ready starts over when it is asked for again, with a new machine; one that was ready never does.
//! - *Stopping*: containers end, then the machine is destroyed. *Stopped*: there is none any more.
//! - *Removing*: a durable deletion, retried until the provider says that nothing is left.
//!
//! # How it works
//! One task owns one sandbox (`sandbox`): nobody else changes its record. It asks the pure planner (`plan`) for the
//! next step, runs that one step, applies how it ended, and plans again; meanwhile it answers requests by the pure
//! admission table (`admission`). After a restart nothing is seen yet and the same planner finds the way from there.
//! Everybody else reads the `board`, so lists never wait for a task or a machine.
//!
//! # What it promises
//! - Nothing is asked of a provider that is not in the record first; a crash at any moment leaves no machine twice, none
//!   behind, and a running one as it is.
//! - A machine that nobody can reach any more does not keep its sandbox from being stopped and removed.
//! - A network that was begun for a sandbox is taken down after its last machine, and retried until nothing is left of it.
//! - Every wait has an end (`timeouts`), every queue a bound.

mod admission;
mod board;
mod boot;
mod calls;
mod checkpoint;
mod collect;
mod config;
mod connect;
mod container_plan;
mod containers;
mod follow;
mod interactive;
pub(crate) mod life;
mod link;
mod log_pump;
pub(crate) mod mounts;
mod naming;
mod node;
mod observe;
mod parts;
mod plan;
mod retry;
mod sandbox;
mod share;
mod sweep;
mod system;
mod timeouts;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

pub use board::Events;
pub use checkpoint::Restored;
pub use config::{EngineConfig, HandlerConfig, HandlerNetwork, PhaseTimeouts};
pub use parts::{EngineParts, Entropy, HandlerStatus, ImageSource, ResolvedImage, WallClock};
pub use system::{OnDiskError, OsEntropy, SystemClock};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout};

use crate::engine::board::{ContainerRequest, Door, Reply, Request};
use crate::engine::life::{ContainerLife, Goal, Life, LogMark, Network, Origin};
use crate::engine::node::Node;
use crate::engine::sandbox::{SandboxTask, door};
use crate::engine::timeouts::{
    AGENT_CALL, CONTAINER_CALL, CREATE_CONTAINER_CALL, REMOVE_CALL, STOP_CALL,
};
use crate::error::{Cause, EngineError, FailureKind};
use crate::ids::{ContainerId, SandboxId};
use crate::network::Prefix;
use crate::record::{
    Change, Entry, RecordError, Table, container, node as node_record, sandbox as sandbox_record,
};
use crate::session::{AgentSession, MachineUsage, SessionError};
use crate::spec::{ContainerSpec, SandboxSpec};
use crate::status::{ContainerStatus, Phase, SandboxStatus, Timeline};

/// Runs sandboxes. Cheap to clone; all clones are one engine.
#[derive(Clone)]
pub struct Engine {
    node: Arc<Node>,
    closing: Arc<AtomicBool>,
    /// One permit per call that goes on; [`Engine::shutdown`] waits for all.
    calls: Arc<Semaphore>,
}

impl Engine {
    /// Reads the record and takes up every sandbox where it was. Returns when lists answer; machines are visited afterwards.
    pub async fn start(config: EngineConfig, parts: EngineParts) -> Result<Engine, EngineError> {
        config.check()?;
        let loaded =
            Loaded::read(&parts).await.map_err(|error| EngineError::Record(Box::new(error)))?;
        let node = Arc::new(Node::new(config, parts));
        let born = loaded.born(&node).await?;
        let connected = loaded.sandboxes.values().filter(|life| life.network.may_be());
        let connected = connected.map(|life| life.id.clone()).collect();
        node.spawn(connect::collect(node.clone(), connected));
        loaded.resume(&node).await?;
        node.spawn(follow::Follower::run(node.clone()));
        for (name, provider) in &node.parts.providers {
            if let Ok(provider) = provider {
                let limit = PhaseTimeouts::default().provider_call;
                let calls = calls::Calls::new(name, provider.clone(), limit);
                node.spawn(sweep::run(node.clone(), calls.clone(), born));
                node.spawn(sweep::listen(node.clone(), calls));
            }
        }
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        Ok(Engine { node, closing: Arc::default(), calls })
    }

    /// Makes a sandbox and returns when it is ready. Keyed by (pod uid, attempt): the same wish again joins the first and
    /// answers the same id; dropping the call does not stop the boot.
    ///
    /// After a failure the same wish starts over with another machine. While the boot takes longer than the handler's
    /// `run_call`, the answer is [`EngineError::StillRunning`], and the boot goes on.
    pub async fn run_sandbox(&self, spec: SandboxSpec) -> Result<SandboxId, EngineError> {
        let _call = self.call()?;
        let node = &self.node;
        let handler = node.handler(&spec.handler)?;
        let limit = handler.timeouts.run_call;
        node.calls(&spec.handler, &handler.provider)?;
        if spec.pod.uid.is_empty() {
            let problem = "a pod without a uid cannot be told from others".to_owned();
            return Err(EngineError::Invalid { field: "pod.uid".to_owned(), problem });
        }
        let network = network(handler.network, &spec)?;
        let key = (spec.pod.uid.clone(), spec.pod.attempt);
        let (id, door) = node.board.enter(&key, || self.begin(spec, network, None));
        self.ask(&door, "sandbox", id.as_str(), limit, Request::Run)
            .await?
            .ok_or_else(|| self.still(&id, limit))
    }

    fn begin(
        &self,
        spec: SandboxSpec,
        network: Network,
        origin: Option<Box<Origin>>,
    ) -> (SandboxId, Door) {
        let id = self.node.random_sandbox_id();
        let now = self.node.now();
        let life = Life {
            id: id.clone(),
            spec: Arc::new(spec),
            created_at: now,
            goal: Goal::Run,
            tries: 0,
            passed_over: 0,
            machine: None,
            failure: None,
            was_ready: false,
            ips: Vec::new(),
            network,
            origin,
            timeline: Timeline { wanted: Some(now), ..Timeline::default() },
        };
        let (door, room) = door();
        let task = Box::new(SandboxTask::new(self.node.clone(), life, Vec::new(), room));
        self.node.spawn(task.run_new());
        (id, door)
    }

    /// Ends a sandbox's containers and its machine. Stopped already is success.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        let _call = self.call()?;
        let door = self.door(id)?;
        self.ask(&door, "sandbox", id.as_str(), STOP_CALL, Request::Stop)
            .await?
            .ok_or_else(|| self.still(id, STOP_CALL))
    }

    /// Removes a sandbox with all it owns; stops it first if need be. Succeeds when the machine is gone or a durable
    /// deletion exists, which is retried until it is, over restarts too.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        let _call = self.call()?;
        let door = self.door(id)?;
        if let Some(()) =
            self.ask(&door, "sandbox", id.as_str(), REMOVE_CALL, Request::Remove).await?
        {
            return Ok(());
        }
        // Only a removal that is durable is shown.
        match self.node.board.sandbox(id) {
            Some(status) if status.phase != Phase::Removing => Err(self.still(id, REMOVE_CALL)),
            _ => Ok(()),
        }
    }

    /// One sandbox, from what the node holds; one that is being removed is gone already.
    pub fn sandbox(&self, id: &SandboxId) -> Option<SandboxStatus> {
        self.node.board.sandbox(id).filter(|status| status.phase != Phase::Removing)
    }

    /// All sandboxes but those being removed, from what the node holds. See [`SandboxStatus::is_listed`] for what a
    /// kubelet may see of them.
    pub fn sandboxes(&self) -> Vec<SandboxStatus> {
        let mut all = self.node.board.sandboxes();
        all.retain(|status| status.phase != Phase::Removing);
        all
    }

    /// Durable deletions that go on: sandboxes that were removed and whose machines are not gone yet.
    pub fn removing(&self) -> Vec<SandboxStatus> {
        let mut all = self.node.board.sandboxes();
        all.retain(|status| status.phase == Phase::Removing);
        all
    }

    /// Creates a container in a ready sandbox: brings its image into the machine, then creates it.
    /// The same (name, attempt) again joins or answers the same id if the spec is the same.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, EngineError> {
        let _call = self.call()?;
        check_log_path(&spec)?;
        let door = self.door(sandbox)?;
        let name = spec.name.clone();
        let request = |reply| Request::CreateContainer(Box::new(spec), reply);
        self.ask(&door, "container", &name, CREATE_CONTAINER_CALL, request).await?.ok_or_else(
            || EngineError::StillRunning {
                subject: format!("container {name:?}"),
                doing: "on its way into the machine".to_owned(),
                waited_secs: CREATE_CONTAINER_CALL.as_secs(),
            },
        )
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.on_container(id, ContainerRequest::Start, CONTAINER_CALL).await
    }

    /// Stops a container: its stop signal, then after `grace` the hard way. Stopped already is success.
    pub async fn stop_container(
        &self,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), EngineError> {
        let grace = grace.min(GRACE_MAX);
        self.on_container(id, ContainerRequest::Stop(grace), grace + CONTAINER_CALL).await
    }

    /// Removes a container, killing it if it runs.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.on_container(id, ContainerRequest::Remove, CONTAINER_CALL).await
    }

    /// One container, from what the node holds. Its spec has no command, arguments, environment and seccomp profile after
    /// a restart: they may be secret, and are not kept.
    pub fn container(&self, id: &ContainerId) -> Option<ContainerStatus> {
        self.node.board.container(id)
    }

    /// All containers, from what the node holds.
    pub fn containers(&self) -> Vec<ContainerStatus> {
        self.node.board.containers()
    }

    /// Closes a container's log file and opens it by its name again, for log rotation.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.on_container(id, ContainerRequest::ReopenLog, CONTAINER_CALL).await
    }

    /// What a sandbox's machine uses; asks the machine, so it is for people and benchmarks, never for lists.
    pub async fn machine_usage(&self, id: &SandboxId) -> Result<MachineUsage, EngineError> {
        let _call = self.call()?;
        let session = self.session(id)?;
        timeout(AGENT_CALL, session.usage())
            .await
            .unwrap_or(Err(SessionError::TimedOut(AGENT_CALL)))
            .map_err(|cause| EngineError::Agent { action: "say what it uses".to_owned(), cause })
    }

    /// Which handlers can run pods.
    pub fn handlers(&self) -> Vec<HandlerStatus> {
        let network_problem = |network| match (network, &self.node.parts.network) {
            (HandlerNetwork::Provider, _) => None,
            (HandlerNetwork::Node, None) => Some("this node has no pod network".to_owned()),
            (HandlerNetwork::Node, Some(network)) => network.problem(),
        };
        let status = |(name, handler): (&String, &HandlerConfig)| HandlerStatus {
            name: name.clone(),
            provider: handler.provider.clone(),
            problem: match self.node.parts.providers.get(&handler.provider) {
                Some(Ok(_)) => None,
                Some(Err(problem)) => Some(problem.clone()),
                None => Some(format!("there is no provider {:?}", handler.provider)),
            },
            network: handler.network,
            network_problem: network_problem(handler.network),
        };
        self.node.config.handlers.iter().map(status).collect()
    }

    /// Tells the pod network of this node from which ranges pods are to get their addresses; without one it is nothing.
    pub fn use_pod_ranges(&self, ranges: &[Prefix]) -> Result<(), EngineError> {
        let Some(network) = &self.node.parts.network else { return Ok(()) };
        network.use_ranges(ranges).map_err(|error| EngineError::Network(Box::new(error)))
    }

    /// Takes no new wishes, lets running calls end within `grace`, and leaves every machine as it is.
    pub async fn shutdown(&self, grace: Duration) {
        self.closing.store(true, Ordering::SeqCst);
        self.node.board.end_events();
        let all = u32::try_from(CALLS_MAX).unwrap_or(u32::MAX);
        let _ = timeout(grace, self.calls.acquire_many(all)).await;
        self.node.abort();
    }

    /// Ends all work where it stands, as a crash does. Machines stay, and the next engine over the same record takes them up.
    pub fn abort(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.node.abort();
    }

    /// Counts a call, unless there are too many or the engine ends.
    fn call(&self) -> Result<tokio::sync::SemaphorePermit<'_>, EngineError> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(EngineError::ShuttingDown);
        }
        let busy = |_| EngineError::Busy(format!("{CALLS_MAX} calls go on already"));
        self.calls.try_acquire().map_err(busy)
    }

    fn door(&self, id: &SandboxId) -> Result<Door, EngineError> {
        self.node.board.door(id).ok_or_else(|| EngineError::SandboxNotFound(id.clone()))
    }

    async fn on_container(
        &self,
        id: &ContainerId,
        request: ContainerRequest,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let _call = self.call()?;
        let missing = || EngineError::ContainerNotFound(id.clone());
        let status = self.container(id).ok_or_else(missing)?;
        let door = self.node.board.door(&status.sandbox).ok_or_else(missing)?;
        let make = |reply| Request::Container(id.clone(), request, reply);
        self.ask(&door, "container", id.as_str(), limit, make).await?.ok_or_else(|| {
            EngineError::StillRunning {
                subject: format!("container {id}"),
                doing: format!("busy with {request:?}"),
                waited_secs: limit.as_secs(),
            }
        })
    }

    /// Asks a sandbox's task; `None` when it did not answer in time, and goes on.
    async fn ask<T>(
        &self,
        door: &Door,
        what: &str,
        name: &str,
        limit: Duration,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<Option<T>, EngineError> {
        let deadline = Instant::now() + limit;
        let (reply, answer) = oneshot::channel();
        let sending = door.requests.send(Box::new(request(reply)));
        let sent = tokio::time::timeout_at(deadline, sending).await;
        let gone = || EngineError::Busy(format!("{what} {name} is just going away"));
        match sent {
            Err(_) => return Ok(None),
            Ok(Err(_)) => return Err(gone()),
            Ok(Ok(())) => {}
        }
        match tokio::time::timeout_at(deadline, answer).await {
            Err(_) => Ok(None),
            Ok(Ok(answer)) => answer.map(Some),
            Ok(Err(_)) => Err(gone()),
        }
    }

    fn session(&self, id: &SandboxId) -> Result<Arc<dyn AgentSession>, EngineError> {
        let session = self.door(id)?.link.borrow().clone();
        session.ok_or_else(|| EngineError::MachineUnreachable {
            sandbox: id.clone(),
            cause: Cause::new(FailureKind::Unavailable, "no session to its agent is open now"),
        })
    }

    fn still(&self, id: &SandboxId, waited: Duration) -> EngineError {
        let status = self.node.board.sandbox(id);
        let doing = match status {
            None => "recorded".to_owned(),
            Some(status) if status.reason.is_empty() => {
                format!("{:?}", status.phase).to_lowercase()
            }
            Some(status) => {
                format!("{} ({})", format!("{:?}", status.phase).to_lowercase(), status.reason)
            }
        };
        EngineError::StillRunning {
            subject: format!("sandbox {id}"),
            doing,
            waited_secs: waited.as_secs(),
        }
    }
}

/// What the record says, sorted by sandbox.
#[derive(Default)]
struct Loaded {
    sandboxes: BTreeMap<SandboxId, Life>,
    containers: BTreeMap<SandboxId, Vec<(ContainerLife, LogMark)>>,
    /// Containers and marks whose sandbox or container is gone.
    strays: Vec<Change>,
    born: Option<SystemTime>,
}

impl Loaded {
    async fn read(parts: &EngineParts) -> Result<Self, RecordError> {
        let mut loaded = Self::default();
        let mut marks = BTreeMap::new();
        let mut containers = Vec::new();
        let mut take = |entry: &Entry| {
            match entry.table {
                Table::Sandboxes => {
                    let life = sandbox_record::decode(entry)?;
                    loaded.sandboxes.insert(life.id.clone(), life);
                }
                Table::Containers => containers.push(container::decode(entry)?),
                Table::Logs => {
                    let (id, mark) = container::decode_mark(entry)?;
                    marks.insert(id, mark);
                }
                Table::Node if entry.key == node_record::BORN => {
                    loaded.born = Some(node_record::decode_born(entry)?);
                }
                Table::Node => {}
            }
            Ok(())
        };
        let mut taken = Ok(());
        let mut take_next = |entry: Entry| {
            if taken.is_ok() {
                taken = take(&entry);
            }
        };
        parts.records.visit(&mut take_next).await?;
        taken?;
        let stray = |table, id: &ContainerId| Change::Delete { table, key: id.as_str().to_owned() };
        for life in containers {
            if loaded.sandboxes.contains_key(&life.sandbox) {
                let mark = marks.remove(&life.id).unwrap_or_default();
                loaded.containers.entry(life.sandbox.clone()).or_default().push((life, mark));
            } else {
                loaded.strays.push(stray(Table::Containers, &life.id));
            }
        }
        loaded.strays.extend(marks.keys().map(|id| stray(Table::Logs, id)));
        Ok(loaded)
    }

    /// When the record began; a new one begins now.
    async fn born(&self, node: &Node) -> Result<SystemTime, EngineError> {
        if let Some(born) = self.born {
            return Ok(born);
        }
        let now = node.now();
        node.commit(vec![Change::Put(node_record::encode_born(now))]).await?;
        Ok(now)
    }

    /// Begins a task for every sandbox.
    async fn resume(mut self, node: &Arc<Node>) -> Result<(), EngineError> {
        if !self.strays.is_empty() {
            node.commit(self.strays).await?;
        }
        for (id, mut life) in self.sandboxes {
            if life.origin.as_ref().is_some_and(|origin| !origin.done) {
                // Who asked for it was told that it failed.
                life.goal = Goal::Remove;
            }
            let containers = self.containers.remove(&id).unwrap_or_default();
            let key = (life.spec.pod.uid.clone(), life.spec.pod.attempt);
            let removing = life.goal == Goal::Remove;
            let (door, room) = door();
            let mut task = Box::new(SandboxTask::new(node.clone(), life, containers, room));
            if removing {
                node.board.enter_unnamed(id, door);
            } else {
                node.board.enter(&key, || (id, door));
            }
            task.resume();
            node.spawn(task.run());
        }
        Ok(())
    }
}

/// What a new sandbox has of the node's pod network.
fn network(handler: HandlerNetwork, spec: &SandboxSpec) -> Result<Network, EngineError> {
    match handler {
        HandlerNetwork::Node => Ok(Network::Unsettled),
        HandlerNetwork::Provider if spec.ports.is_empty() => Ok(Network::Own),
        HandlerNetwork::Provider => Err(EngineError::Unsupported(format!(
            "a port of the node for a pod of handler {:?}, whose machines are not in the node's pod network; use a Service",
            spec.handler
        ))),
    }
}

/// A log path that leads out of the sandbox's log directory is not a log path.
fn check_log_path(spec: &ContainerSpec) -> Result<(), EngineError> {
    use std::path::Component;
    let fine = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if spec.log_path.components().all(fine) {
        return Ok(());
    }
    Err(EngineError::Invalid {
        field: "log_path".to_owned(),
        problem: "it has to stay below the sandbox's log directory".to_owned(),
    })
}

const CALLS_MAX: usize = 4096;
const GRACE_MAX: Duration = Duration::from_secs(24 * 3600);
