//! What the whole node knows at any moment: read by lists, written by the tasks that own the sandboxes.

mod counters;
mod events;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{mpsc, oneshot, watch};

use self::counters::Counters;
pub use self::events::Events;
use self::events::{Teller, Told, farewell, news};
use crate::engine::containers::Adopted;
use crate::engine::life::Aspect;
use crate::engine::naming;
use crate::engine::parts::WallClock;
use crate::error::EngineError;
use crate::ids::{ContainerId, SandboxId};
use crate::session::AgentSession;
use crate::spec::{ContainerResources, ContainerSpec, SandboxResources};
use crate::status::{ContainerStatus, SandboxStatus};

/// The board. Locks are held for a lookup or a clone, never over a wait.
pub(crate) struct Board {
    inner: RwLock<Inner>,
    counters: Counters,
    teller: Teller,
}

#[derive(Default)]
struct Inner {
    sandboxes: BTreeMap<SandboxId, Posted>,
    by_key: BTreeMap<Key, SandboxId>,
    containers: BTreeMap<ContainerId, ContainerStatus>,
}

/// (pod uid, attempt): what makes two wishes for a sandbox the same.
pub(crate) type Key = (String, u32);

struct Posted {
    door: Door,
    key: Key,
    /// `None` until the wish is durable.
    status: Option<SandboxStatus>,
    /// Name of the machine that it owns, from the intent on; the orphan sweep keeps off it.
    machine: Option<String>,
    /// Name of the agent that it has, or is to have.
    agent: Option<String>,
    told: Told,
}

/// The way to the task that owns a sandbox.
#[derive(Clone)]
pub(crate) struct Door {
    /// Boxed: such a queue has room for 32 from its beginning on, and there is one for each sandbox.
    pub(crate) requests: mpsc::Sender<Box<Request>>,
    pub(crate) link: watch::Receiver<Option<Arc<dyn AgentSession>>>,
}

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

/// What is asked of a sandbox's task.
pub(crate) enum Request {
    Run(Reply<SandboxId>),
    Stop(Reply<()>),
    Remove(Reply<()>),
    CreateContainer(Box<ContainerSpec>, Reply<ContainerId>),
    Container(ContainerId, ContainerRequest, Reply<()>),
    UpdateContainer(ContainerId, Box<ContainerResources>, Reply<()>),
    /// What the pod asks for now, and what its machine needs on top; `None` leaves either as it is.
    Resize(Option<SandboxResources>, Option<SandboxResources>, Reply<()>),
    /// All that is held of it.
    Look(Reply<Box<Aspect>>),
    /// Containers that came with its machine.
    Adopt(Vec<Adopted>, Reply<()>),
    /// Who its agent is will stand in a checkpoint: write down that it is to be somebody else.
    LeaveName(Reply<()>),
    /// Let it be somebody else.
    TakeName(Reply<()>),
    /// Its machine may be gone: look.
    Doubt,
    /// Files of the node changed that its containers have copies of.
    Refresh,
}

/// What is asked of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerRequest {
    Start,
    Stop(std::time::Duration),
    Remove,
    ReopenLog,
}

impl Board {
    pub(crate) fn new(clock: Arc<dyn WallClock>) -> Self {
        Self { inner: RwLock::default(), counters: Counters::default(), teller: Teller::new(clock) }
    }

    /// Every change from now on.
    pub(crate) fn events(&self) -> Result<Events, EngineError> {
        self.teller.subscribe()
    }

    /// Ends all streams of changes.
    pub(crate) fn end_events(&self) {
        self.teller.end();
    }

    /// The task for this key: the one there is, or the one that `make` begins.
    pub(crate) fn enter(
        &self,
        key: &Key,
        make: impl FnOnce() -> (SandboxId, Door),
    ) -> (SandboxId, Door) {
        let mut inner = self.write();
        if let Some(id) = inner.by_key.get(key)
            && let Some(posted) = inner.sandboxes.get(id)
        {
            return (id.clone(), posted.door.clone());
        }
        let (id, door) = make();
        inner.by_key.insert(key.clone(), id.clone());
        let posted = Posted {
            door: door.clone(),
            key: key.clone(),
            status: None,
            machine: None,
            agent: None,
            told: Told::default(),
        };
        inner.sandboxes.insert(id.clone(), posted);
        (id, door)
    }

    /// A task that nobody meets under its key any more: its sandbox is being removed.
    pub(crate) fn enter_unnamed(&self, id: SandboxId, door: Door) {
        let posted = Posted {
            door,
            key: Key::default(),
            status: None,
            machine: None,
            agent: None,
            told: Told::default(),
        };
        self.write().sandboxes.insert(id, posted);
    }

    pub(crate) fn door(&self, id: &SandboxId) -> Option<Door> {
        self.read().sandboxes.get(id).map(|posted| posted.door.clone())
    }

    /// Whoever asks again from now on does not meet this sandbox under its key.
    pub(crate) fn release_key(&self, id: &SandboxId) {
        let mut inner = self.write();
        if let Some(key) = inner.sandboxes.get(id).map(|posted| posted.key.clone())
            && inner.by_key.get(&key) == Some(id)
        {
            inner.by_key.remove(&key);
        }
    }

    pub(crate) fn post(
        &self,
        status: SandboxStatus,
        machine: Option<String>,
        agent: Option<String>,
    ) {
        let mut inner = self.write();
        let Some(posted) = inner.sandboxes.get_mut(&status.id) else { return };
        let news = posted.told.advance(&status);
        // How an earlier process of the node left it is no news.
        let resumed = posted.status.is_none();
        let id = status.id.clone();
        posted.status = Some(status);
        posted.machine = machine;
        posted.agent = agent;
        let posted = inner.sandboxes.get(&id).filter(|_| !resumed);
        if let Some(status) = posted.and_then(|posted| posted.status.as_ref()) {
            self.teller.sandbox(&inner, status, &news);
        }
    }

    /// Says why a step does not get on.
    pub(crate) fn note(&self, id: &SandboxId, reason: &str) {
        let mut inner = self.write();
        if let Some(status) = inner.sandboxes.get_mut(id).and_then(|posted| posted.status.as_mut())
        {
            status.reason = reason.to_owned();
        }
    }

    pub(crate) fn remove(&self, id: &SandboxId) {
        self.release_key(id);
        let mut inner = self.write();
        let own = |one: &&ContainerStatus| one.sandbox == *id;
        let containers: Vec<_> = inner.containers.values().filter(own).cloned().collect();
        for container in containers {
            inner.containers.remove(&container.id);
            self.teller.container(&inner, &container, farewell(&container));
        }
        if let Some(posted) = inner.sandboxes.remove(id)
            && let Some(status) = &posted.status
        {
            self.teller.sandbox(&inner, status, posted.told.end());
        }
        self.counters.forget_sandbox(id, &inner);
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> Option<SandboxStatus> {
        self.read().sandboxes.get(id)?.status.clone()
    }

    pub(crate) fn sandboxes(&self) -> Vec<SandboxStatus> {
        self.read().sandboxes.values().filter_map(|posted| posted.status.clone()).collect()
    }

    /// Names of all machines that some sandbox owns.
    pub(crate) fn machine_names(&self) -> BTreeSet<String> {
        self.read().sandboxes.values().filter_map(|posted| posted.machine.clone()).collect()
    }

    /// Whether a sandbox has the agent of this name, or is to have it.
    pub(crate) fn agent_is_taken(&self, name: &str) -> bool {
        self.read().sandboxes.values().any(|posted| posted.agent.as_deref() == Some(name))
    }

    /// Notes it before the sandbox's task does.
    pub(crate) fn claim_agent(&self, id: &SandboxId, name: &str) {
        if let Some(posted) = self.write().sandboxes.get_mut(id) {
            posted.agent = Some(name.to_owned());
        }
    }

    /// Whether some sandbox, known or just being wished for, is the one of which a tag has the start of the id.
    pub(crate) fn has_tag(&self, tag: &str) -> bool {
        self.read().sandboxes.keys().any(|id| naming::sandbox_tag(id) == tag)
    }

    /// Sends a request to the ready sandboxes whose machine's id is doubtful. A task that is busy is asked next time.
    pub(crate) fn doubt(
        &self,
        provider: &str,
        doubtful: impl Fn(&str) -> bool,
        request: impl Fn() -> Request,
    ) {
        for posted in self.read().sandboxes.values() {
            let ready = posted.status.as_ref().filter(|status| status.is_ready());
            let machine = ready.and_then(|status| status.machine.as_ref());
            if machine.is_some_and(|one| one.provider == provider && doubtful(&one.id.0)) {
                let _ = posted.door.requests.try_send(Box::new(request()));
            }
        }
    }

    pub(crate) fn post_container(&self, status: ContainerStatus) {
        let mut inner = self.write();
        self.counters.begin(&status);
        let id = status.id.clone();
        let news = news(inner.containers.get(&id), &status);
        inner.containers.insert(id.clone(), status);
        if let Some(status) = inner.containers.get(&id) {
            self.teller.container(&inner, status, &news);
        }
    }

    /// Shows a container of the record, which is no news.
    pub(crate) fn restore_container(&self, status: ContainerStatus) {
        let mut inner = self.write();
        self.counters.begin(&status);
        inner.containers.insert(status.id.clone(), status);
    }

    pub(crate) fn remove_container(&self, id: &ContainerId) {
        let mut inner = self.write();
        if let Some(last) = inner.containers.remove(id) {
            self.teller.container(&inner, &last, farewell(&last));
            self.counters.forget_container(id, &last.sandbox);
        }
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<ContainerStatus> {
        self.read().containers.get(id).cloned()
    }

    pub(crate) fn containers_of(&self, id: &SandboxId) -> Vec<ContainerStatus> {
        let own = |one: &&ContainerStatus| one.sandbox == *id;
        self.read().containers.values().filter(own).cloned().collect()
    }

    pub(crate) fn containers(&self) -> Vec<ContainerStatus> {
        self.read().containers.values().cloned().collect()
    }

    // A panic while the lock is held leaves complete entries: each change is one insert or remove.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}
