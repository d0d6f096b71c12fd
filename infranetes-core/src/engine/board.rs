//! What the whole node knows at any moment: read by lists, written by the tasks that own the sandboxes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{mpsc, oneshot, watch};

use crate::error::EngineError;
use crate::ids::{ContainerId, SandboxId};
use crate::session::AgentSession;
use crate::spec::ContainerSpec;
use crate::status::{ContainerStatus, SandboxStatus};

/// The board. Locks are held for a lookup or a clone, never over a wait.
#[derive(Default)]
pub(crate) struct Board {
    inner: RwLock<Inner>,
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
}

/// The way to the task that owns a sandbox.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) requests: mpsc::Sender<Request>,
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
    /// Its machine may be gone: look.
    Doubt,
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
        let posted = Posted { door: door.clone(), key: key.clone(), status: None, machine: None };
        inner.sandboxes.insert(id.clone(), posted);
        (id, door)
    }

    /// A task that nobody meets under its key any more: its sandbox is being removed.
    pub(crate) fn enter_unnamed(&self, id: SandboxId, door: Door) {
        let posted = Posted { door, key: Key::default(), status: None, machine: None };
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

    pub(crate) fn post(&self, status: SandboxStatus, machine: Option<String>) {
        if let Some(posted) = self.write().sandboxes.get_mut(&status.id) {
            posted.status = Some(status);
            posted.machine = machine;
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
        inner.sandboxes.remove(id);
        inner.containers.retain(|_, container| container.sandbox != *id);
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
                let _ = posted.door.requests.try_send(request());
            }
        }
    }

    pub(crate) fn post_container(&self, status: ContainerStatus) {
        self.write().containers.insert(status.id.clone(), status);
    }

    pub(crate) fn remove_container(&self, id: &ContainerId) {
        self.write().containers.remove(id);
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<ContainerStatus> {
        self.read().containers.get(id).cloned()
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
