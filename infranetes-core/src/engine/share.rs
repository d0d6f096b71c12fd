//! Keeps shared directories of the node and of machines the same.
//!
//! A *round* compares both sides of one directory and brings each what the other changed; `round.rs` runs it. Rounds are made when a
//! container comes that mounts the directory, before a command begins in it and when that ended, before it is told
//! that it exited, and about once a second while it runs: less often where a round costs much. A round in which nothing
//! changed is a look at the node's directory and one short call to the machine.
//!
//! Nothing is written down: what both sides agreed on last is in the machine. A round that breaks off anywhere is made up
//! for by the next one.

mod round;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep, timeout};

use self::round::{Round, RoundError};
use crate::engine::link::bounded;
use crate::engine::mounts::{Kept, Sharing};
use crate::engine::node::Node;
use crate::engine::timeouts::{DELIVERY, SHARE};
use crate::error::Cause;
use crate::ids::{ContainerId, SandboxId};
use crate::mounts::{NodePath, SharedPath};
use crate::session::{AgentSession, SessionError};
use crate::spec::UserNamespace;

/// A directory that a machine shares with the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    /// The machine's volume.
    pub(crate) id: String,
    pub(crate) path: SharedPath,
    /// Below which of its paths containers may write.
    pub(crate) writable: Vec<PathBuf>,
}

impl Shared {
    pub(crate) fn new(id: &str, path: &NodePath, sharing: &Sharing) -> Self {
        let path = SharedPath {
            path: path.clone(),
            inode: sharing.inode,
            mounted: sharing.mounted.clone(),
        };
        Self { id: id.to_owned(), path, writable: sharing.writable.clone() }
    }

    pub(crate) fn of(kept: &Kept) -> Option<Self> {
        kept.sharing.as_ref().map(|sharing| Self::new(&kept.id, &kept.path, sharing))
    }
}

/// The shared directories of all sandboxes that have some.
#[derive(Default)]
pub(crate) struct Shares(Mutex<BTreeMap<SandboxId, Arc<SandboxShares>>>);

impl Shares {
    /// Those of a sandbox, if a container of it has any.
    pub(crate) fn of(
        &self,
        sandbox: &SandboxId,
        container: &ContainerId,
    ) -> Option<Arc<SandboxShares>> {
        let shares = self.lock().get(sandbox).cloned()?;
        let has = shares.lock().held.contains_key(container);
        has.then_some(shares)
    }

    /// From here on a sandbox has these containers with shared directories.
    pub(crate) fn set(&self, shares: &Arc<SandboxShares>, held: BTreeMap<ContainerId, Holds>) {
        let none = held.is_empty();
        shares.lock().held = held;
        let mut all = self.lock();
        if none {
            all.remove(&shares.sandbox);
        } else {
            all.insert(shares.sandbox.clone(), shares.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Arc<SandboxShares>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a container has of shared directories.
pub(crate) struct Holds {
    pub(crate) shared: Vec<Shared>,
    /// It has not ended.
    pub(crate) alive: bool,
}

/// The shared directories of one sandbox.
pub(crate) struct SandboxShares {
    sandbox: SandboxId,
    /// The pod's, where they are others in the machine.
    users: Option<UserNamespace>,
    state: Mutex<State>,
    /// One round at a time: by volume, what both sides were when there was nothing to do.
    rounds: AsyncMutex<BTreeMap<String, round::Rest>>,
}

#[derive(Default)]
struct State {
    held: BTreeMap<ContainerId, Holds>,
    /// What was said of a volume last, and when: a machine does not fill the log.
    said: BTreeMap<String, (String, Instant)>,
}

impl SandboxShares {
    pub(crate) fn new(sandbox: SandboxId, users: Option<UserNamespace>) -> Self {
        let (state, rounds) = (Mutex::default(), AsyncMutex::default());
        Self { sandbox, users, state, rounds }
    }

    /// Makes both sides the same before a container is there that has it mounted.
    pub(crate) async fn first(
        &self,
        node: &Node,
        session: &Arc<dyn AgentSession>,
        shared: &Shared,
    ) -> Result<(), SessionError> {
        self.round(node, session, shared, DELIVERY).await.map_err(RoundError::into)
    }

    /// Brings all that a container shares up to date on both sides, as far as that goes in time. What fails is logged; only the end of
    /// the session is told.
    pub(crate) async fn update(
        &self,
        node: &Node,
        session: &Arc<dyn AgentSession>,
        container: &ContainerId,
    ) -> Result<(), SessionError> {
        let shared = self.lock().held.get(container).map(|holds| holds.shared.clone());
        let shared = shared.unwrap_or_default();
        // What is not brought in time is by a later round.
        let all = self.update_all(node, session, shared, SHARE);
        timeout(SHARE, all).await.unwrap_or(Ok(false)).map(drop)
    }

    /// Brings what containers that have not ended share up to date, for ever; ends with the session, or when there are none.
    pub(crate) async fn follow(&self, node: &Node, session: &Arc<dyn AgentSession>) {
        loop {
            let began = Instant::now();
            let mut shared: BTreeMap<String, Shared> = BTreeMap::new();
            for holds in self.lock().held.values().filter(|holds| holds.alive) {
                shared.extend(holds.shared.iter().map(|one| (one.id.clone(), one.clone())));
            }
            if shared.is_empty() {
                return;
            }
            let all = shared.into_values().collect();
            let least = match self.update_all(node, session, all, DELIVERY).await {
                Err(_) => return,
                Ok(true) => LOOK_EVERY,
                Ok(false) => AGAIN,
            };
            sleep((began.elapsed() * PACE).clamp(least, LOOK_EVERY_MOST)).await;
        }
    }

    /// False when something could not be brought.
    async fn update_all(
        &self,
        node: &Node,
        session: &Arc<dyn AgentSession>,
        all: Vec<Shared>,
        limit: Duration,
    ) -> Result<bool, SessionError> {
        let mut whole = true;
        for shared in all {
            match self.round(node, session, &shared, limit).await {
                Ok(()) => {}
                Err(RoundError::Session(error @ SessionError::Broken(_))) => return Err(error),
                Err(error) => {
                    whole = false;
                    let error = Cause::from(&SessionError::from(error)).chain();
                    self.say(node, &shared, error);
                }
            }
        }
        Ok(whole)
    }

    async fn round(
        &self,
        node: &Node,
        session: &Arc<dyn AgentSession>,
        shared: &Shared,
        limit: Duration,
    ) -> Result<(), RoundError> {
        let round = async {
            let mut rounds = self.rounds.lock().await;
            let rest = rounds.remove(&shared.id);
            let mut shared = shared.clone();
            shared.writable = self.writable(&shared);
            let round = Round {
                files: node.parts.files.as_ref(),
                limits: node.config.mounts.shared_limits,
                session,
                shared: &shared,
                users: self.users,
            };
            let made = round.run(rest).await?;
            if let Some(rest) = made.rest {
                rounds.insert(shared.id.clone(), rest);
            }
            for remark in made.remarks {
                self.say(node, &shared, remark);
            }
            match made.failed {
                Some(error) => Err(error),
                None => Ok(()),
            }
        };
        match bounded(limit, async { Ok(round.await) }).await {
            Ok(made) => made,
            Err(error) => Err(RoundError::Session(error)),
        }
    }

    /// Whatever a container of the sandbox may write to, the machine may change.
    fn writable(&self, shared: &Shared) -> Vec<PathBuf> {
        let mut writable = shared.writable.clone();
        for one in self.lock().held.values().flat_map(|holds| &holds.shared) {
            if one.id == shared.id {
                writable.extend(one.writable.iter().cloned());
            }
        }
        writable
    }

    fn say(&self, node: &Node, shared: &Shared, what: String) {
        let now = Instant::now();
        {
            let mut state = self.lock();
            let lately = |(said, at): &(String, Instant)| {
                *said == what && now < *at + SAY_EVERY || now < *at + SAY_EVERY_LEAST
            };
            if state.said.get(&shared.id).is_some_and(lately) {
                return;
            }
            state.said.insert(shared.id.clone(), (what.clone(), now));
        }
        let pod = node
            .board
            .sandbox(&self.sandbox)
            .map(|status| format!("{}/{}", status.spec.pod.namespace, status.spec.pod.name));
        tracing::warn!(sandbox = %self.sandbox, pod = %pod.unwrap_or_default(), path = %shared.path.path.shown().display(), problem = %what, "a shared path and its copy in a machine differ");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The least time between two rounds.
const LOOK_EVERY: Duration = Duration::from_millis(1000);
/// The same, after one in which something failed.
const AGAIN: Duration = Duration::from_secs(5);
const LOOK_EVERY_MOST: Duration = Duration::from_secs(30);
/// Rounds take no more than a tenth of the time.
const PACE: u32 = 9;
/// How often the same is said of a volume, and how often anything is.
const SAY_EVERY: Duration = Duration::from_secs(300);
const SAY_EVERY_LEAST: Duration = Duration::from_secs(5);
