//! Shared volumes: directories that containers and the node own together.
//!
//! The machine knows of each entry how it was when it last agreed with the node on it ([`Base`]), by what the file system says of it
//! and not by its content. So a scan tells what containers changed since, and costs no reading. The node decides what
//! travels; the machine gives what it is asked for, and takes what it is told, unless a container was there first.
//!
//! Containers may change the tree at any moment and swap directories for links: every step goes from an opened directory to a
//! name in it, and no link is followed.

mod put;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2};
use rustix::io::Errno;

pub(crate) use self::put::{Put, Putting};
pub(crate) use self::scan::Limits;
use super::VolumeError;
use super::staging::EntryKind;

/// One shared volume. Clones are the same.
#[derive(Clone)]
pub(crate) struct Shared {
    path: PathBuf,
    base: Arc<Mutex<Base>>,
}

/// What both sides agreed on last.
#[derive(Default)]
struct Base {
    agreed: BTreeMap<PathBuf, Agreed>,
    /// What was read while it was fresh: it may have changed since without a trace.
    read_fresh: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Agreed {
    stamp: Vec<u8>,
    token: Vec<u8>,
    /// A change that came right after it would have another stamp.
    settled: bool,
}

/// What a scan found of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    /// `None`: it is gone.
    pub(crate) now: Option<Now>,
    /// Empty: the node knows nothing of it.
    pub(crate) token: Vec<u8>,
    pub(crate) changed: bool,
}

/// How an entry is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// `None` is what is no directory, file or link.
    pub(crate) kind: Option<EntryKind>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: (i64, u32),
    pub(crate) size: u64,
    pub(crate) stamp: Vec<u8>,
    /// It was changed so lately that a further change may not show.
    fresh: bool,
}

/// All that a scan found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Empty while something is so fresh that it cannot be told from the change that comes next: [`SETTLED`] later it can.
    pub(crate) revision: Vec<u8>,
    pub(crate) found: Vec<Found>,
}

impl Shared {
    /// A volume whose directory is there; nothing is agreed on yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, base: Arc::default() }
    }

    /// What is there, and what both sides agreed on.
    pub(crate) fn scan(&self, limits: Limits) -> Result<Scan, VolumeError> {
        let tree = scan::walk(&self.root()?, limits)?;
        Ok(scan::compare(tree, &self.base().agreed))
    }

    /// Opens an entry to be read: how it is, and its content if it is a file. `None`: it is gone.
    pub(crate) fn open(&self, path: &Path) -> Result<Option<(Now, Option<File>)>, VolumeError> {
        let root = self.root()?;
        let failed = || VolumeError::io::<std::io::Error>("read an entry of");
        let opened = match self::open(&root, path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
            Err(error) => return Err(failed()(error.into())),
        };
        let now = now(&opened).map_err(|error| failed()(error.into()))?;
        if now.fresh {
            self.base().read_fresh.insert(path.to_owned());
        }
        let file = match &now.kind {
            Some(EntryKind::File) => {
                // The same file as was looked at, whatever has its name now.
                let number = format!("/proc/self/fd/{}", opened.as_raw_fd());
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(CWD, number, flags, Mode::empty());
                Some(file.map_err(|error| failed()(error.into()))?.into())
            }
            _ => None,
        };
        Ok(Some((now, file)))
    }

    /// Begins to change entries; what is on its way is staged in a directory beside the volume.
    pub(crate) fn begin(&self, staging: PathBuf) -> Result<Putting, VolumeError> {
        Putting::new(self.clone(), self.root()?, staging)
    }

    fn root(&self) -> Result<OwnedFd, VolumeError> {
        openat(CWD, &self.path, DIRECTORY, Mode::empty()).map_err(VolumeError::io("open"))
    }

    fn base(&self) -> MutexGuard<'_, Base> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Now {
    fn is_directory(&self) -> bool {
        self.kind == Some(EntryKind::Directory)
    }
}

/// How something is that was opened by name alone.
fn now(opened: &OwnedFd) -> rustix::io::Result<Now> {
    let stat = rustix::fs::fstat(opened)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Some(EntryKind::Directory),
        FileType::RegularFile => Some(EntryKind::File),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(opened, "", Vec::new())?;
            Some(EntryKind::Symlink(std::ffi::OsString::from_vec(target.into_bytes()).into()))
        }
        _ => None,
    };
    let is_file = kind == Some(EntryKind::File);
    Ok(Now {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        size: if is_file { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        stamp: stamp(&stat),
        fresh: is_file && is_fresh(&stat),
        kind,
    })
}

/// A name for how something is. Of a directory what is in it does not count.
fn stamp(stat: &Stat) -> Vec<u8> {
    let mut numbers =
        vec![stat.st_ino as i128, stat.st_mode as i128, stat.st_uid as i128, stat.st_gid as i128];
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        numbers.extend([
            stat.st_size as i128,
            stat.st_mtime as i128,
            stat.st_mtime_nsec as i128,
            stat.st_ctime as i128,
            stat.st_ctime_nsec as i128,
        ]);
    }
    let mut context = Context::new(&SHA256);
    numbers.iter().for_each(|number| context.update(&number.to_be_bytes()));
    context.finish().as_ref()[..16].to_vec()
}

/// The file system's clock goes in steps: a second change within one may have the stamp of the first.
fn is_fresh(stat: &Stat) -> bool {
    let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
    let nanos = u32::try_from(stat.st_ctime_nsec).unwrap_or(0).min(999_999_999);
    let changed = Duration::new(seconds, nanos);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.checked_sub(changed).is_none_or(|age| age < SETTLED)
}

/// Opens what is at a path of a volume, beneath it and on its own file system; no link is followed.
fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    for _ in 0..RACES_MAX {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Something was renamed meanwhile, and the kernel could not tell whether it is still beneath.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// How a name in a directory is now; `None` when it is not there.
fn at(dir: &OwnedFd, name: &std::ffi::OsStr) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
/// Longer than the steps of the file system's clock.
pub(crate) const SETTLED: Duration = Duration::from_millis(20);
const RACES_MAX: u32 = 100;

#[cfg(test)]
mod tests;
