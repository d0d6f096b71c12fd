//! What a machine changed, on its way into a shared directory of the node.
//!
//! A file is written beside the place that it goes to, under a name that nobody has, and renamed when it is whole: a reader sees
//! the old one or the new one, and what breaks off leaves nothing. Whatever is not as it was when this was decided stays.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chownat, fchmod, fchown,
    fstat, futimens, mkdirat, openat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tokio::sync::mpsc::Receiver;

use super::scan::{DIRECTORY, Root, stamp};
use super::{Incoming, SharedEntry, SharedKind, SharedPath, TEMPORARY, Taken};
use crate::mounts::walk::{self, io};
use crate::mounts::{EntryKind, FilesError};

type Result<T> = std::result::Result<T, FilesError>;

/// Takes what comes, one after the other, until nothing more does. What could not be taken is told, and hinders nothing else.
pub(in crate::mounts) fn take(
    path: &SharedPath,
    mut incoming: Receiver<Incoming>,
) -> Result<Vec<Taken>> {
    let root = Root::open(path)?;
    let mut taken = Vec::new();
    let mut file: Option<(PathBuf, Result<Writing>)> = None;
    while let Some(message) = incoming.blocking_recv() {
        let (path, result) = match message {
            Incoming::Put { path, entry, expected } => {
                if entry.kind == SharedKind::Plain(EntryKind::File) {
                    let begun = Writing::begin(&root, &path, entry, expected);
                    file = Some((path, begun));
                    continue;
                }
                let result = put(&root, &path, &entry, expected.as_deref());
                (path, result)
            }
            Incoming::Data(data) => {
                if let Some((_, begun)) = &mut file
                    && let Ok(writing) = begun
                    && let Err(error) = writing.write(&data)
                {
                    *begun = Err(error);
                }
                continue;
            }
            Incoming::End => {
                let Some((path, begun)) = file.take() else { continue };
                (path, begun.and_then(Writing::end))
            }
            Incoming::Remove { path, expected } => {
                let result = remove(&root, &path, &expected);
                (path, result)
            }
        };
        taken.push(Taken { path, result });
    }
    Ok(taken)
}

/// Makes a directory or a link.
fn put(root: &Root, path: &Path, entry: &SharedEntry, expected: Option<&[u8]>) -> Result<Vec<u8>> {
    let failed = |what| io::<Errno>(what, path);
    if path.as_os_str().is_empty() {
        own(&root.dir, entry, true).map_err(failed("set the owner of"))?;
        let stat = fstat(&root.dir).map_err(failed("look at"))?;
        return Ok(stamp(&stat, false));
    }
    let place = Place::open(root, path)?;
    let there = place.as_expected(expected)?;
    match &entry.kind {
        SharedKind::Plain(EntryKind::Directory) => {
            if !there.as_ref().is_some_and(is_directory) {
                if there.is_some() {
                    unlinkat(&place.dir, &place.name, AtFlags::empty())
                        .map_err(failed("replace"))?;
                }
                mkdirat(&place.dir, &place.name, Mode::from_raw_mode(0o700))
                    .map_err(failed("make"))?;
            }
            let made = root.beneath(path, DIRECTORY).map_err(failed("open"))?;
            own(&made, entry, true).map_err(failed("set the owner of"))?;
        }
        SharedKind::Plain(EntryKind::Symlink(target)) => {
            let temporary = temporary();
            symlinkat(target, &place.dir, &temporary).map_err(failed("make"))?;
            let made = own_link(&place.dir, &temporary, entry).map_err(failed("set the owner of"));
            made.and_then(|()| place.replace(&temporary, there.as_ref()))?;
        }
        _ => return Err(FilesError::Special { path: path.to_owned(), kind: "no file" }),
    }
    place.stamp()
}

/// A directory goes if it is empty.
fn remove(root: &Root, path: &Path, expected: &[u8]) -> Result<Vec<u8>> {
    let place = match Place::open(root, path) {
        Err(FilesError::Missing(_)) => return Ok(Vec::new()),
        other => other?,
    };
    if place.there()?.is_none() {
        return Ok(Vec::new());
    }
    let Some(stat) = place.as_expected(Some(expected))? else { return Ok(Vec::new()) };
    let flags = if is_directory(&stat) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    match unlinkat(&place.dir, &place.name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(Vec::new()),
        // The machine never saw what is in it.
        Err(Errno::NOTEMPTY | Errno::EXIST) => Err(FilesError::Changed(path.to_owned())),
        Err(error) => Err(io("remove", path)(error)),
    }
}

/// A file on its way. Dropped before its end, it leaves nothing.
struct Writing {
    place: Place,
    entry: SharedEntry,
    expected: Option<Vec<u8>>,
    temporary: OsString,
    file: File,
    renamed: bool,
}

impl Writing {
    fn begin(
        root: &Root,
        path: &Path,
        entry: SharedEntry,
        expected: Option<Vec<u8>>,
    ) -> Result<Self> {
        let place = Place::open(root, path)?;
        place.as_expected(expected.as_deref())?;
        let temporary = temporary();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let file =
            openat(&place.dir, &temporary, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o600));
        let file = file.map_err(io("make", path))?.into();
        Ok(Self { place, entry, expected, temporary, file, renamed: false })
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(data).map_err(io("write", &self.place.path))
    }

    fn end(mut self) -> Result<Vec<u8>> {
        own(&self.file, &self.entry, false).map_err(io("set the owner of", &self.place.path))?;
        let there = self.place.as_expected(self.expected.as_deref())?;
        self.place.replace(&self.temporary, there.as_ref())?;
        self.renamed = true;
        // The stamp of this very file, whatever has its name by now.
        let stat = fstat(&self.file).map_err(io("look at", &self.place.path))?;
        Ok(stamp(&stat, false))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.renamed {
            // Whatever cannot be removed now is when it is old.
            let _ = unlinkat(&self.place.dir, &self.temporary, AtFlags::empty());
        }
    }
}

/// A name in a directory that is open.
struct Place {
    dir: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Place {
    fn open(root: &Root, path: &Path) -> Result<Self> {
        let astray = || FilesError::Astray(path.to_owned());
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(astray());
        };
        let dir = match root.beneath(parent, DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::LOOP | Errno::XDEV) => return Err(astray()),
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(FilesError::Missing(path.to_owned())),
            Err(error) => return Err(io("open", path)(error)),
        };
        Ok(Self { dir, name: name.to_owned(), path: path.to_owned() })
    }

    fn there(&self) -> Result<Option<Stat>> {
        match statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io("look at", &self.path)(error)),
        }
    }

    /// What is there, if it is what is expected.
    fn as_expected(&self, expected: Option<&[u8]>) -> Result<Option<Stat>> {
        let there = self.there()?;
        if there.as_ref().map(|stat| stamp(stat, false)).as_deref() == expected {
            return Ok(there);
        }
        Err(FilesError::Changed(self.path.clone()))
    }

    fn replace(&self, temporary: &OsStr, there: Option<&Stat>) -> Result<()> {
        let replaced = match there {
            // An empty one; what the machine never saw stays where it is.
            Some(stat) if is_directory(stat) => unlinkat(&self.dir, &self.name, AtFlags::REMOVEDIR),
            _ => Ok(()),
        };
        let renamed = replaced.and_then(|()| renameat(&self.dir, temporary, &self.dir, &self.name));
        if let Err(error) = renamed {
            let _ = unlinkat(&self.dir, temporary, AtFlags::empty());
            return Err(match error {
                Errno::NOTEMPTY | Errno::EXIST | Errno::ISDIR | Errno::BUSY => {
                    FilesError::Changed(self.path.clone())
                }
                error => io("replace", &self.path)(error),
            });
        }
        Ok(())
    }

    fn stamp(&self) -> Result<Vec<u8>> {
        let there = self.there()?.ok_or_else(|| FilesError::Changed(self.path.clone()))?;
        Ok(stamp(&there, false))
    }
}

/// Owner, mode and, of a file, time. The special bits of a mode are never a machine's to give: of a directory those stay that
/// it has on the node; a file whose content is another has none.
fn own(to: impl AsFd, entry: &SharedEntry, directory: bool) -> rustix::io::Result<()> {
    let to = to.as_fd();
    let special = if directory { fstat(to)?.st_mode & entry.mode & 0o7000 } else { 0 };
    fchown(to, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    fchmod(to, Mode::from_raw_mode(entry.mode & 0o777 | special))?;
    if directory { Ok(()) } else { futimens(to, &times(entry)) }
}

fn own_link(dir: &OwnedFd, name: &OsStr, entry: &SharedEntry) -> rustix::io::Result<()> {
    let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    chownat(dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(dir, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(entry: &SharedEntry) -> Timestamps {
    let time = Timespec { tv_sec: entry.modified.0, tv_nsec: entry.modified.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn is_directory(stat: &Stat) -> bool {
    walk::kind(stat) == FileType::Directory
}

fn temporary() -> OsString {
    let mut random = [0_u8; 16];
    // A name that somebody has is refused by the kernel.
    let _ = rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty());
    format!("{TEMPORARY}{}", hex::encode(random)).into()
}
