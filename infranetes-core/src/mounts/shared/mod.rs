//! Shared paths: directories of the node that containers write to, so that what they write is on the node.
//!
//! ```text
//!  node's directory ──scan──► tree ─┐                                   ┌─► to the node     take: temporary file, rename
//!                                   ├─ plan (pure): who changed what ───┤
//!  machine's volume ──scan──► tree ─┘   since both last agreed          └─► to the machine  put, unless a container was first
//! ```
//!
//! Each side's tree is told by what its file system says, not by contents; what both agreed on last is kept by the machine, under
//! names that the node gave ([`SharedEntry::stamp`]). So the node holds nothing that a crash could lose.
//!
//! A machine never says where on the node something goes: its names are checked where they come in, lead down, and are
//! opened beneath the directory that the pod may write to, without following a link and without entering what is mounted there.

mod plan;
mod scan;
mod take;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;

pub(crate) use self::plan::{Plan, ToMachine, ToNode, plan};
pub(super) use self::scan::{open_entry, piece, scan};
pub(super) use self::take::take;
use super::{EntryKind, FilesError, NodePath};

/// A directory of the node that machines share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPath {
    /// Where it is.
    pub path: NodePath,
    /// Its number in its file system when it was mounted: another directory of that name is not it.
    pub inode: u64,
    /// What is mounted below it, as far as it belongs to it.
    pub mounted: Mounted,
}

/// What is mounted below a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// What was there when the container was made, at these relative paths. What came later shows as a directory that
    /// does not change, on either side.
    Then(Vec<PathBuf>),
    /// Whatever there is.
    Now,
}

/// All that is in a directory, itself included under an empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedTree {
    /// By relative path.
    pub entries: BTreeMap<PathBuf, SharedEntry>,
}

/// Something in a shared directory, on either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedEntry {
    /// What it is.
    pub kind: SharedKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change: seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
    /// Of a file.
    pub size: u64,
    /// Its side's name for how it is; another one after every change.
    pub stamp: Vec<u8>,
    /// It was changed so lately that a further change may not show in its stamp.
    pub fresh: bool,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SharedKind {
    /// It travels.
    Plain(EntryKind),
    /// Something is mounted there that does not belong to the directory. Nothing below it is known.
    Covered,
    /// No directory, file or link. It stays where it is.
    Special,
}

/// Something on its way to the node.
pub enum Incoming {
    /// An entry is to be this, if it still is as expected there. A file's content follows.
    Put {
        /// Relative to the shared directory.
        path: PathBuf,
        /// What it is to be, with owners of the node.
        entry: SharedEntry,
        /// The node's stamp of what is there; `None`: nothing.
        expected: Option<Vec<u8>>,
    },
    /// The next bytes of the file that was put last.
    Data(Bytes),
    /// The last file is whole.
    End,
    /// An entry is to go, if it still is as expected. A directory goes if it is empty.
    Remove {
        /// Relative to the shared directory.
        path: PathBuf,
        /// The node's stamp of what is there.
        expected: Vec<u8>,
    },
}

/// What became of something on its way to the node.
#[derive(Debug)]
pub struct Taken {
    /// Which.
    pub path: PathBuf,
    /// The node's stamp of it, or why it was not taken; empty after a removal.
    pub result: Result<Vec<u8>, FilesError>,
}

/// An entry of the node, and its content.
pub struct Opened {
    /// How it was when it was opened.
    pub entry: SharedEntry,
    /// Its bytes, if it is a file.
    pub data: BoxStream<'static, Result<Bytes, FilesError>>,
}

impl SharedEntry {
    /// Whether it is a directory that travels.
    pub fn is_directory(&self) -> bool {
        self.kind == SharedKind::Plain(EntryKind::Directory)
    }

    /// What the machine keeps for the node once both have it. Of what was read while it was fresh, a name that nothing will ever
    /// have, so that it is brought once more.
    pub(crate) fn token(&self) -> Vec<u8> {
        let mut token = self.stamp.clone();
        if self.fresh {
            token.push(b'~');
        }
        token
    }

    /// Whether two entries are the same but for their content and the names that their sides have for them.
    pub(crate) fn looks_like(&self, other: &Self) -> bool {
        let file = SharedKind::Plain(EntryKind::File);
        let owned = |one: &Self| (one.mode & 0o777, one.uid, one.gid);
        self.kind == other.kind && self.kind != file && owned(self) == owned(other)
    }
}

/// Whether a name is one of ours for a file on its way.
pub(crate) fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or_default();
    name.starts_with(TEMPORARY.as_bytes()) && name.len() == TEMPORARY.len() + 32
}

/// What names of files on their way begin with; 32 random digits follow.
const TEMPORARY: &str = ".infranetes-";
/// How deep a shared directory may be.
pub(crate) const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests;
