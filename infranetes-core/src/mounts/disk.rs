//! [`NodeFiles`] on the node's disk. Everything that touches it runs on threads that may wait.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{BoxStream, unfold};
use rustix::fs::{FileType, OFlags, fstat, statfs};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;

use super::kernel::{Mounts, pseudo};
use super::shared;
use super::walk::{self, io};
use super::{Facts, FilesError, Limits, NodeFiles, NodeKind, NodePath, Part, Parts};
use super::{Incoming, Opened, SharedPath, SharedTree, Taken};

type Result<T> = std::result::Result<T, FilesError>;

/// The files of this machine.
pub struct DiskFiles {
    /// Bounds what deliveries hold of files in memory: each has a few pieces on its way.
    readers: Arc<Semaphore>,
}

impl Default for DiskFiles {
    fn default() -> Self {
        Self { readers: Arc::new(Semaphore::new(READERS_MAX)) }
    }
}

#[async_trait]
impl NodeFiles for DiskFiles {
    async fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let path = path.to_owned();
        blocking(path.clone(), move || resolve(&path)).await
    }

    async fn origin(&self, path: &NodePath) -> Result<Option<PathBuf>> {
        let path = path.clone();
        blocking(path.shown(), move || {
            let mounts = mounts()?;
            Ok(mounts.origin(&real(&path)?))
        })
        .await
    }

    async fn look(&self, path: &NodePath) -> Result<Facts> {
        let path = path.clone();
        blocking(path.shown(), move || look(&path)).await
    }

    async fn revisions(&self, paths: Vec<NodePath>, limits: Limits) -> Vec<Result<String>> {
        let count = paths.len();
        let all = spawn_blocking(move || {
            paths.iter().map(|path| walk::revision(path, limits)).collect::<Vec<_>>()
        });
        let broken = || FilesError::Changed(PathBuf::new());
        all.await.unwrap_or_else(|_| (0..count).map(|_| Err(broken())).collect())
    }

    fn read(&self, path: NodePath, limits: Limits, whole: bool) -> Parts {
        let (sender, parts) = mpsc::channel(PARTS_MAX);
        let readers = self.readers.clone();
        tokio::spawn(async move {
            let Ok(_turn) = readers.acquire_owned().await else { return };
            let last = sender.clone();
            let reading = spawn_blocking(move || read(&path, limits, whole, &sender));
            let failed = match reading.await {
                Ok(result) => result.err(),
                // A stream that just ends would look whole.
                Err(_) => Some(FilesError::Changed(PathBuf::new())),
            };
            if let Some(error) = failed {
                // Without a receiver nobody wants to know.
                let _ = last.send(Err(error)).await;
            }
        });
        unfold(parts, |mut parts| async move { Some((parts.recv().await?, parts)) }).boxed()
    }

    async fn write(&self, path: &NodePath, content: Vec<u8>) -> Result<()> {
        let path = path.clone();
        blocking(path.shown(), move || write(&path, &content)).await
    }

    async fn scan_shared(&self, path: &SharedPath, limits: Limits) -> Result<SharedTree> {
        let path = path.clone();
        blocking(path.path.shown(), move || shared::scan(&path, limits)).await
    }

    async fn open_shared(&self, path: &SharedPath, below: &Path) -> Result<Option<Opened>> {
        let (path, below) = (path.clone(), below.to_owned());
        let shown = path.path.shown().join(&below);
        let opened = blocking(shown.clone(), move || shared::open_entry(&path, &below)).await?;
        Ok(opened.map(|(entry, file)| {
            let rest = entry.size;
            Opened { entry, data: pieces(file.map(|file| (file, rest)), shown) }
        }))
    }

    async fn take_shared(
        &self,
        path: &SharedPath,
        incoming: mpsc::Receiver<Incoming>,
    ) -> Result<Vec<Taken>> {
        let path = path.clone();
        blocking(path.path.shown(), move || shared::take(&path, incoming)).await
    }
}

/// The content of a file, read as it is asked for. No more than it had when it was opened: it may grow as fast as it is read.
fn pieces(file: Option<(File, u64)>, shown: PathBuf) -> BoxStream<'static, Result<Bytes>> {
    unfold(file, move |file| {
        let shown = shown.clone();
        async move {
            let (mut file, rest) = file.filter(|(_, rest)| *rest > 0)?;
            let read = blocking(shown.clone(), move || {
                let piece = shared::piece(&mut file, rest, &shown)?;
                Ok((piece, file))
            });
            match read.await {
                Ok((piece, _)) if piece.is_empty() => None,
                Ok((piece, file)) => {
                    let rest = rest.saturating_sub(piece.len() as u64);
                    Some((Ok(piece), Some((file, rest))))
                }
                Err(error) => Some((Err(error), None)),
            }
        }
    })
    .boxed()
}

fn resolve(path: &Path) -> Result<PathBuf> {
    let mut rest = Vec::new();
    let mut there = path;
    loop {
        match there.canonicalize() {
            Ok(resolved) => {
                return Ok(rest.into_iter().rev().fold(resolved, |path, name| path.join(name)));
            }
            // A link whose target is missing leads nowhere that could be made.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !there.is_symlink() => {
                let (Some(above), Some(name)) = (there.parent(), there.file_name()) else {
                    return Err(FilesError::Missing(path.to_owned()));
                };
                rest.push(name);
                there = above;
            }
            Err(error) => return Err(io("resolve", path)(error)),
        }
    }
}

fn look(path: &NodePath) -> Result<Facts> {
    let shown = path.shown();
    let nothing = Facts {
        kind: NodeKind::Missing,
        mode: 0,
        uid: 0,
        gid: 0,
        inode: 0,
        memory_bytes: None,
        huge_pages: false,
        submounts: Vec::new(),
    };
    let found = match walk::open(path, OFlags::PATH) {
        Err(FilesError::Missing(_)) => return Ok(nothing),
        other => other?,
    };
    let stat = fstat(&found).map_err(io("look at", &shown))?;
    let kind = match walk::kind(&stat) {
        FileType::RegularFile => NodeKind::File,
        FileType::Directory => NodeKind::Directory,
        other => return Err(walk::special(shown, other)),
    };
    let (mode, uid, gid, inode) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, stat.st_ino);
    let mut facts = Facts { kind, mode, uid, gid, inode, ..nothing };
    if kind == NodeKind::Directory {
        let real = real(path)?;
        let mounts = mounts()?;
        let mounted = mounts.at(&real).map(|mounted| mounted.kind.clone()).unwrap_or_default();
        facts.huge_pages = mounted == "hugetlbfs";
        facts.submounts = mounts.below(&real);
        let system = statfs(&real).map_err(io("look at", &shown))?;
        if let Some(kind) = pseudo(system.f_type as u64).filter(|_| !facts.huge_pages) {
            return Err(FilesError::Special { path: shown, kind });
        }
        if mounted == "tmpfs" {
            let block = u64::try_from(system.f_bsize).unwrap_or(0);
            facts.memory_bytes = Some(system.f_blocks.saturating_mul(block));
        }
    }
    Ok(facts)
}

/// The path as the kernel's list of mounts has it: the root may have been named through links.
fn real(path: &NodePath) -> Result<PathBuf> {
    let root = path.root.canonicalize().map_err(io("resolve", &path.root))?;
    Ok(root.join(&path.below))
}

fn mounts() -> Result<Mounts> {
    Mounts::read().map_err(io("read", Path::new("/proc/self/mountinfo")))
}

/// Sends a tree, and fails unless it was the same before and after.
fn read(
    path: &NodePath,
    limits: Limits,
    whole: bool,
    sender: &mpsc::Sender<Result<Part>>,
) -> Result<()> {
    let before = walk::revision(path, limits)?;
    walk::read(path, limits, &mut |part| sender.blocking_send(Ok(part)).is_ok())?;
    if whole && !walk::same(&before, &walk::revision(path, limits)?) {
        return Err(FilesError::Changed(path.shown()));
    }
    Ok(())
}

/// In place: others have the file open, or know it by its number.
fn write(path: &NodePath, content: &[u8]) -> Result<()> {
    let shown = path.shown();
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: File = walk::open(path, flags)?.into();
    let stat = fstat(&file).map_err(io("look at", &shown))?;
    match walk::kind(&stat) {
        // A second name may be anywhere.
        FileType::RegularFile if stat.st_nlink == 1 => {}
        FileType::RegularFile => return Err(FilesError::Astray(shown)),
        other => return Err(walk::special(shown, other)),
    }
    let written = file.write_all_at(content, 0).and_then(|()| file.set_len(content.len() as u64));
    written.map_err(|source| FilesError::Io { what: "write", path: shown, source })
}

async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(FilesError::Io { what: "use", path, source: std::io::Error::other(error) })
        }
    }
}

/// Pieces of one delivery that wait to be sent.
const PARTS_MAX: usize = 4;
/// Deliveries that are read at once.
const READERS_MAX: usize = 8;

#[cfg(test)]
mod tests;
