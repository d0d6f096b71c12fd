//! Changes entries of a shared volume as the node says, unless a container was there first.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, mkdirat, openat,
    renameat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::{Agreed, DIRECTORY, Shared, at, is_fresh, open, stamp};
use crate::volumes::places::remove;
use crate::volumes::staging::{Entry, EntryKind, Ownership, times};
use crate::volumes::{VolumeError, leads_down};

/// Changes on their way in. Each is taken when the next comes; one that is not whole when this is dropped leaves nothing.
pub(crate) struct Putting {
    shared: Shared,
    root: OwnedFd,
    staging: PathBuf,
    dir: OwnedFd,
    file: Option<(Put, File)>,
    bytes: u64,
    left_alone: u64,
}

/// What an entry is to be.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    pub(crate) entry: Entry,
    /// Empty: it is not there.
    pub(crate) expected: Vec<u8>,
    pub(crate) token: Vec<u8>,
}

impl Putting {
    pub(super) fn new(
        shared: Shared,
        root: OwnedFd,
        staging: PathBuf,
    ) -> Result<Self, VolumeError> {
        let made = || -> io::Result<OwnedFd> {
            fs::DirBuilder::new().mode(0o700).create(&staging)?;
            Ok(openat(CWD, &staging, DIRECTORY, Mode::empty())?)
        };
        let dir = made().map_err(VolumeError::io("stage"))?;
        Ok(Self { shared, root, staging, dir, file: None, bytes: 0, left_alone: 0 })
    }

    /// Takes the next entry; a file's content follows.
    pub(crate) fn put(&mut self, put: Put) -> Result<(), VolumeError> {
        self.end_file()?;
        check(&put.entry.path)?;
        if put.entry.kind == EntryKind::File {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(&self.dir, STAGED, flags, Mode::from_raw_mode(0o600));
            self.file = Some((put, file.map_err(VolumeError::io("stage"))?.into()));
            return Ok(());
        }
        self.take(&put)
    }

    /// Takes the next bytes of the last file.
    pub(crate) fn data(&mut self, data: &[u8]) -> Result<(), VolumeError> {
        self.bytes += data.len() as u64;
        if self.bytes > BYTES_MAX {
            return Err(VolumeError::Invalid(format!("it has more than {BYTES_MAX} bytes")));
        }
        let Some((_, file)) = &mut self.file else {
            return Err(VolumeError::Invalid("bytes of no file".to_owned()));
        };
        file.write_all(data).map_err(VolumeError::io("write"))
    }

    /// Removes an entry. A directory that is not empty stays.
    pub(crate) fn remove(&mut self, path: &Path, expected: &[u8]) -> Result<(), VolumeError> {
        self.end_file()?;
        check(path)?;
        let gone = match self.place(path)? {
            None => true,
            Some((parent, name)) => match self.as_expected(&parent, &name, expected)? {
                None => false,
                Some(None) => true,
                Some(Some(stat)) => match unlinkat(&parent, &*name, flags(&stat)) {
                    Ok(()) | Err(Errno::NOENT) => true,
                    Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ISDIR | Errno::NOTDIR) => false,
                    Err(error) => return Err(VolumeError::io("remove an entry of")(error)),
                },
            },
        };
        if gone {
            self.shared.base().agreed.remove(path);
        } else {
            self.left_alone += 1;
        }
        Ok(())
    }

    /// The node has an entry as it was here when it had this stamp; empty: neither has it.
    pub(crate) fn agree(
        &mut self,
        path: &Path,
        stamp: Vec<u8>,
        token: Vec<u8>,
    ) -> Result<(), VolumeError> {
        self.end_file()?;
        let mut base = self.shared.base();
        let settled = !base.read_fresh.remove(path);
        if stamp.is_empty() {
            base.agreed.remove(path);
        } else if base.agreed.len() < ENTRIES_MAX || base.agreed.contains_key(path) {
            base.agreed.insert(path.to_owned(), Agreed { stamp, token, settled });
        }
        Ok(())
    }

    /// Ends it, and says how many entries were left alone.
    pub(crate) fn end(mut self) -> Result<u64, VolumeError> {
        self.end_file()?;
        Ok(self.left_alone)
    }

    fn end_file(&mut self) -> Result<(), VolumeError> {
        let Some((put, file)) = self.file.take() else { return Ok(()) };
        Ownership::of(&put.entry)
            .give(file.as_fd())
            .map_err(VolumeError::io("set the owner of"))?;
        drop(file);
        let taken = self.take(&put);
        match unlinkat(&self.dir, STAGED, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => taken,
            Err(error) => taken.and(Err(VolumeError::io("stage")(error))),
        }
    }

    fn take(&mut self, put: &Put) -> Result<(), VolumeError> {
        let path = &put.entry.path;
        if path.as_os_str().is_empty() {
            Ownership::of(&put.entry)
                .give(self.root.as_fd())
                .map_err(VolumeError::io("set the owner of"))?;
            let stat = fstat(&self.root).map_err(VolumeError::io("look at"))?;
            self.agreed(put, &stat);
            return Ok(());
        }
        let Some((parent, name)) = self.place(path)? else {
            self.left_alone += 1;
            return Ok(());
        };
        let Some(there) = self.as_expected(&parent, &name, &put.expected)? else {
            self.left_alone += 1;
            return Ok(());
        };
        match self.make(put, &parent, &name, there.as_ref()) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR) => {
                self.left_alone += 1;
                return Ok(());
            }
            Err(error) => return Err(VolumeError::io("take an entry of")(error)),
        }
        if let Some(stat) = at(&parent, &name).map_err(VolumeError::io("look at"))? {
            self.agreed(put, &stat);
        }
        Ok(())
    }

    fn make(
        &self,
        put: &Put,
        parent: &OwnedFd,
        name: &OsStr,
        there: Option<&Stat>,
    ) -> rustix::io::Result<()> {
        let is_directory = |stat: &Stat| FileType::from_raw_mode(stat.st_mode).is_dir();
        let entry = &put.entry;
        let make_directory = entry.kind == EntryKind::Directory;
        // A directory cannot be renamed over anything else, nor anything else over it.
        if let Some(stat) = there.filter(|stat| is_directory(stat) != make_directory) {
            unlinkat(parent, name, flags(stat))?;
        }
        match &entry.kind {
            EntryKind::Directory => {
                if !there.is_some_and(is_directory) {
                    mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
                }
                let made = open(parent, Path::new(name), DIRECTORY)?;
                let owner = Ownership::of(entry);
                owner.give(made.as_fd())
            }
            EntryKind::File => renameat(&self.dir, STAGED, parent, name),
            EntryKind::Symlink(target) => {
                symlinkat(target, &self.dir, STAGED)?;
                let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
                let made = chownat(&self.dir, STAGED, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                    .and_then(|()| {
                        let times = times(entry.modified);
                        utimensat(&self.dir, STAGED, &times, AtFlags::SYMLINK_NOFOLLOW)
                    })
                    .and_then(|()| renameat(&self.dir, STAGED, parent, name));
                if made.is_err() {
                    let _ = unlinkat(&self.dir, STAGED, AtFlags::empty());
                }
                made
            }
        }
    }

    /// What has been put has its time from the node: a change that follows has another one, however soon it comes.
    fn agreed(&self, put: &Put, stat: &Stat) {
        let settled = stat.st_mtime == put.entry.modified.0 || !is_fresh(stat);
        let agreed = Agreed { stamp: stamp(stat), token: put.token.clone(), settled };
        self.shared.base().agreed.insert(put.entry.path.clone(), agreed);
    }

    /// The directory that an entry is in, and its name there. `None` if there is no such directory.
    fn place(&self, path: &Path) -> Result<Option<(OwnedFd, std::ffi::OsString)>, VolumeError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(VolumeError::Invalid("the volume itself cannot go".to_owned()));
        };
        match open(&self.root, parent, DIRECTORY) {
            Ok(parent) => Ok(Some((parent, name.to_owned()))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(error) => Err(VolumeError::io("open")(error)),
        }
    }

    /// What is at a name, if that is what is expected; `None` if it is not.
    fn as_expected(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        expected: &[u8],
    ) -> Result<Option<Option<Stat>>, VolumeError> {
        let there = at(parent, name).map_err(VolumeError::io("look at"))?;
        let is = there.as_ref().map(stamp).unwrap_or_default();
        Ok((is == expected).then_some(there))
    }
}

impl Drop for Putting {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.staging) {
            tracing::warn!(%error, "an entry that was not taken in is left behind");
        }
    }
}

fn check(path: &Path) -> Result<(), VolumeError> {
    if leads_down(path) {
        Ok(())
    } else {
        Err(VolumeError::Invalid("a path that cannot be".into()))
    }
}

fn flags(stat: &Stat) -> AtFlags {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        _ => AtFlags::empty(),
    }
}

const STAGED: &str = "staged";
/// The node has bounds of its own, which are lower; these keep a mistake of it from filling the machine.
const BYTES_MAX: u64 = 4 << 30;
const ENTRIES_MAX: usize = 200_000;
