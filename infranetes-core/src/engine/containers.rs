//! The containers of one sandbox: what is held of each, and what goes on with it.
//!
//! Nothing about a container is decided twice: the machine's watch says how it is, the record keeps what it said last. A
//! container becomes durable when its machine has it; what a machine has and the record has not (a crash came between)
//! is removed from the machine when its list is next seen.

mod adopt;
mod bring;
mod held;
mod observed;
mod refusals;
mod update;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

pub(crate) use self::adopt::Adopted;
use self::bring::{Bring, log_path};
use self::held::Told;
pub(crate) use self::refusals::unreachable;
use self::refusals::{denied, taken};
use self::volumes::{Deliveries, with_image_ids};
use crate::engine::admission::{Admission, ContainerWish, admit_container};
use crate::engine::board::{ContainerRequest, Reply};
use crate::engine::life::{ContainerLife, Life, LogMark};
use crate::engine::link::bounded;
use crate::engine::log_pump::{Pump, SharedMark};
use crate::engine::mounts::Kept;
use crate::engine::node::Node;
use crate::engine::share::SandboxShares;
use crate::engine::timeouts::{AGENT_CALL, EXIT_SEEN, WORK};
use crate::error::{Cause, EngineError, FailureKind};
use crate::ids::{ContainerId, SandboxId};
use crate::record::{Change, Table, container};
use crate::session::{AgentSession, ObservedContainer};
use crate::spec::{ContainerResources, ContainerSpec, UserNamespace};
use crate::status::ContainerState;

/// The containers of a sandbox.
pub(crate) struct Containers {
    node: Arc<Node>,
    sandbox: SandboxId,
    /// Boxed: a node of such a map has room for eleven, and most sandboxes have one or two.
    held: BTreeMap<ContainerId, Box<Held>>,
    coming: BTreeMap<ContainerId, Coming>,
    /// The machine woke up with these; they are taken over soon.
    expected: BTreeSet<ContainerId>,
    work: JoinSet<Done>,
    /// One import at a time per machine: the second finds the layers that the first brought.
    imports: Arc<Semaphore>,
    deliveries: Arc<Deliveries>,
    shares: Arc<SandboxShares>,
    /// Keeps what containers share up to date while a session is open.
    sharing: Option<AbortHandle>,
    refreshing: bool,
    /// Something changed while what had changed before was brought.
    refresh_again: bool,
}

struct Held {
    life: ContainerLife,
    mark: SharedMark,
    pump: Option<RunningPump>,
    doing: Option<Doing>,
    exited: watch::Sender<bool>,
    /// Who waits for new limits.
    updating: Option<Reply<()>>,
    /// It ended, and the rest of its output is awaited before that is told.
    ending: bool,
    /// It exited, and what it wrote is on its way to the node.
    writing_back: bool,
}

struct RunningPump {
    abort: AbortHandle,
    reopen: mpsc::Sender<Reply<()>>,
    drained: watch::Receiver<bool>,
}

struct Doing {
    wish: ContainerWish,
    replies: Vec<Reply<()>>,
}

struct Coming {
    spec: Arc<ContainerSpec>,
    fingerprint: String,
    wanted_at: SystemTime,
    replies: Vec<Reply<ContainerId>>,
    abort: AbortHandle,
}

/// How a piece of work ended.
pub(crate) enum Done {
    Brought(ContainerId, Result<Brought, EngineError>),
    Did(ContainerId, ContainerWish, Result<(), EngineError>),
    Updated(ContainerId, Box<ContainerResources>, Result<(), EngineError>),
    /// A pump ended; `true` when it may be begun again.
    Pumped(ContainerId, bool),
    /// The rest of an ended container's output came, or took too long; how it ended, and when that was told.
    Drained(Box<ObservedContainer>, Told, SystemTime),
    Discarded,
    Refreshed,
    /// The session ended, or the containers that shared something did.
    Shared,
    /// `true` when the session broke in the middle.
    WroteBack(Box<(ObservedContainer, Told, SystemTime)>, bool),
}

/// A container that its machine has.
pub(crate) struct Brought {
    image_id: String,
    image_ready_at: SystemTime,
    mark: LogMark,
    kept: Vec<Kept>,
    /// Ids of images that it has mounted, by the number of the mount.
    image_ids: Vec<(usize, String)>,
    /// At which revisions the machine has its volumes.
    revisions: Vec<(String, String)>,
}

impl Containers {
    pub(crate) fn new(
        node: Arc<Node>,
        sandbox: SandboxId,
        users: Option<UserNamespace>,
        known: Vec<(ContainerLife, LogMark)>,
    ) -> Self {
        let held =
            |(life, mark): (ContainerLife, _)| (life.id.clone(), Box::new(Held::new(life, mark)));
        let shares = Arc::new(SandboxShares::new(sandbox.clone(), users));
        Self {
            deliveries: Arc::new(Deliveries::new(node.clone(), users, shares.clone())),
            shares,
            sharing: None,
            refreshing: false,
            refresh_again: false,
            node,
            sandbox,
            held: known.into_iter().map(held).collect(),
            coming: BTreeMap::new(),
            expected: BTreeSet::new(),
            work: JoinSet::new(),
            imports: Arc::new(Semaphore::new(1)),
        }
    }

    pub(crate) fn publish_all(&self) {
        for held in self.held.values() {
            self.node.board.restore_container(held.life.status());
        }
    }

    /// The next piece of work that ended; waits for ever when none goes on.
    pub(crate) async fn next_done(&mut self) -> Done {
        loop {
            match self.work.join_next().await {
                Some(Ok(done)) => return done,
                // Aborted; a panic does not come here, see `guarded`.
                Some(Err(_)) => {}
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// All of them, and how far their logs are.
    pub(crate) fn all(&self) -> Vec<(ContainerLife, LogMark)> {
        self.held.values().map(|held| (held.life.clone(), held.mark.get())).collect()
    }

    /// Ids of those that have not ended.
    pub(crate) fn alive(&self) -> Vec<ContainerId> {
        let alive = self.held.values().filter(|held| held.life.state != ContainerState::Exited);
        alive.map(|held| held.life.id.clone()).collect()
    }

    /// Says when the pumps that run have all of their output, and when all is brought back that containers wrote.
    pub(crate) fn drains(&self) -> Vec<watch::Receiver<bool>> {
        let pumps = self.held.values().filter_map(|held| held.pump.as_ref());
        let writes = |held: &Held| held.life.kept.iter().any(Kept::comes_back);
        let writers = self.held.values().filter(|held| writes(held));
        let writers = writers.map(|held| held.exited.subscribe());
        pumps.map(|pump| pump.drained.clone()).chain(writers).collect()
    }

    /// Changes that delete every trace of the containers.
    pub(crate) fn deletions(&self) -> Vec<Change> {
        self.held.keys().flat_map(deletions).collect()
    }

    pub(crate) fn create(
        &mut self,
        life: &Life,
        session: Option<&Arc<dyn AgentSession>>,
        spec: ContainerSpec,
        reply: Reply<ContainerId>,
    ) {
        let fingerprint = fingerprint(&spec);
        let same =
            |other: &ContainerSpec| (&other.name, other.attempt) == (&spec.name, spec.attempt);
        if let Some(coming) = self.coming.values_mut().find(|coming| same(&coming.spec)) {
            if coming.fingerprint == fingerprint {
                coming.replies.push(reply);
            } else {
                let _ = reply.send(Err(taken(&spec)));
            }
            return;
        }
        if let Some(held) = self.held.values().find(|held| same(&held.life.spec)) {
            let answer = if held.life.fingerprint == fingerprint {
                Ok(held.life.id.clone())
            } else {
                Err(taken(&spec))
            };
            let _ = reply.send(answer);
            return;
        }
        let Some(session) = session.cloned() else {
            let _ = reply.send(Err(unreachable(&self.sandbox)));
            return;
        };
        let id = self.node.random_container_id();
        let spec = Arc::new(spec);
        let bring = Bring {
            node: self.node.clone(),
            session,
            sandbox: life.spec.clone(),
            volume_names: life.volume_names(),
            id: id.clone(),
            spec: spec.clone(),
            imports: self.imports.clone(),
            deliveries: self.deliveries.clone(),
        };
        let name = id.clone();
        let abort = self.work.spawn(async move { Done::Brought(name, guarded(bring.run()).await) });
        let wanted_at = self.node.now();
        self.coming
            .insert(id, Coming { spec, fingerprint, wanted_at, replies: vec![reply], abort });
    }

    pub(crate) fn ask(
        &mut self,
        id: &ContainerId,
        request: ContainerRequest,
        session: Option<&Arc<dyn AgentSession>>,
        machine_is: bool,
        reply: Reply<()>,
    ) {
        let wish = wish(request);
        let Some(held) = self.held.get_mut(id) else {
            let _ = reply.send(Err(EngineError::ContainerNotFound(id.clone())));
            return;
        };
        match admit_container(held.standing(), wish) {
            Admission::AlreadyDone => {
                let _ = reply.send(Ok(()));
            }
            Admission::Deny(denial) => {
                let _ = reply.send(Err(denied(id, held.life.state, denial)));
            }
            Admission::Join => match &mut held.doing {
                Some(doing) if doing.replies.len() < REPLIES_MAX => doing.replies.push(reply),
                _ => {
                    let _ = reply.send(Err(EngineError::Busy(format!("container {id} is busy"))));
                }
            },
            Admission::Accept => self.begin(id, request, session, machine_is, reply),
        }
    }

    fn begin(
        &mut self,
        id: &ContainerId,
        request: ContainerRequest,
        session: Option<&Arc<dyn AgentSession>>,
        machine_is: bool,
        reply: Reply<()>,
    ) {
        let Some(held) = self.held.get_mut(id) else { return };
        if request == ContainerRequest::ReopenLog {
            held.reopen(reply);
            return;
        }
        // Those who wait for a patient stop get their answer from the removal that overtakes it.
        let mut replies = held.doing.take().map(|doing| doing.replies).unwrap_or_default();
        replies.push(reply);
        let ended = held.life.state == ContainerState::Exited || !machine_is;
        let wish = wish(request);
        held.doing = Some(Doing { wish, replies });
        let (name, sandbox) = (id.clone(), self.sandbox.clone());
        let session = session.cloned();
        let mut exited = held.exited.subscribe();
        let work = async move {
            let Some(session) = session else {
                // A machine that forgets a container it cannot be told about is told when it is back, by the comparison
                // of lists; only what has not ended needs the machine.
                let removal = request == ContainerRequest::Remove && ended;
                return if removal || !machine_is { Ok(()) } else { Err(unreachable(&sandbox)) };
            };
            let agent = |action: &str| {
                let action = action.to_owned();
                move |cause| EngineError::Agent { action, cause }
            };
            match request {
                ContainerRequest::Start => bounded(WORK, session.start_container(&name))
                    .await
                    .map_err(agent("start the container")),
                ContainerRequest::Stop(grace) => {
                    bounded(grace + WORK, session.stop_container(&name, grace))
                        .await
                        .map_err(agent("stop the container"))?;
                    let _ = timeout(EXIT_SEEN, exited.wait_for(|exited| *exited)).await;
                    Ok(())
                }
                ContainerRequest::Remove => bounded(WORK, session.remove_container(&name))
                    .await
                    .map_err(agent("remove the container")),
                ContainerRequest::ReopenLog => Ok(()),
            }
        };
        let name = id.clone();
        self.work.spawn(async move { Done::Did(name, wish, guarded(work).await) });
    }

    /// Applies what a piece of work came to.
    pub(crate) async fn apply(&mut self, done: Done, session: Option<&Arc<dyn AgentSession>>) {
        match done {
            Done::Brought(id, result) => self.brought(id, result, session).await,
            Done::Did(id, wish, result) => self.did(&id, wish, result).await,
            Done::Updated(id, resources, result) => self.updated(&id, &resources, result).await,
            Done::Pumped(id, again) => {
                if let Some(held) = self.held.get_mut(&id) {
                    held.pump = None;
                }
                if again {
                    self.pump(&id, session);
                }
            }
            Done::Drained(seen, told, now) => self.ended(&seen, told, now, session).await,
            Done::Discarded | Done::Shared => {}
            Done::Refreshed => self.refreshed(session),
            Done::WroteBack(seen, broke) => self.wrote_back(*seen, broke, session).await,
        }
    }

    async fn brought(
        &mut self,
        id: ContainerId,
        result: Result<Brought, EngineError>,
        session: Option<&Arc<dyn AgentSession>>,
    ) {
        let Some(coming) = self.coming.remove(&id) else { return };
        let brought = match result {
            Ok(brought) => brought,
            Err(error) => {
                self.discard(id, session);
                return answer_all(coming.replies, Err(error));
            }
        };
        let life = ContainerLife {
            id: id.clone(),
            sandbox: self.sandbox.clone(),
            spec: with_image_ids(coming.spec, brought.image_ids),
            fingerprint: coming.fingerprint,
            image_id: brought.image_id,
            state: ContainerState::Created,
            wanted_at: Some(coming.wanted_at),
            created_at: self.node.now(),
            started_at: None,
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image_ready_at: Some(brought.image_ready_at),
            user: None,
            kept: brought.kept,
        };
        let changes = vec![
            Change::Put(container::encode(&life)),
            Change::Put(container::encode_mark(&id, &brought.mark)),
        ];
        if let Err(error) = self.node.commit(changes).await {
            self.discard(id, session);
            return answer_all(coming.replies, Err(error));
        }
        self.node.board.post_container(life.status());
        self.held.insert(id.clone(), Box::new(Held::new(life, brought.mark)));
        self.follow();
        self.keep_shared(session);
        for (volume, revision) in brought.revisions {
            self.node.follower.brought(&self.sandbox, &volume, Some(revision));
        }
        answer_all(coming.replies, Ok(id));
    }

    async fn did(
        &mut self,
        id: &ContainerId,
        wish: ContainerWish,
        result: Result<(), EngineError>,
    ) {
        let Some(held) = self.held.get_mut(id) else { return };
        // A removal overtook this stop, and answers for it.
        if held.doing.as_ref().is_none_or(|doing| doing.wish != wish) {
            return;
        }
        let replies = held.doing.take().map(|doing| doing.replies).unwrap_or_default();
        let now = self.node.now();
        let result = match (wish, result) {
            (ContainerWish::Start, Ok(())) if held.life.state == ContainerState::Created => {
                held.life.state = ContainerState::Running;
                held.life.started_at = Some(now);
                self.keep(id).await;
                Ok(())
            }
            (ContainerWish::Stop, Ok(())) if held.life.state != ContainerState::Exited => {
                held.end(now, "Error", "it was stopped; its machine did not say how it ended");
                self.keep(id).await;
                Ok(())
            }
            (ContainerWish::Remove, Ok(())) => self.forget(id).await,
            (_, result) => result,
        };
        answer_all(replies, result);
    }

    async fn forget(&mut self, id: &ContainerId) -> Result<(), EngineError> {
        if let Some(pump) = self.held.get_mut(id).and_then(|held| held.pump.take()) {
            pump.abort.abort();
        }
        self.node.commit(deletions(id).into()).await?;
        self.held.remove(id);
        self.follow();
        self.node.board.remove_container(id);
        Ok(())
    }

    /// Nobody gets a container of a sandbox that ends.
    pub(crate) fn abandon_coming(&mut self) {
        for coming in std::mem::take(&mut self.coming).into_values() {
            coming.abort.abort();
            let error = EngineError::WrongState {
                subject: format!("sandbox {}", self.sandbox),
                state: "ending".to_owned(),
                needed: "it takes no containers any more".to_owned(),
            };
            answer_all(coming.replies, Err(error));
        }
    }

    /// Begins to carry a container's output if it has any to carry.
    fn pump(&mut self, id: &ContainerId, session: Option<&Arc<dyn AgentSession>>) {
        let (Some(held), Some(session)) = (self.held.get_mut(id), session) else { return };
        let mark = held.mark.get();
        let silent = held.life.state == ContainerState::Created && !held.ending;
        if held.pump.is_some() || mark.finished || silent {
            return;
        }
        let (reopen_sender, reopen) = mpsc::channel(1);
        let (drained_sender, drained) = watch::channel(false);
        let Some(log_directory) =
            self.node.board.sandbox(&self.sandbox).map(|s| s.spec.log_directory.clone())
        else {
            return;
        };
        let pump = Pump {
            node: self.node.clone(),
            session: session.clone(),
            id: id.clone(),
            path: log_path(&log_directory, &held.life.spec),
            mark: held.mark.clone(),
            reopen,
            drained: drained_sender,
        };
        let name = id.clone();
        let abort = self.work.spawn(async move {
            match pump.run().await {
                Ok(()) => Done::Pumped(name, false),
                Err(error) => {
                    let chain = Cause::of(FailureKind::Unavailable, &error).chain();
                    tracing::debug!(container = %name, error = %chain, "a log pump stopped");
                    sleep(PUMP_PAUSE).await;
                    Done::Pumped(name, true)
                }
            }
        });
        held.pump = Some(RunningPump { abort, reopen: reopen_sender, drained });
    }

    /// A new session: pumps of the old one are begun anew when its list comes.
    pub(crate) fn session_ended(&mut self) {
        if let Some(sharing) = self.sharing.take() {
            sharing.abort();
        }
        for held in self.held.values_mut() {
            if let Some(pump) = held.pump.take() {
                pump.abort.abort();
            }
        }
    }

    /// Removes from the machine what the record does not have.
    fn discard(&mut self, id: ContainerId, session: Option<&Arc<dyn AgentSession>>) {
        let Some(session) = session.cloned() else { return };
        self.work.spawn(async move {
            if let Err(error) = bounded(AGENT_CALL, session.remove_container(&id)).await {
                tracing::debug!(container = %id, error = %error, "a container without a record stays until the next session");
            }
            Done::Discarded
        });
    }

    /// Writes down and shows how a container is. What is not durable now is told by the machine again after a crash.
    async fn keep(&self, id: &ContainerId) {
        let Some(held) = self.held.get(id) else { return };
        self.node.board.post_container(held.life.status());
        if let Err(error) = self.node.commit(vec![Change::Put(container::encode(&held.life))]).await
        {
            tracing::warn!(container = %id, error = %error, "a container's state could not be recorded");
        }
    }
}

/// Tells whether two wishes are the same without keeping what they say: values of variables are secrets.
pub(crate) fn fingerprint(spec: &ContainerSpec) -> String {
    let mut hash = Sha256::new();
    // Its Debug names every field but the values of variables.
    hash.update(format!("{spec:?}"));
    for var in &spec.env {
        hash.update((var.value.len() as u64).to_be_bytes());
        hash.update(&var.value);
    }
    hex::encode(hash.finalize())
}

/// What a guest says is kept up to a bound.
fn short(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

/// A panic of one piece of work is an error of that piece.
async fn guarded<T>(work: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    match std::panic::AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result,
        Err(_) => Err(EngineError::Internal("a piece of work panicked".to_owned())),
    }
}

fn wish(request: ContainerRequest) -> ContainerWish {
    match request {
        ContainerRequest::Start => ContainerWish::Start,
        ContainerRequest::Stop(_) => ContainerWish::Stop,
        ContainerRequest::Remove => ContainerWish::Remove,
        ContainerRequest::ReopenLog => ContainerWish::ReopenLog,
    }
}

fn deletions(id: &ContainerId) -> [Change; 2] {
    [Table::Containers, Table::Logs]
        .map(|table| Change::Delete { table, key: id.as_str().to_owned() })
}

/// The last one gets the error itself, with all its types.
fn answer_all<T: Clone>(mut replies: Vec<Reply<T>>, answer: Result<T, EngineError>) {
    let last = replies.pop();
    for reply in replies {
        let _ = reply.send(match &answer {
            Ok(value) => Ok(value.clone()),
            Err(error) => Err(error.echo()),
        });
    }
    if let Some(last) = last {
        let _ = last.send(answer);
    }
}

/// What a killed program's exit code is.
const KILLED: i32 = 137;
const REPLIES_MAX: usize = 64;
const TEXT_MAX: usize = 4096;
const PUMP_PAUSE: Duration = Duration::from_secs(1);
