//! Volumes: files and directories that the node delivered, and empty directories, for the containers of this machine.
//!
//! ```text
//! STATE/volumes/ram/ID       what was delivered: a tmpfs, so that no secret is ever on a disk
//! STATE/volumes/ram/ID.N     a delivery on its way in
//! STATE/volumes/empty/ID     an empty directory on the machine's disk
//! STATE/volumes/memory/ID    one in memory: a tmpfs of its own, which has its size
//! STATE/volumes/sub/CID-N    a part of a volume that a container has mounted
//! ```
//!
//! A delivery counts when it is committed; one that breaks off leaves nothing. What a container made of a volume leads nowhere
//! else: parts of volumes are opened beneath them and mounted from there. Delivered volumes go with the last container that
//! mounts them, or when none came that does; empty ones live as long as the machine.

mod content;
mod merge;
mod places;
mod shared;
mod staging;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use infranetes_sdk::container::Mount;

pub(crate) use content::Content;
use places::Places;
pub(crate) use shared::{Found, Limits, Now, Put, Putting, SETTLED, Scan, Shared};
pub(crate) use staging::{Begin, Entry, EntryKind, Staging};

/// All volumes of the machine.
#[derive(Clone)]
pub struct Volumes(Arc<Mutex<State>>);

struct State {
    places: Places,
    volumes: BTreeMap<String, Volume>,
    /// What each container has mounted.
    users: BTreeMap<String, Uses>,
    deliveries: u64,
}

/// What a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory that the node owns.
    Tree,
    /// One file.
    File,
    /// A directory that containers own, in memory of this size or, with 0, wherever the machine has room.
    Empty { memory_bytes: u64 },
    /// A directory that containers and the node own together.
    Shared,
}

struct Volume {
    kind: Kind,
    revision: String,
    path: PathBuf,
    /// Of a file: SHA-256 of what the node delivered.
    digest: Vec<u8>,
    /// Of a shared volume: what is known of its entries.
    shared: Option<Shared>,
    /// When it was delivered, unless it was mounted since: a container that is on its way needs it.
    awaited: Option<Instant>,
}

#[derive(Default)]
struct Uses {
    volumes: BTreeSet<String>,
    parts: Vec<PathBuf>,
}

impl Volumes {
    /// Volumes below a directory of the agent's state. What a former agent left there is removed.
    pub fn prepare(dir: PathBuf) -> std::io::Result<Self> {
        let state = State {
            places: Places::prepare(dir)?,
            volumes: BTreeMap::new(),
            users: BTreeMap::new(),
            deliveries: 0,
        };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// Begins a delivery.
    pub(crate) fn begin(&self, begin: Begin) -> Result<Staging, VolumeError> {
        let mut state = self.lock();
        if let Some(long_ago) = Instant::now().checked_sub(AWAITED) {
            state.forget_awaited(long_ago);
        }
        if !state.volumes.contains_key(&begin.id) && state.volumes.len() >= VOLUMES_MAX {
            return Err(VolumeError::TooMany);
        }
        state.deliveries += 1;
        let number = state.deliveries;
        let path = state.places.ram()?.join(format!("{}.{number}", begin.id));
        Ok(Staging::new(begin, path))
    }

    /// Takes a delivery in: from here on it is what the volume is.
    pub(crate) fn commit(&self, staging: Staging) -> Result<(), VolumeError> {
        let mut state = self.lock();
        let id = staging.begin.id.clone();
        let (kind, revision) = (staging.begin.kind, staging.begin.revision.clone());
        if let Some(old) = state.volumes.get(&id)
            && std::mem::discriminant(&old.kind) != std::mem::discriminant(&kind)
        {
            return Err(VolumeError::OtherKind(id));
        }
        let known = state.volumes.contains_key(&id);
        let path = state.places.of(&id, kind)?;
        let digest = match kind {
            Kind::Empty { memory_bytes } => {
                let owner = staging.root()?;
                if !known {
                    state.places.make_empty(&path, memory_bytes, owner)?;
                }
                Vec::new()
            }
            Kind::Shared => {
                let owner = staging.root()?;
                if !known {
                    state.places.make_shared(&path, owner)?;
                }
                Vec::new()
            }
            Kind::File => staging.place_file(&path)?,
            Kind::Tree => {
                staging.place_tree(&path)?;
                Vec::new()
            }
        };
        let known = state.volumes.remove(&id).and_then(|volume| volume.shared);
        let shared = match kind {
            Kind::Shared => known.or_else(|| Some(Shared::new(path.clone()))),
            _ => None,
        };
        let volume = Volume { kind, revision, path, digest, shared, awaited: Some(Instant::now()) };
        state.volumes.insert(id, volume);
        Ok(())
    }

    /// Every volume and its revision.
    pub(crate) fn list(&self) -> Vec<(String, String)> {
        let state = self.lock();
        state.volumes.iter().map(|(id, volume)| (id.clone(), volume.revision.clone())).collect()
    }

    /// The content of a volume that is one file.
    pub(crate) fn content(&self, id: &str) -> Result<Content, VolumeError> {
        let state = self.lock();
        let volume = state.volumes.get(id).ok_or_else(|| VolumeError::None(id.to_owned()))?;
        match volume.kind {
            Kind::File => Content::open(&volume.path, volume.digest.clone()),
            _ => Err(VolumeError::NoFile(id.to_owned())),
        }
    }

    /// A shared volume.
    pub(crate) fn shared(&self, id: &str) -> Result<Shared, VolumeError> {
        let state = self.lock();
        let volume = state.volumes.get(id).ok_or_else(|| VolumeError::None(id.to_owned()))?;
        volume.shared.clone().ok_or_else(|| VolumeError::NotShared(id.to_owned()))
    }

    /// Begins to change entries of a shared volume.
    pub(crate) fn change(&self, id: &str) -> Result<Putting, VolumeError> {
        let shared = self.shared(id)?;
        let mut state = self.lock();
        state.deliveries += 1;
        let name = format!("{id}.{}", state.deliveries);
        let staging = state.places.ram()?.join(name);
        drop(state);
        shared.begin(staging)
    }

    /// Turns mounts of volumes into mounts of the machine's paths, for one container. The same again gives the same.
    pub(crate) fn mount(&self, container: &str, mounts: &mut [Mount]) -> Result<(), VolumeError> {
        self.lock().mount_all(container, mounts)
    }

    /// Forgets what a container has mounted, and the delivered volumes that nobody else has.
    pub(crate) fn release(&self, container: &str) {
        self.lock().release(container);
    }

    /// Unmounts and removes everything.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        for container in state.users.keys().cloned().collect::<Vec<_>>() {
            state.release(&container);
        }
        state.volumes.clear();
        if let Err(error) = state.places.clear() {
            tracing::warn!(%error, "volumes are left behind");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn mount_all(&mut self, container: &str, mounts: &mut [Mount]) -> Result<(), VolumeError> {
        let mut uses = Uses::default();
        let mut outcome = Ok(());
        for (number, mount) in mounts.iter_mut().enumerate() {
            if mount.r#type != VOLUME {
                continue;
            }
            match self.source(container, number, mount, &mut uses) {
                Ok(source) => {
                    mount.source = source.display().to_string();
                    mount.r#type = "bind".to_owned();
                    mount.sub_path = String::new();
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        match outcome {
            Ok(()) => {
                for id in &uses.volumes {
                    if let Some(volume) = self.volumes.get_mut(id) {
                        volume.awaited = None;
                    }
                }
                if !(uses.volumes.is_empty() && uses.parts.is_empty()) {
                    self.users.insert(container.to_owned(), uses);
                }
                Ok(())
            }
            Err(error) => {
                uses.parts.iter().for_each(|part| self.places.unmount_part(part));
                Err(error)
            }
        }
    }

    fn source(
        &self,
        container: &str,
        number: usize,
        mount: &Mount,
        uses: &mut Uses,
    ) -> Result<PathBuf, VolumeError> {
        let missing = || VolumeError::None(mount.source.clone());
        let volume = self.volumes.get(&mount.source).ok_or_else(missing)?;
        uses.volumes.insert(mount.source.clone());
        if mount.sub_path.is_empty() {
            return Ok(volume.path.clone());
        }
        let makes_dirs = matches!(volume.kind, Kind::Empty { .. });
        let part = self.places.part(container, number);
        self.places.mount_part(&volume.path, &mount.sub_path, &part, makes_dirs)?;
        uses.parts.push(part.clone());
        Ok(part)
    }

    fn release(&mut self, container: &str) {
        let Some(uses) = self.users.remove(container) else { return };
        uses.parts.iter().for_each(|part| self.places.unmount_part(part));
        for id in uses.volumes {
            let is_awaited = self.volumes.get(&id).is_some_and(|one| one.awaited.is_some());
            if !is_awaited && !self.is_used(&id) {
                self.forget(&id);
            }
        }
    }

    /// Forgets what was delivered before then for a container that never came. Should it come yet, the node delivers again.
    fn forget_awaited(&mut self, before: Instant) {
        let mut late = Vec::new();
        for (id, volume) in &mut self.volumes {
            if volume.awaited.is_some_and(|since| since <= before) {
                volume.awaited = None;
                late.push(id.clone());
            }
        }
        for id in late.iter().filter(|id| !self.is_used(id)).cloned().collect::<Vec<_>>() {
            self.forget(&id);
        }
    }

    fn is_used(&self, id: &str) -> bool {
        self.users.values().any(|uses| uses.volumes.contains(id))
    }

    /// Forgets a volume, unless it is the containers' own.
    fn forget(&mut self, id: &str) {
        let is_empty = |volume: &Volume| matches!(volume.kind, Kind::Empty { .. });
        if self.volumes.get(id).is_none_or(is_empty) {
            return;
        }
        if let Some(volume) = self.volumes.remove(id)
            && let Err(error) = places::remove(&volume.path)
        {
            tracing::warn!(volume = id, %error, "a volume is left behind");
        }
    }
}

/// Why something cannot be done with a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// There is none of this id.
    #[error("this machine has no volume {0:?}")]
    None(String),
    /// It is of another kind.
    #[error("the volume {0:?} is here already, and of another kind")]
    OtherKind(String),
    /// It is no single file.
    #[error("the volume {0:?} is not a single file")]
    NoFile(String),
    /// It is not shared with the node.
    #[error("the volume {0:?} is not shared with the node")]
    NotShared(String),
    /// A shared volume has more in it than the node takes.
    #[error("the volume has {0}")]
    TooMuch(String),
    /// Too many volumes.
    #[error("a machine has at most {VOLUMES_MAX} volumes")]
    TooMany,
    /// A delivery that cannot be.
    #[error("the delivery is not valid: {0}")]
    Invalid(String),
    /// The part of a volume is not there, or leads out of it.
    #[error("{path:?} is not in the volume, or leads out of it")]
    NoPart {
        /// Which.
        path: String,
        /// What the kernel said.
        #[source]
        cause: std::io::Error,
    },
    /// The machine's file system failed.
    #[error("cannot {what} a volume")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

impl VolumeError {
    fn io<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self::Io { what, cause: cause.into() }
    }
}

/// Whether a path is relative and leads down only. The empty path is the volume itself.
pub(crate) fn leads_down(path: &Path) -> bool {
    use std::path::Component;
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// The type of mounts that name a volume.
pub(crate) const VOLUME: &str = "volume";
const VOLUMES_MAX: usize = 4096;
/// How long what was delivered waits for its container: longer than the node takes from one to the other.
const AWAITED: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests;
