//! Looks at all that is in a shared directory of the node.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, openat, openat2,
    readlinkat, statat, unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{DEPTH_MAX, Mounted, SharedEntry, SharedKind, SharedPath, SharedTree, is_temporary};
use crate::mounts::kernel::pseudo;
use crate::mounts::walk::{self, io};
use crate::mounts::{EntryKind, FilesError, Limits};

type Result<T> = std::result::Result<T, FilesError>;

/// All that is there. Files that are on their way do not count; those that a crash left are removed.
pub(in crate::mounts) fn scan(path: &SharedPath, limits: Limits) -> Result<SharedTree> {
    let root = Root::open(path)?;
    let itself = entry(&root.dir, &path.path.shown())?;
    let mut walk = Walk { root: &root, limits, bytes: 0, tree: SharedTree::default() };
    walk.tree.entries.insert(PathBuf::new(), itself);
    walk.directory(&root.dir, Path::new(""), 0)?;
    Ok(walk.tree)
}

/// Opens an entry to be read: how it is, and its content. `None`: it is gone, or is none that travels.
pub(in crate::mounts) fn open_entry(
    path: &SharedPath,
    below: &Path,
) -> Result<Option<(SharedEntry, Option<File>)>> {
    let root = Root::open(path)?;
    let shown = path.path.shown().join(below);
    let opened = match root.beneath(below, OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(opened) => opened,
        Err(Errno::XDEV) => {
            return Ok(root
                .covered(below)
                .filter(|entry| entry.kind == SharedKind::Covered)
                .map(|entry| (super::plan::cover(&entry), None)));
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(io("open", &shown)(error)),
    };
    let entry = entry(&opened, &shown)?;
    let file = match &entry.kind {
        SharedKind::Plain(EntryKind::File) => {
            // The same file as was looked at, whatever has its name now.
            let number = format!("/proc/self/fd/{}", opened.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            Some(openat(CWD, number, flags, Mode::empty()).map_err(io("open", &shown))?.into())
        }
        SharedKind::Plain(_) => None,
        SharedKind::Covered | SharedKind::Special => return Ok(None),
    };
    Ok(Some((entry, file)))
}

/// The next bytes of a file of which so much is left; empty at its end.
pub(in crate::mounts) fn piece(file: &mut File, rest: u64, shown: &Path) -> Result<Bytes> {
    let mut piece = vec![0; usize::try_from(rest).unwrap_or(PIECE).min(PIECE)];
    let read = file.read(&mut piece).map_err(io("read", shown))?;
    piece.truncate(read);
    Ok(piece.into())
}

/// A shared directory, opened.
pub(super) struct Root {
    pub(super) dir: OwnedFd,
    mounted: Mounted,
}

impl Root {
    pub(super) fn open(path: &SharedPath) -> Result<Self> {
        let shown = path.path.shown();
        let dir = walk::open(&path.path, DIRECTORY)?;
        let stat = fstat(&dir).map_err(io("look at", &shown))?;
        if stat.st_ino != path.inode {
            return Err(FilesError::Another(shown));
        }
        Ok(Self { dir, mounted: path.mounted.clone() })
    }

    /// Opens what is at a path beneath the directory, and not below what does not belong to it; no link is followed.
    pub(super) fn beneath(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let Mounted::Then(mounted) = &self.mounted else {
            return beneath(&self.dir, path, flags, ResolveFlags::empty());
        };
        let around = mounted.iter().filter(|at| path.starts_with(at));
        match around.max_by_key(|at| at.components().count()) {
            None => beneath(&self.dir, path, flags, ResolveFlags::NO_XDEV),
            Some(at) => {
                let dir = beneath(&self.dir, at, DIRECTORY, ResolveFlags::empty())?;
                let rest = path.strip_prefix(at).unwrap_or(path);
                beneath(&dir, rest, flags, ResolveFlags::NO_XDEV)
            }
        }
    }

    /// What is at a path at which something is mounted that does not belong to the directory.
    fn covered(&self, path: &Path) -> Option<SharedEntry> {
        let parent = self.beneath(path.parent()?, DIRECTORY).ok()?;
        covered(&parent, path.file_name()?)
    }
}

struct Walk<'a> {
    root: &'a Root,
    limits: Limits,
    bytes: u64,
    tree: SharedTree,
}

impl Walk<'_> {
    fn directory(&mut self, dir: &OwnedFd, path: &Path, depth: usize) -> Result<()> {
        let shown = self.shown(path);
        if depth > DEPTH_MAX {
            return Err(FilesError::TooDeep { path: shown, most: DEPTH_MAX });
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(dir).map_err(io("read", &shown))? {
            let entry = entry.map_err(io("read", &shown))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
            if names.len() > self.limits.entries {
                return Err(self.too_many());
            }
        }
        names.sort();
        for name in names {
            let name = OsStr::from_bytes(name.as_bytes());
            let below = path.join(name);
            if is_temporary(&below) {
                sweep(dir, name);
                continue;
            }
            self.name(dir, name, below, depth)?;
        }
        Ok(())
    }

    fn name(&mut self, dir: &OwnedFd, name: &OsStr, path: PathBuf, depth: usize) -> Result<()> {
        let shown = self.shown(&path);
        let resolve = match &self.root.mounted {
            Mounted::Then(mounted) if !mounted.contains(&path) => ResolveFlags::NO_XDEV,
            _ => ResolveFlags::empty(),
        };
        let opened = match beneath(dir, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW, resolve) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::XDEV) => {
                return covered(dir, name).map_or(Ok(()), |entry| self.take(path, entry));
            }
            Err(error) => return Err(io("open", &shown)(error)),
        };
        let entry = entry(&opened, &shown)?;
        let is_directory = entry.is_directory();
        if is_directory {
            let system = fstatfs(&opened).map_err(io("look at", &shown))?;
            if pseudo(system.f_type as u64).is_some() {
                return self.take(path, SharedEntry { kind: SharedKind::Covered, ..entry });
            }
        }
        self.take(path.clone(), entry)?;
        if is_directory {
            match openat(&opened, ".", DIRECTORY, Mode::empty()) {
                Ok(inner) => self.directory(&inner, &path, depth + 1)?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(io("open", &shown)(error)),
            }
        }
        Ok(())
    }

    fn take(&mut self, path: PathBuf, entry: SharedEntry) -> Result<()> {
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > self.limits.bytes {
            let (path, most) = (self.shown(Path::new("")), self.limits.bytes);
            return Err(FilesError::TooMuch { path, most, what: "bytes", key: "shared_mib" });
        }
        self.tree.entries.insert(path, entry);
        if self.tree.entries.len() > self.limits.entries { Err(self.too_many()) } else { Ok(()) }
    }

    fn too_many(&self) -> FilesError {
        let (path, most) = (self.shown(Path::new("")), self.limits.entries as u64);
        FilesError::TooMuch { path, most, what: "entries", key: "shared_entries" }
    }

    /// Paths below the directory are enough for people here: the caller says which directory it is.
    fn shown(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }
}

/// How something is that was opened.
fn entry(opened: &OwnedFd, shown: &Path) -> Result<SharedEntry> {
    let stat = fstat(opened).map_err(io("look at", shown))?;
    let kind = match walk::kind(&stat) {
        FileType::Directory => SharedKind::Plain(EntryKind::Directory),
        FileType::RegularFile => SharedKind::Plain(EntryKind::File),
        FileType::Symlink => {
            let target = readlinkat(opened, "", Vec::new()).map_err(io("read", shown))?;
            let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
            SharedKind::Plain(EntryKind::Symlink(target))
        }
        _ => SharedKind::Special,
    };
    Ok(from_stat(&stat, kind))
}

/// A directory on which something is mounted shows as that; a file does not travel.
fn covered(dir: &OwnedFd, name: &OsStr) -> Option<SharedEntry> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let kind = match walk::kind(&stat) {
        FileType::Directory => SharedKind::Covered,
        _ => SharedKind::Special,
    };
    Some(from_stat(&stat, kind))
}

fn from_stat(stat: &Stat, kind: SharedKind) -> SharedEntry {
    let is_file = kind == SharedKind::Plain(EntryKind::File);
    SharedEntry {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        size: if is_file { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        stamp: stamp(stat, kind == SharedKind::Covered),
        fresh: is_file && is_fresh(stat),
        kind,
    }
}

/// A name for how something is. Of a directory what is in it does not count.
pub(super) fn stamp(stat: &Stat, covered: bool) -> Vec<u8> {
    let mut numbers = vec![
        i128::from(covered),
        stat.st_dev as i128,
        stat.st_ino as i128,
        stat.st_mode as i128,
        stat.st_uid as i128,
        stat.st_gid as i128,
    ];
    if walk::kind(stat) != FileType::Directory {
        numbers.extend([
            stat.st_size as i128,
            stat.st_mtime as i128,
            stat.st_mtime_nsec as i128,
            stat.st_ctime as i128,
            stat.st_ctime_nsec as i128,
        ]);
    }
    let mut hash = Sha256::new();
    numbers.iter().for_each(|number| hash.update(number.to_be_bytes()));
    hash.finalize()[..STAMP_BYTES].to_vec()
}

/// The file system's clock goes in steps: a second change within one may have the stamp of the first.
fn is_fresh(stat: &Stat) -> bool {
    let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
    let nanos = u32::try_from(stat.st_ctime_nsec).unwrap_or(0).min(999_999_999);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.checked_sub(Duration::new(seconds, nanos)).is_none_or(|age| age < SETTLED)
}

/// Opens what is at a path beneath a directory; no link is followed.
pub(super) fn beneath(
    dir: &OwnedFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve =
        resolve | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACES_MAX {
        match openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Something was renamed meanwhile, and the kernel could not tell whether it is still beneath.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Removes a file that a crash left on its way. One that is on its way now is younger.
fn sweep(dir: &OwnedFd, name: &OsStr) {
    let Ok(stat) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let age = now.as_secs().saturating_sub(u64::try_from(stat.st_ctime).unwrap_or(0));
    let ours = !matches!(walk::kind(&stat), FileType::Directory) && stat.st_nlink == 1;
    if ours && age > LEFT_SECONDS {
        // What cannot be removed now is looked at again.
        let _ = unlinkat(dir, name, AtFlags::empty());
    }
}

pub(super) const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
const PIECE: usize = 256 * 1024;
const STAMP_BYTES: usize = 16;
const RACES_MAX: u32 = 100;
/// Longer than the steps of any file system's clock.
const SETTLED: Duration = Duration::from_millis(50);
/// Longer than a file may be on its way.
const LEFT_SECONDS: u64 = 600;
