//! A delivery on its way in: entries and bytes become a tree beside the volume, which is taken in as a whole or removed.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, fchmod, fchown,
    futimens, mkdirat, openat, openat2, symlinkat, utimensat,
};

use super::content::{copy_over, digest_of};
use super::merge::merge;
use super::places::remove;
use super::{Kind, VolumeError, leads_down};

/// What a delivery says first.
#[derive(Clone, Debug)]
pub(crate) struct Begin {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) revision: String,
}

/// Something in a volume.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Empty for the volume itself.
    pub(crate) path: PathBuf,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: (i64, u32),
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Directory,
    File,
    /// With its target, which nobody follows here.
    Symlink(PathBuf),
}

/// A delivery on its way in. Dropped without a commit, it leaves nothing.
pub(crate) struct Staging {
    pub(super) begin: Begin,
    path: PathBuf,
    root: Option<Entry>,
    /// The staged directory, of a tree.
    dir: Option<OwnedFd>,
    /// Directories get their modes and times last: what is put into one changes them.
    directories: Vec<Entry>,
    file: Option<(fs::File, Entry)>,
    entries: usize,
    bytes: u64,
}

impl Staging {
    pub(super) fn new(begin: Begin, path: PathBuf) -> Self {
        Self {
            begin,
            path,
            root: None,
            dir: None,
            directories: Vec::new(),
            file: None,
            entries: 0,
            bytes: 0,
        }
    }

    /// Takes the next entry.
    pub(crate) fn entry(&mut self, entry: Entry) -> Result<(), VolumeError> {
        self.end_file()?;
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(invalid(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let depth = entry.path.components().count();
        if !leads_down(&entry.path) || depth > DEPTH_MAX {
            return Err(invalid("an entry has a path that cannot be"));
        }
        if self.root.is_none() {
            return self.first(entry);
        }
        if depth == 0 || self.begin.kind != Kind::Tree {
            return Err(invalid("it has more than one root"));
        }
        let Some(dir) = &self.dir else { return Err(invalid("its root is no directory")) };
        let made = make(dir, &entry).map_err(VolumeError::io("take an entry of"))?;
        match (made, &entry.kind) {
            (Some(file), _) => self.file = Some((file, entry)),
            (None, EntryKind::Directory) => self.directories.push(entry),
            (None, _) => {}
        }
        Ok(())
    }

    /// Takes the next bytes of the last file.
    pub(crate) fn data(&mut self, data: &[u8]) -> Result<(), VolumeError> {
        self.bytes += data.len() as u64;
        if self.bytes > BYTES_MAX {
            return Err(invalid(format!("it has more than {BYTES_MAX} bytes")));
        }
        let Some((file, _)) = &mut self.file else { return Err(invalid("bytes of no file")) };
        file.write_all(data).map_err(VolumeError::io("write"))
    }

    fn first(&mut self, entry: Entry) -> Result<(), VolumeError> {
        if !entry.path.as_os_str().is_empty() {
            return Err(invalid("its first entry is not its root"));
        }
        match (self.begin.kind, &entry.kind) {
            (Kind::Empty { .. } | Kind::Shared, EntryKind::Directory) => {}
            (Kind::Tree, EntryKind::Directory) => {
                let staged = || -> io::Result<OwnedFd> {
                    fs::DirBuilder::new().mode(0o700).create(&self.path)?;
                    Ok(openat(CWD, &self.path, DIRECTORY, Mode::empty())?)
                };
                self.dir = Some(staged().map_err(VolumeError::io("stage"))?);
            }
            (Kind::File, EntryKind::File) => {
                let file = fs::File::create_new(&self.path).map_err(VolumeError::io("stage"))?;
                self.file = Some((file, entry.clone()));
            }
            _ => return Err(invalid("its root is not of its kind")),
        }
        self.root = Some(entry);
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), VolumeError> {
        let Some((file, entry)) = self.file.take() else { return Ok(()) };
        Ownership::of(&entry).give(file.as_fd()).map_err(VolumeError::io("set the owner of"))
    }

    /// The entry that is the volume itself.
    pub(super) fn root(&self) -> Result<&Entry, VolumeError> {
        self.root.as_ref().ok_or_else(|| invalid("it has no root"))
    }

    /// Makes the file what was delivered, and gives its digest. A file that is there is written in place: containers have it
    /// mounted.
    pub(super) fn place_file(mut self, path: &Path) -> Result<Vec<u8>, VolumeError> {
        let root = self.root()?.clone();
        self.end_file()?;
        let failed = || VolumeError::io::<io::Error>("take in");
        let digest = digest_of(&self.path).map_err(failed())?;
        if path.exists() {
            copy_over(&self.path, path).map_err(failed())?;
            let file = fs::OpenOptions::new().write(true).open(path).map_err(failed())?;
            Ownership::of(&root).give(file.as_fd()).map_err(VolumeError::io("set the owner of"))?;
        } else {
            fs::rename(&self.path, path).map_err(failed())?;
        }
        Ok(digest)
    }

    /// Makes the directory what was delivered, entry by entry.
    pub(super) fn place_tree(mut self, path: &Path) -> Result<(), VolumeError> {
        let root = self.root()?.clone();
        self.end_file()?;
        let Some(dir) = self.dir.take() else { return Err(invalid("it has no root")) };
        // The innermost first: once a directory has its mode and time nothing in it changes any more.
        for entry in self.directories.iter().rev() {
            let made =
                beneath(&dir, &entry.path).and_then(|made| Ownership::of(entry).give(made.as_fd()));
            made.map_err(VolumeError::io("set the owner of"))?;
        }
        let placed = if path.exists() {
            openat(CWD, path, DIRECTORY, Mode::empty()).map_err(io::Error::from).and_then(|live| {
                merge(dir.as_fd(), live.as_fd())?;
                Ok(Ownership::of(&root).give(live.as_fd())?)
            })
        } else {
            Ownership::of(&root)
                .give(dir.as_fd())
                .map_err(io::Error::from)
                .and_then(|()| fs::rename(&self.path, path))
        };
        placed.map_err(VolumeError::io("take in"))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(%error, "a delivery that was not taken in is left behind");
        }
    }
}

/// Who owns something, who may use it, and when it was changed.
pub(super) struct Ownership {
    uid: u32,
    gid: u32,
    mode: u32,
    modified: Option<(i64, u32)>,
}

impl Ownership {
    pub(super) fn of(entry: &Entry) -> Self {
        let Entry { uid, gid, mode, modified, .. } = *entry;
        Self { uid, gid, mode, modified: Some(modified) }
    }

    /// As something that is there, but for the time.
    pub(super) fn like(stat: &Stat) -> Self {
        Self { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777, modified: None }
    }

    /// The owner goes first: a change of owner clears bits of the mode.
    pub(super) fn give(&self, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
        fchown(to, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(to, Mode::from_raw_mode(self.mode & 0o7777))?;
        match self.modified {
            Some(modified) => futimens(to, &times(modified)),
            None => Ok(()),
        }
    }
}

/// Makes an entry in the staged directory; a file is given back to be filled.
fn make(dir: &OwnedFd, entry: &Entry) -> io::Result<Option<fs::File>> {
    let parent = beneath(dir, entry.path.parent().unwrap_or(Path::new("")))?;
    let name = entry.path.file_name().unwrap_or(OsStr::new(""));
    match &entry.kind {
        EntryKind::Directory => {
            mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
            Ok(None)
        }
        EntryKind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            Ok(Some(openat(&parent, name, flags, Mode::from_raw_mode(0o600))?.into()))
        }
        EntryKind::Symlink(target) => {
            symlinkat(target, &parent, name)?;
            let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
            rustix::fs::chownat(&parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
            utimensat(&parent, name, &times(entry.modified), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(None)
        }
    }
}

/// Opens a directory of the delivery; no link is followed.
fn beneath(dir: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(dir, path, DIRECTORY, Mode::empty(), resolve)
}

pub(super) fn times((tv_sec, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn invalid(problem: impl Into<String>) -> VolumeError {
    VolumeError::Invalid(problem.into())
}

/// The node has bounds of its own, which are lower; these keep a mistake of it from filling the machine.
const ENTRIES_MAX: usize = 200_000;
const BYTES_MAX: u64 = 4 << 30;
const DEPTH_MAX: usize = 128;
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
