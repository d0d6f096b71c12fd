//! Volumes of a sandbox's containers: brought before a container is made, brought again when the node's files change, and
//! brought back when a container exits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::held::Told;
use super::{Containers, Done, Held};
use crate::engine::follow::Follower;
use crate::engine::link::bounded;
use crate::engine::mounts::{Content, Kept, Volume, only, owned};
use crate::engine::node::Node;
use crate::engine::share::{Holds, SandboxShares, Shared};
use crate::engine::timeouts::{AGENT_CALL, DELIVERY, WRITE_BACK};
use crate::error::Cause;
use crate::ids::SandboxId;
use crate::mounts::{Entry, FilesError, MountSource, NodePath};
use crate::session::{AgentSession, ObservedContainer, SessionError, VolumeKind, VolumeSource};
use crate::spec::{ContainerSpec, UserNamespace};
use crate::status::ContainerState;

/// Brings volumes, one after the other: what is read later is what the machine has last.
pub(super) struct Deliveries {
    node: Arc<Node>,
    turn: Mutex<()>,
    /// The pod's, where they are others in the machine.
    users: Option<UserNamespace>,
    shares: Arc<SandboxShares>,
}

/// A volume's id, and the revision at which the machine has it now.
pub(super) type Delivered = (String, Result<String, SessionError>);

impl Deliveries {
    pub(super) fn new(
        node: Arc<Node>,
        users: Option<UserNamespace>,
        shares: Arc<SandboxShares>,
    ) -> Self {
        Self { node, turn: Mutex::new(()), users, shares }
    }

    /// Brings what the machine has not, or has at another revision.
    pub(super) async fn bring(
        &self,
        session: &Arc<dyn AgentSession>,
        volumes: &[Volume],
    ) -> Result<Vec<Delivered>, SessionError> {
        if volumes.is_empty() {
            return Ok(Vec::new());
        }
        let _turn = self.turn.lock().await;
        let there = bounded(AGENT_CALL, session.volumes()).await?;
        let mut delivered = Vec::new();
        for volume in volumes {
            let has = there.get(&volume.id).map(String::as_str);
            let result = bounded(DELIVERY, self.bring_one(session, volume, has)).await;
            delivered.push((volume.id.clone(), result));
        }
        Ok(delivered)
    }

    async fn bring_one(
        &self,
        session: &Arc<dyn AgentSession>,
        volume: &Volume,
        has: Option<&str>,
    ) -> Result<String, SessionError> {
        let mut pause = CHANGED_PAUSE;
        for _ in 1..CHANGED_MAX {
            match self.try_one(session, volume, has).await {
                // Somebody writes to it: a moment later it may be whole.
                Err(SessionError::Files(FilesError::Changed(_))) => sleep(pause).await,
                other => return other,
            }
            pause *= 2;
        }
        self.try_one(session, volume, has).await
    }

    /// What nothing of the node is behind has been changed when it was made.
    fn made_now(&self, entry: Entry) -> Entry {
        let since = self.node.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Entry { modified: (seconds, since.subsec_nanos()), ..entry }
    }

    async fn try_one(
        &self,
        session: &Arc<dyn AgentSession>,
        volume: &Volume,
        has: Option<&str>,
    ) -> Result<String, SessionError> {
        let files = &self.node.parts.files;
        let limits = self.node.config.mounts.limits;
        let (kind, revision, parts) = match &volume.content {
            Content::Empty { memory_bytes, root } => {
                let kind = VolumeKind::Empty { memory_bytes: *memory_bytes };
                (kind, "empty".to_owned(), only(self.made_now(root.clone())))
            }
            Content::Nothing => {
                let root = self.made_now(Entry::plain_directory());
                (VolumeKind::Tree, "nothing".to_owned(), only(root))
            }
            Content::Shared { root, .. } => {
                (VolumeKind::Shared, "shared".to_owned(), only(root.clone()))
            }
            Content::Copy { path, file, whole } => {
                let kind = if *file { VolumeKind::File } else { VolumeKind::Tree };
                let revision = self.revision(path).await.map_err(SessionError::Files)?;
                (kind, revision, files.read(path.clone(), limits, *whole))
            }
        };
        if has != Some(revision.as_str()) {
            let parts = match self.users {
                Some(users) => owned(parts, users),
                None => parts,
            };
            let source =
                VolumeSource { id: volume.id.clone(), kind, revision: revision.clone(), parts };
            session.put_volume(source).await?;
        }
        if let Content::Shared { shared, .. } = &volume.content {
            self.shares.first(&self.node, session, shared).await?;
        }
        Ok(revision)
    }

    async fn revision(&self, path: &NodePath) -> Result<String, FilesError> {
        let limits = self.node.config.mounts.limits;
        let mut revisions = self.node.parts.files.revisions(vec![path.clone()], limits).await;
        revisions.pop().unwrap_or_else(|| Err(FilesError::Missing(path.shown())))
    }
}

impl Containers {
    /// Follows what containers that have not ended have copies of.
    pub(super) fn follow(&self) {
        self.node.follower.set(&self.sandbox, &self.followed());
        let mut holds = BTreeMap::new();
        for (id, held) in &self.held {
            let shared: Vec<Shared> = held.life.kept.iter().filter_map(Shared::of).collect();
            if !shared.is_empty() {
                let alive = held.life.state != ContainerState::Exited;
                holds.insert(id.clone(), Holds { shared, alive });
            }
        }
        self.node.shares.set(&self.shares, holds);
    }

    /// Keeps what containers share up to date from now on, if any does.
    pub(super) fn keep_shared(&mut self, session: Option<&Arc<dyn AgentSession>>) {
        let Some(session) = session.cloned() else { return };
        let shares = |held: &Held| held.life.kept.iter().any(|kept| kept.sharing.is_some());
        let idle = self.sharing.as_ref().is_none_or(AbortHandle::is_finished);
        if idle && self.held.values().any(|held| shares(held)) {
            let (node, shares) = (self.node.clone(), self.shares.clone());
            self.sharing = Some(self.work.spawn(async move {
                shares.follow(&node, &session).await;
                Done::Shared
            }));
        }
    }

    fn followed(&self) -> Vec<&Kept> {
        let alive = self.held.values().filter(|held| held.life.state != ContainerState::Exited);
        alive.flat_map(|held| &held.life.kept).filter(|kept| kept.follow).collect()
    }

    /// Brings again what changed on the node.
    pub(crate) fn refresh(&mut self, session: Option<&Arc<dyn AgentSession>>) {
        let mut volumes: Vec<Volume> = Vec::new();
        for kept in self.followed() {
            if !volumes.iter().any(|volume| volume.id == kept.id) {
                volumes.push(kept.volume());
            }
        }
        // Without a session it is done when the next one begins.
        let Some(session) = session.cloned().filter(|_| !volumes.is_empty()) else { return };
        if self.refreshing {
            self.refresh_again = true;
            return;
        }
        self.refreshing = true;
        let deliveries = self.deliveries.clone();
        let (node, sandbox) = (self.node.clone(), self.sandbox.clone());
        self.work.spawn(async move {
            let delivered = deliveries.bring(&session, &volumes).await;
            note(&node.follower, &sandbox, &volumes, delivered);
            Done::Refreshed
        });
    }

    pub(super) fn refreshed(&mut self, session: Option<&Arc<dyn AgentSession>>) {
        self.refreshing = false;
        if std::mem::take(&mut self.refresh_again) {
            self.refresh(session);
        }
    }

    /// Brings back what a container wrote before anybody hears that it exited. False when there is nothing to bring.
    pub(super) fn begin_write_back(
        &mut self,
        seen: &ObservedContainer,
        told: Told,
        now: SystemTime,
        session: &Arc<dyn AgentSession>,
    ) -> bool {
        let Some(held) = self.held.get_mut(&seen.id) else { return false };
        let back: Vec<Kept> =
            held.life.kept.iter().filter(|kept| kept.comes_back()).cloned().collect();
        // What ends already has been brought back.
        if back.is_empty() || held.ending || held.life.state == ContainerState::Exited {
            return false;
        }
        if !held.writing_back {
            held.writing_back = true;
            let (node, session, seen) = (self.node.clone(), session.clone(), seen.clone());
            let shares = self.shares.clone();
            self.work.spawn(async move {
                let files = write_back(&node, &session, &back);
                let (broke, shared) = join(files, shares.update(&node, &session, &seen.id)).await;
                let broke = broke || shared.is_err();
                Done::WroteBack(Box::new((seen, told, now)), broke)
            });
        }
        true
    }

    /// `broke`: the session ended before all was brought back.
    pub(super) async fn wrote_back(
        &mut self,
        (seen, told, now): (ObservedContainer, Told, SystemTime),
        broke: bool,
        session: Option<&Arc<dyn AgentSession>>,
    ) {
        let Some(held) = self.held.get_mut(&seen.id) else { return };
        held.writing_back = false;
        match (broke, session) {
            // The next session's list says again that it exited; if that came already, it is on us.
            (true, None) => {}
            (true, Some(session)) => {
                self.begin_write_back(&seen, told, now, session);
            }
            (false, session) => self.told(&seen, told, now, session).await,
        }
    }
}

/// Nobody asks for what a sandbox shared that is gone.
impl Drop for Containers {
    fn drop(&mut self) {
        self.node.shares.set(&self.shares, BTreeMap::new());
    }
}

/// The spec with the ids of the images that were found for it.
pub(super) fn with_image_ids(
    spec: Arc<ContainerSpec>,
    ids: Vec<(usize, String)>,
) -> Arc<ContainerSpec> {
    let mut spec = spec;
    for (number, found) in ids {
        let mount = Arc::make_mut(&mut spec).volumes.get_mut(number);
        if let Some(MountSource::Image { id, .. }) = mount.map(|mount| &mut mount.source) {
            *id = found;
        }
    }
    spec
}

/// Tells the follower what a machine has now.
fn note(
    follower: &Follower,
    sandbox: &SandboxId,
    volumes: &[Volume],
    delivered: Result<Vec<Delivered>, SessionError>,
) {
    let delivered = match delivered {
        Ok(delivered) => delivered,
        Err(error) => {
            tracing::debug!(sandbox = %sandbox, error = %Cause::from(&error).chain(), "files of the node could not be brought");
            volumes.iter().for_each(|volume| follower.brought(sandbox, &volume.id, None));
            return;
        }
    };
    for (id, result) in delivered {
        if let Err(error) = &result {
            tracing::warn!(sandbox = %sandbox, volume = %id, error = %Cause::from(error).chain(), "a change of the node's files could not be brought; it is tried again");
        }
        follower.brought(sandbox, &id, result.ok());
    }
}

/// True when the session broke in the middle. Whatever else fails is logged: the container has exited all the same.
async fn write_back(node: &Node, session: &Arc<dyn AgentSession>, kept: &[Kept]) -> bool {
    let all = async {
        for one in kept.iter().filter(|one| one.write_back) {
            match session.read_volume(&one.id, node.config.mounts.write_back_bytes).await {
                Ok(None) => {}
                Ok(Some(content)) => {
                    if let Err(error) = node.parts.files.write(&one.path, content).await {
                        let chain = Cause::of(error.kind(), &error).chain();
                        tracing::warn!(path = %one.path.shown().display(), error = %chain, "what a container wrote could not be brought back");
                    }
                }
                Err(error @ SessionError::Broken(_)) => return Err(error),
                Err(error) => {
                    let chain = Cause::from(&error).chain();
                    tracing::warn!(path = %one.path.shown().display(), error = %chain, "what a container wrote could not be brought back");
                }
            }
        }
        Ok(())
    };
    match bounded(WRITE_BACK, all).await {
        Ok(()) => false,
        Err(SessionError::Broken(_)) => true,
        Err(error) => {
            tracing::warn!(error = %Cause::from(&error).chain(), "what a container wrote was not brought back in time");
            false
        }
    }
}

/// How often a tree is read that changes meanwhile.
const CHANGED_MAX: u32 = 6;
const CHANGED_PAUSE: Duration = Duration::from_millis(20);
