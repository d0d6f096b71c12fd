//! The store: opened once, then asked from everywhere.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::config::{ImageStoreConfig, Limits, RegistriesConfig};
use super::credentials::Credentials;
use super::digest::{Digest, ImageId};
use super::disk::{FIXED_INODES, Layout};
use super::index::{self, ImageRecord, IndexError};
use super::info::{ImageInfo, ImageUser, StoreUsage};
use super::platform::Platform;
use super::pull::Pulls;
use super::pull_error::PullError;
use super::state::State;

/// The node's image store. Cheap to clone; all clones are one store.
///
/// Questions are answered from memory and never wait for a pull. The store closes when the last clone, pull,
/// reader and hold is gone.
#[derive(Clone)]
pub struct ImageStore {
    shared: Arc<Shared>,
}

/// Keeps the layers of an image while it lives, also when the image is removed.
pub struct ImageHold {
    shared: Arc<Shared>,
    digests: Vec<Digest>,
}

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenImageStoreError {
    /// Another process has it open.
    #[error("the image store {} is in use by another process", .root.display())]
    InUse {
        /// The directory of the store.
        root: PathBuf,
    },
    /// The list of images is damaged or cannot be read.
    #[error("the image store {} cannot be opened", .root.display())]
    Index {
        /// The directory of the store.
        root: PathBuf,
        /// The cause.
        #[source]
        source: IndexError,
    },
    /// The directory cannot be made, read or written.
    #[error("the directory of the image store {} cannot be used", .root.display())]
    Disk {
        /// The directory of the store.
        root: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// An image cannot be removed.
#[derive(Debug, thiserror::Error)]
#[error(
    "image {id} cannot be removed from the store; it stays, and removing it can be tried again"
)]
pub struct RemoveImageError {
    id: ImageId,
    #[source]
    source: io::Error,
}

impl ImageStore {
    /// Opens the store in `config.root`, which is made if it is not there.
    ///
    /// Refuses a root that is in use and one whose list of images is damaged; deletes nothing then. An image
    /// whose blobs are not all there is left out, and pulled again when somebody wants it.
    pub async fn open(config: ImageStoreConfig) -> Result<ImageStore, OpenImageStoreError> {
        let layout = Layout { root: config.root.clone() };
        let opened = blocking(move || Opened::new(&layout)).await;
        let opened = opened.map_err(|source| disk_error(&config, source))??;
        let shared = Arc::new(Shared::new(config, opened));
        let sweeper = tokio::spawn(sweep_when_needed(
            Arc::downgrade(&shared),
            Arc::clone(&shared.sweep_now),
            shared.limits.keep_unfinished / 4,
        ));
        *lock(&shared.sweeper) = Some(sweeper.abort_handle());
        Ok(ImageStore { shared })
    }

    /// Pulls an image and answers its id, also when all of it is there already.
    ///
    /// Pulls of one reference with the same credentials at the same time are one pull. Dropping the last
    /// future that waits for a pull cancels it; what arrived is kept for a while, and the next pull continues
    /// from there. Credentials that name another server than the image's registry are not used.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> Result<ImageId, PullError> {
        self.shared.join_pull(reference, credentials).await
    }

    /// The image that `reference_or_id` means: by tag, by digest, or by id with or without `sha256:`.
    pub fn status(&self, reference_or_id: &str) -> Option<ImageInfo> {
        let state = self.shared.state();
        state.find(reference_or_id).map(|record| self.shared.info(record))
    }

    /// All images.
    pub fn list(&self) -> Vec<ImageInfo> {
        self.shared.state().images().map(|record| self.shared.info(record)).collect()
    }

    /// What the store takes of its file system: from counters, without a look at the disk.
    pub fn usage(&self) -> StoreUsage {
        let (bytes, files) = self.shared.state().content();
        StoreUsage {
            root: self.shared.layout.root.clone(),
            bytes: bytes + self.shared.index_bytes.load(Ordering::Relaxed),
            inodes: files + FIXED_INODES,
        }
    }

    /// The store's directory.
    pub fn root(&self) -> std::path::PathBuf {
        self.shared.layout.root.clone()
    }

    /// Removes an image with all its names; removing one that is not there succeeds.
    ///
    /// Layers that no other image has are deleted, those that somebody holds as soon as they are let go.
    pub async fn remove(&self, reference_or_id: &str) -> Result<(), RemoveImageError> {
        let Some(id) = self.shared.state().find(reference_or_id).map(|record| record.id.clone())
        else {
            return Ok(());
        };
        let removed = id.clone();
        let change = move |state: &State| {
            state.image(&removed).is_some().then(|| state.after_removal(&removed))
        };
        self.shared.commit(change).await.map_err(|source| RemoveImageError { id, source })
    }

    /// Keeps the layers of an image for as long as the hold lives; `None` if there is no such image.
    pub fn hold(&self, id: &ImageId) -> Option<ImageHold> {
        let digests = self.shared.state().image(id)?.blobs.keys().cloned().collect();
        Some(self.shared.hold(digests))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for ImageHold {
    fn drop(&mut self) {
        if self.shared.state().release(&self.digests, Instant::now()) {
            self.shared.sweep_now.notify_one();
        }
    }
}

/// What all clones of a store have in common.
pub(super) struct Shared {
    pub(super) layout: Layout,
    pub(super) registries: RegistriesConfig,
    pub(super) platform: Platform,
    pub(super) limits: Limits,
    pub(super) pulls: Pulls,
    pinned: Vec<String>,
    state: Mutex<State>,
    index_bytes: AtomicU64,
    /// Held from reading the state to publishing the next one, so that changes come one after the other.
    committing: AsyncMutex<()>,
    /// Who writes the partial file of a blob has its lock.
    writing: Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>,
    sweep_now: Arc<Notify>,
    sweeper: Mutex<Option<AbortHandle>>,
    /// Unlocks when it is dropped.
    _lock: File,
}

/// What was found when opening.
struct Opened {
    lock: File,
    state: State,
    index_bytes: u64,
}

impl Opened {
    fn new(layout: &Layout) -> Result<Opened, OpenImageStoreError> {
        let root = || layout.root.clone();
        let disk = |source| OpenImageStoreError::Disk { root: root(), source };
        let broken = |source| OpenImageStoreError::Index { root: root(), source };
        layout.make_root().map_err(disk)?;
        let lock = layout.lock().map_err(disk)?;
        let lock = lock.ok_or_else(|| OpenImageStoreError::InUse { root: root() })?;
        let (records, index_bytes) = match index::read(&layout.root).map_err(broken)? {
            Some(index) => index,
            None if layout.blobs().exists() => return Err(broken(index::missing(&layout.root))),
            // Before the directory of the blobs is made: blobs without an index are damage.
            None => (Vec::new(), index::write(&layout.root, [].iter()).map_err(disk)?),
        };
        index::forget_unfinished(&layout.root).map_err(disk)?;
        layout.make_directories().map_err(disk)?;
        layout.empty_trash().map_err(disk)?;
        let (blobs, partials) = (layout.list_blobs(), layout.list_partials());
        let (state, damaged) =
            State::load(records, blobs.map_err(disk)?, partials.map_err(disk)?, Instant::now());
        for record in damaged {
            tracing::warn!(image = %record.id, tags = ?record.tags,
                "blobs of an image are missing; it is left out until it is pulled again");
        }
        Ok(Opened { lock, state, index_bytes })
    }
}

impl Shared {
    fn new(config: ImageStoreConfig, opened: Opened) -> Shared {
        Shared {
            layout: Layout { root: config.root },
            pulls: Pulls::new(&config.limits),
            registries: config.registries,
            platform: config.platform,
            limits: config.limits,
            pinned: config.pinned.iter().filter_map(|reference| reference.repo_tag()).collect(),
            state: Mutex::new(opened.state),
            index_bytes: AtomicU64::new(opened.index_bytes),
            committing: AsyncMutex::default(),
            writing: Mutex::default(),
            sweep_now: Arc::default(),
            sweeper: Mutex::default(),
            _lock: opened.lock,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Keeps these blobs, whether they are there yet or not, until the hold is dropped.
    pub(super) fn hold(self: &Arc<Self>, digests: Vec<Digest>) -> ImageHold {
        self.state().hold(&digests);
        ImageHold { shared: Arc::clone(self), digests }
    }

    /// Waits until nobody else writes the partial file of `digest`.
    pub(super) async fn write_lock(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut writing = lock(&self.writing);
            writing.retain(|_, mutex| mutex.strong_count() > 0);
            writing.get(digest).and_then(Weak::upgrade).unwrap_or_else(|| {
                let mutex = Arc::default();
                writing.insert(digest.clone(), Arc::downgrade(&mutex));
                mutex
            })
        };
        mutex.lock_owned().await
    }

    /// Makes a change of the list of images durable, and then visible. `change` answers the records after
    /// it, or `None` if there is nothing to do. Runs to its end even if nobody waits for it.
    pub(super) async fn commit(
        self: &Arc<Self>,
        change: impl FnOnce(&State) -> Option<Vec<ImageRecord>> + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _one_at_a_time = shared.committing.lock().await;
            let Some(records) = change(&shared.state()) else { return Ok(()) };
            let writer = Arc::clone(&shared);
            blocking(move || writer.write_and_publish(records)).await?
        });
        task.await.map_err(io::Error::other)?
    }

    fn write_and_publish(&self, records: Vec<ImageRecord>) -> io::Result<()> {
        self.layout.sync_blobs()?;
        let bytes = index::write(&self.layout.root, records.iter())?;
        self.index_bytes.store(bytes, Ordering::Relaxed);
        self.state().publish(records, Instant::now());
        self.sweep();
        Ok(())
    }

    /// Deletes what nobody needs any more. A file that cannot be deleted now goes with the next start.
    fn sweep(&self) {
        let mut state = self.state();
        let sweep = state.sweep(Instant::now(), self.limits.keep_unfinished);
        let blobs = sweep.blobs.iter().map(|digest| (self.layout.blob(digest), digest));
        let partials = sweep.partials.iter().map(|digest| (self.layout.partial(digest), digest));
        for (path, digest) in blobs.chain(partials) {
            if let Err(error) = self.layout.discard(&path, digest) {
                tracing::warn!(%digest, %error, "a blob that nobody needs cannot be deleted");
            }
        }
        // Slow for large files, hence not under the lock: their names are free again already.
        drop(state);
        if let Err(error) = self.layout.empty_trash() {
            tracing::warn!(%error, "the trash of the image store cannot be emptied");
        }
    }

    /// Deletes a blob that no image owns any more, whoever holds it.
    pub(super) fn forget_blob(&self, digest: &Digest) -> io::Result<()> {
        let mut state = self.state();
        state.drop_blob(digest);
        self.layout.discard(&self.layout.blob(digest), digest)?;
        drop(state);
        self.layout.empty_trash()
    }

    fn info(&self, record: &ImageRecord) -> ImageInfo {
        ImageInfo {
            id: record.id.clone(),
            repo_tags: record.tags.clone(),
            repo_digests: record.digests.clone(),
            size_bytes: record.blobs.values().sum(),
            user: ImageUser::parse(&record.user),
            pinned: record.tags.iter().any(|tag| self.pinned.contains(tag)),
            annotations: record.annotations.clone(),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(sweeper) = lock(&self.sweeper).take() {
            sweeper.abort();
        }
    }
}

/// Sweeps now and then, and whenever a hold ended that was all that kept a blob. Does not keep the store open.
async fn sweep_when_needed(shared: Weak<Shared>, now: Arc<Notify>, every: std::time::Duration) {
    loop {
        let _ = tokio::time::timeout(every, now.notified()).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = blocking(move || shared.sweep()).await {
            tracing::warn!(%error, "the image store could not be swept");
        }
    }
}

/// Runs what blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Nothing that runs under these locks leaves half a change behind, so a panic elsewhere does not matter.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn disk_error(config: &ImageStoreConfig, source: io::Error) -> OpenImageStoreError {
    OpenImageStoreError::Disk { root: config.root.clone(), source }
}
