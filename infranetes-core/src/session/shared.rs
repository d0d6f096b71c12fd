//! Shared volumes: what a machine has of a directory of the node that its containers write to, and changes of it on their way.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::mounts::{FilesError, SharedEntry};

/// What a machine has of a shared directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeScan {
    /// Its name for all of it; empty while something is too fresh to be told from the next change.
    pub revision: Vec<u8>,
    /// `None`: it is what it was at the revision that was asked with.
    pub entries: Option<BTreeMap<PathBuf, MachineEntry>>,
}

/// An entry of a machine's volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineEntry {
    /// How it is, with owners of the machine; `None`: it is gone.
    pub now: Option<SharedEntry>,
    /// The node's name for it when both agreed; `None`: they never did.
    pub token: Option<Vec<u8>>,
    /// It is not as it was then.
    pub changed: bool,
}

/// A piece of what was asked for.
pub enum VolumePart {
    /// The next entry.
    Entry(PathBuf, SharedEntry),
    /// The next bytes of the file that the last entry named.
    Data(Bytes),
}

/// Entries on their way out of a machine.
pub type VolumeParts = BoxStream<'static, Result<VolumePart, super::SessionError>>;

/// A change on its way into a machine.
pub enum VolumeChange {
    /// An entry is to be this, and with that is agreed on, if it still is as expected there.
    Put {
        /// Which.
        path: PathBuf,
        /// What it is to be, with owners of the machine.
        entry: SharedEntry,
        /// The machine's stamp of what is there; empty is nothing.
        expected: Vec<u8>,
        /// The node's name for it.
        token: Vec<u8>,
    },
    /// The next bytes of the file that was put last.
    Data(Bytes),
    /// An entry is to go, if it still is as expected. A directory goes if it is empty.
    Remove {
        /// Which.
        path: PathBuf,
        /// The machine's stamp of what is there.
        expected: Vec<u8>,
    },
    /// The node has an entry as it was in the machine at this stamp; without one, neither has it.
    Agree {
        /// Which.
        path: PathBuf,
        /// The machine's.
        stamp: Vec<u8>,
        /// The node's name for it.
        token: Vec<u8>,
    },
}

/// Changes on their way. A stream that ends with an error changes nothing after what it said last.
pub type VolumeChanges = BoxStream<'static, Result<VolumeChange, FilesError>>;
