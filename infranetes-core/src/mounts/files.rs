//! The node's files, as the engine needs them: [`NodeFiles`] is handed to it.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::mpsc::Receiver;

use super::shared::{Incoming, Opened, SharedPath, SharedTree, Taken};
use crate::error::FailureKind;

/// Reads and writes the node's files for mounts. None of it follows a link below a [`NodePath`]'s root.
#[async_trait]
pub trait NodeFiles: Send + Sync + 'static {
    /// Where a path leads once all of its links are followed. Its end may be missing.
    async fn resolve(&self, path: &Path) -> Result<PathBuf, FilesError>;

    /// Where what is mounted at a path was mounted from, as a path; `None` when nothing is, or it cannot be told.
    async fn origin(&self, path: &NodePath) -> Result<Option<PathBuf>, FilesError>;

    /// What is at a path.
    async fn look(&self, path: &NodePath) -> Result<Facts, FilesError>;

    /// A name for what is at each path now: another one after every change. Cheap enough to be asked once a second. Errors
    /// are per path: one that is gone has no revision.
    async fn revisions(
        &self,
        paths: Vec<NodePath>,
        limits: Limits,
    ) -> Vec<Result<String, FilesError>>;

    /// Reads what is at a path: its root first, each directory before what is in it. Ends with an error unless all of it was
    /// there at one moment; with `whole` off, each file is as it was at some moment.
    fn read(&self, path: NodePath, limits: Limits, whole: bool) -> Parts;

    /// Replaces the content of a regular file that is there.
    async fn write(&self, path: &NodePath, content: Vec<u8>) -> Result<(), FilesError>;

    /// All that is in a shared directory. Cheap enough to be asked once a second.
    async fn scan_shared(
        &self,
        path: &SharedPath,
        limits: Limits,
    ) -> Result<SharedTree, FilesError>;

    /// Opens something in a shared directory; `None` when it is gone, or is none that travels.
    async fn open_shared(
        &self,
        path: &SharedPath,
        below: &Path,
    ) -> Result<Option<Opened>, FilesError>;

    /// Changes a shared directory as what comes says; a file that is not whole when no more comes leaves nothing. Of each
    /// entry it says what became of it.
    async fn take_shared(
        &self,
        path: &SharedPath,
        incoming: Receiver<Incoming>,
    ) -> Result<Vec<Taken>, FilesError>;
}

/// A tree on its way.
pub type Parts = BoxStream<'static, Result<Part, FilesError>>;

/// A path of the node in two parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodePath {
    /// A directory that the operator named: links in it are fine.
    pub root: PathBuf,
    /// Relative, without `..`. No component of it may be a link.
    pub below: PathBuf,
}

impl NodePath {
    /// A path that has no links left in it.
    pub fn resolved(path: &Path) -> Self {
        let below = path.strip_prefix("/").unwrap_or(path).to_owned();
        Self { root: PathBuf::from("/"), below }
    }

    /// The whole path, for people.
    pub fn shown(&self) -> PathBuf {
        self.root.join(&self.below)
    }
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What it is.
    pub kind: NodeKind,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its number in its file system.
    pub inode: u64,
    /// It is the root of a tmpfs of so many bytes.
    pub memory_bytes: Option<u64>,
    /// It is the root of huge pages.
    pub huge_pages: bool,
    /// Where other file systems are mounted below it, as relative paths.
    pub submounts: Vec<PathBuf>,
}

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Nothing is there.
    Missing,
    /// A directory.
    Directory,
    /// A regular file.
    File,
}

/// What one mount may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all its files together.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 20, entries: 10_000 }
    }
}

/// A piece of a tree on its way.
#[derive(Clone, PartialEq, Eq)]
pub enum Part {
    /// The next thing.
    Entry(Entry),
    /// The next bytes of the file that the last entry named.
    Data(Bytes),
}

/// Contents may be secret.
impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entry(entry) => entry.fmt(f),
            Self::Data(data) => write!(f, "[{} bytes]", data.len()),
        }
    }
}

/// Something in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the tree's root, which is empty.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change: seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
}

/// What something in a tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file; its bytes follow.
    File,
    /// A symbolic link and where it leads. Nobody on the node follows it.
    Symlink(PathBuf),
}

impl Entry {
    /// A directory of root's that everybody may read.
    pub fn plain_directory() -> Self {
        Self {
            path: PathBuf::new(),
            kind: EntryKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            modified: (0, 0),
        }
    }
}

/// Why the node's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Nothing is there.
    #[error("{0} is not on this node")]
    Missing(PathBuf),
    /// It is none of file, directory and link.
    #[error("{path} is {kind}, which cannot be copied into a machine")]
    Special {
        /// Where.
        path: PathBuf,
        /// "a socket".
        kind: &'static str,
    },
    /// A link or `..` stands where none may be.
    #[error("{0} leads through a link or out of where it has to be")]
    Astray(PathBuf),
    /// Another directory took its place.
    #[error("{0} is not the directory any more that it was when it was mounted")]
    Another(PathBuf),
    /// Too much of something.
    #[error(
        "{path} has more than {most} {what}; `{key}` in [mounts] of the configuration is the limit"
    )]
    TooMuch {
        /// Where.
        path: PathBuf,
        /// How much is possible.
        most: u64,
        /// Of what.
        what: &'static str,
        /// The configuration's key.
        key: &'static str,
    },
    /// Nested too deep.
    #[error("{path} is nested deeper than {most} directories")]
    TooDeep {
        /// Where.
        path: PathBuf,
        /// How deep is possible.
        most: usize,
    },
    /// It was changed again and again.
    #[error("{0} changed while it was read")]
    Changed(PathBuf),
    /// The node's file system failed.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl FilesError {
    /// What kind of failure this is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Missing(_) => FailureKind::NotFound,
            Self::Special { .. } => FailureKind::Unsupported,
            Self::Astray(_) => FailureKind::Invalid,
            Self::TooMuch { .. } | Self::TooDeep { .. } => FailureKind::Exhausted,
            Self::Another(_) => FailureKind::WrongState,
            Self::Changed(_) => FailureKind::Unavailable,
            Self::Io { .. } => FailureKind::Internal,
        }
    }
}
