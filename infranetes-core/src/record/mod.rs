//! Durable state: what was wanted and what was begun, written before the outside world is touched.

pub(crate) mod codec;
pub(crate) mod container;
mod disk;
mod fields;
mod memory;
mod mounts;
mod network;
pub(crate) mod node;
mod origin;
mod redb;
pub(crate) mod sandbox;

pub use self::redb::RedbStore;
use async_trait::async_trait;
pub use memory::MemoryStore;

use crate::error::FailureKind;

/// Where records live. One commit is all or nothing, and durable when it returns.
#[async_trait]
pub trait RecordStore: Send + Sync + 'static {
    /// Hands over everything there is, one entry after the other. They count only if it succeeds.
    async fn visit(&self, take: &mut (dyn FnMut(Entry) + Send)) -> Result<(), RecordError>;

    /// Everything there is at once.
    async fn load(&self) -> Result<Vec<Entry>, RecordError> {
        let mut entries = Vec::new();
        self.visit(&mut |entry| entries.push(entry)).await?;
        Ok(entries)
    }

    /// Applies the changes, all or none.
    async fn commit(&self, changes: Vec<Change>) -> Result<(), RecordError>;
}

/// Which table an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Sandboxes by id.
    Sandboxes,
    /// Containers by id.
    Containers,
    /// How far containers' logs are durable, by container id.
    Logs,
    /// What the node itself must keep, such as its CA.
    Node,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 4] = [Self::Sandboxes, Self::Containers, Self::Logs, Self::Node];
}

/// A stored entry: versioned bytes under a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The table.
    pub table: Table,
    /// The key.
    pub key: String,
    /// The record, encoded with its version.
    pub value: Vec<u8>,
}

/// A change of one entry.
#[derive(Clone, PartialEq, Eq)]
pub enum Change {
    /// Write or replace.
    Put(Entry),
    /// Delete; gone already is success.
    Delete {
        /// The table.
        table: Table,
        /// The key.
        key: String,
    },
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The disk is full: nothing was written, nothing is lost.
    #[error("the disk under the record is full")]
    DiskFull(#[source] std::io::Error),
    /// Another process has it.
    #[error("the record {path} is in use by another process")]
    InUse {
        /// The file.
        path: String,
    },
    /// It cannot be what we wrote. Nothing was changed or deleted.
    #[error(
        "the record {path} is damaged; nothing was changed: restore it from a backup, or move it away to start empty"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What does not fit.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It was written by a newer version.
    #[error("the record {path} has format {found}; this version reads up to {known}")]
    TooNew {
        /// The file.
        path: String,
        /// Its format.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// Anything else.
    #[error("the record could not be accessed")]
    Io(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RecordError {
    /// The same failure for another one who waited for the same commit.
    pub(crate) fn echo(&self) -> Self {
        match self {
            Self::DiskFull(error) => {
                Self::DiskFull(std::io::Error::new(error.kind(), error.to_string()))
            }
            Self::InUse { path } => Self::InUse { path: path.clone() },
            Self::Damaged { path, cause } => {
                Self::Damaged { path: path.clone(), cause: cause.to_string().into() }
            }
            Self::TooNew { path, found, known } => {
                Self::TooNew { path: path.clone(), found: *found, known: *known }
            }
            Self::Io(error) => Self::Io(error.to_string().into()),
        }
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::DiskFull(_) => FailureKind::Exhausted,
            Self::InUse { .. } => FailureKind::Conflict,
            Self::Damaged { .. } | Self::TooNew { .. } | Self::Io(_) => FailureKind::Internal,
        }
    }
}
