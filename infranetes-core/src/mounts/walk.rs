//! Reads a tree of the node while others may change it.
//!
//! Every step goes from an opened directory to a name in it, and no link is followed: what is read is below the root or it is
//! not read. A file is opened twice, first as a mere name, so that a device or a FIFO that took its place is never opened.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::kernel::pseudo;
use super::{Entry, EntryKind, FilesError, Limits, NodePath, Part};

type Result<T> = std::result::Result<T, FilesError>;

/// Takes the pieces of a tree; `false` when nobody wants more.
pub(super) type Sink<'a> = &'a mut dyn FnMut(Part) -> bool;

/// Reads what is at a path.
pub(super) fn read(path: &NodePath, limits: Limits, sink: Sink<'_>) -> Result<()> {
    let root = open(path, OFlags::PATH)?;
    let stat = fstat(&root).map_err(io("look at", &path.shown()))?;
    let mut walk = Walk { shown: path.shown(), limits, bytes: 0, entries: 0, sink };
    match kind(&stat) {
        FileType::RegularFile => walk.file(root, PathBuf::new(), &stat).map(drop),
        FileType::Directory => walk.directory(&root, PathBuf::new(), &stat, 0).map(drop),
        other => Err(special(path.shown(), other)),
    }
}

/// A name for what is at a path now.
///
/// A directory that is read through a link `..data`, as those that the kubelet writes, changes with that link and with its own
/// names; any other tree is looked at as a whole, without its contents. What changed in this very moment may change once more
/// without a trace: such a name is good until the next look alone.
pub(super) fn revision(path: &NodePath, limits: Limits) -> Result<String> {
    let now = SystemTime::now();
    let mut seen = Seen { hash: Sha256::new(), newest: Duration::ZERO };
    let root = open(path, OFlags::PATH)?;
    let stat = fstat(&root).map_err(io("look at", &path.shown()))?;
    seen.stat(&stat);
    if kind(&stat) == FileType::Directory {
        match readlinkat(&root, DATA, Vec::new()) {
            Ok(target) => {
                seen.hash.update(target.as_bytes());
                if let Ok(data) = statat(&root, target.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
                    seen.stat(&data);
                }
            }
            Err(_) => {
                let mut sink = |_| true;
                let shown = path.shown();
                let mut walk = Walk { shown, limits, bytes: 0, entries: 0, sink: &mut sink };
                walk.look(&root, &PathBuf::new(), 0, &mut seen)?;
            }
        }
    }
    let age =
        now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().checked_sub(seen.newest);
    let unsettled = age.is_none_or(|age| age < SETTLED);
    let mut revision = hex::encode(&seen.hash.finalize()[..16]);
    if unsettled {
        revision.push('~');
    }
    Ok(revision)
}

/// Whether two names of the same path say that nothing changed in between.
pub(super) fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('~') == other.trim_end_matches('~')
}

/// Opens what is at a path, without following a link below its root.
pub(super) fn open(path: &NodePath, flags: OFlags) -> Result<OwnedFd> {
    let shown = path.shown();
    let root =
        openat(CWD, &path.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io("open", &path.root))?;
    if path.below.as_os_str().is_empty() {
        return openat(&root, ".", flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(io("open", &shown));
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    for _ in 0..RACES_MAX {
        match openat2(&root, &path.below, flags, Mode::empty(), resolve) {
            Ok(opened) => return Ok(opened),
            // Something was renamed meanwhile, and the kernel could not tell whether it is still beneath.
            Err(Errno::AGAIN) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(FilesError::Missing(shown)),
            Err(Errno::LOOP | Errno::XDEV) => return Err(FilesError::Astray(shown)),
            Err(error) => return Err(io("open", &shown)(error)),
        }
    }
    Err(FilesError::Changed(shown))
}

struct Walk<'a> {
    shown: PathBuf,
    limits: Limits,
    bytes: u64,
    entries: usize,
    sink: Sink<'a>,
}

/// What a revision is made of.
struct Seen {
    hash: Sha256,
    newest: Duration,
}

impl Seen {
    fn stat(&mut self, stat: &Stat) {
        for number in [
            stat.st_dev as i128,
            stat.st_ino as i128,
            stat.st_mode as i128,
            stat.st_uid as i128,
            stat.st_gid as i128,
            stat.st_size as i128,
            stat.st_mtime as i128,
            stat.st_mtime_nsec as i128,
            stat.st_ctime as i128,
            stat.st_ctime_nsec as i128,
        ] {
            self.hash.update(number.to_be_bytes());
        }
        let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
        let nanos = u32::try_from(stat.st_ctime_nsec).unwrap_or(0);
        self.newest = self.newest.max(Duration::new(seconds, nanos.min(999_999_999)));
    }
}

impl Walk<'_> {
    /// False when nobody wants more.
    fn directory(
        &mut self,
        at: &OwnedFd,
        path: PathBuf,
        stat: &Stat,
        depth: usize,
    ) -> Result<bool> {
        let (dir, names) = self.names(at, &path, depth)?;
        self.count()?;
        if !(self.sink)(Part::Entry(entry(path.clone(), EntryKind::Directory, stat))) {
            return Ok(false);
        }
        for name in names {
            let below = path.join(OsStr::from_bytes(name.as_bytes()));
            // What went in the meantime is told by the comparison of revisions.
            let Some(found) = self.peek(dir.as_fd(), &name, &below)? else { continue };
            let stat = fstat(&found).map_err(io("look at", &self.shown.join(&below)))?;
            let more = match kind(&stat) {
                FileType::Directory => self.directory(&found, below, &stat, depth + 1)?,
                FileType::RegularFile => self.file(found, below, &stat)?,
                FileType::Symlink => self.link(&found, below, &stat)?,
                other => return Err(special(self.shown.join(below), other)),
            };
            if !more {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn file(&mut self, found: OwnedFd, path: PathBuf, stat: &Stat) -> Result<bool> {
        let shown = self.shown.join(&path);
        self.count()?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.weigh(size)?;
        // The same file as was looked at, whatever has its name now.
        let by_number = format!("/proc/self/fd/{}", found.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file: File =
            openat(CWD, by_number, flags, Mode::empty()).map_err(io("open", &shown))?.into();
        if !(self.sink)(Part::Entry(entry(path, EntryKind::File, stat))) {
            return Ok(false);
        }
        // No more than it had when it was looked at: it may grow as fast as it is read.
        let mut rest = size;
        while rest > 0 {
            let mut piece = vec![0; usize::try_from(rest).unwrap_or(PIECE).min(PIECE)];
            let read = file.read(&mut piece).map_err(|source| FilesError::Io {
                what: "read",
                path: shown.clone(),
                source,
            })?;
            if read == 0 {
                break;
            }
            piece.truncate(read);
            rest -= read as u64;
            if !(self.sink)(Part::Data(Bytes::from(piece))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn link(&mut self, found: &OwnedFd, path: PathBuf, stat: &Stat) -> Result<bool> {
        self.count()?;
        let target =
            readlinkat(found, "", Vec::new()).map_err(io("read", &self.shown.join(&path)))?;
        let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
        Ok((self.sink)(Part::Entry(entry(path, EntryKind::Symlink(target), stat))))
    }

    /// Looks at all that is in a directory without reading it.
    fn look(&mut self, at: &OwnedFd, path: &Path, depth: usize, seen: &mut Seen) -> Result<()> {
        let (dir, names) = self.names(at, path, depth)?;
        for name in names {
            self.count()?;
            let below = path.join(OsStr::from_bytes(name.as_bytes()));
            let Ok(stat) = statat(&dir, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            seen.hash.update(name.as_bytes_with_nul());
            seen.stat(&stat);
            if kind(&stat) == FileType::Directory
                && let Some(found) = self.peek(dir.as_fd(), &name, &below)?
            {
                self.look(&found, &below, depth + 1, seen)?;
            }
        }
        Ok(())
    }

    /// Opens a directory for reading, and its names in their order.
    fn names(&self, at: &OwnedFd, path: &Path, depth: usize) -> Result<(OwnedFd, Vec<CString>)> {
        let shown = self.shown.join(path);
        if depth > DEPTH_MAX {
            return Err(FilesError::TooDeep { path: shown, most: DEPTH_MAX });
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = openat(at, ".", flags, Mode::empty()).map_err(io("open", &shown))?;
        let system = fstatfs(&dir).map_err(io("look at", &shown))?;
        if let Some(kind) = pseudo(system.f_type as u64) {
            return Err(FilesError::Special { path: shown, kind });
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir).map_err(io("read", &shown))? {
            let entry = entry.map_err(io("read", &shown))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
            if names.len() > self.limits.entries {
                return Err(self.too_many());
            }
        }
        names.sort();
        Ok((dir, names))
    }

    /// Opens a name without opening what it names; `None` when it is gone.
    fn peek(&self, dir: BorrowedFd<'_>, name: &CString, path: &Path) -> Result<Option<OwnedFd>> {
        match openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io("open", &self.shown.join(path))(error)),
        }
    }

    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries { Err(self.too_many()) } else { Ok(()) }
    }

    fn weigh(&mut self, bytes: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes <= self.limits.bytes {
            return Ok(());
        }
        let (path, most) = (self.shown.clone(), self.limits.bytes);
        Err(FilesError::TooMuch { path, most, what: "bytes", key: "copy_mib" })
    }

    fn too_many(&self) -> FilesError {
        let most = self.limits.entries as u64;
        FilesError::TooMuch { path: self.shown.clone(), most, what: "entries", key: "copy_entries" }
    }
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn special(path: PathBuf, kind: FileType) -> FilesError {
    let kind = match kind {
        // The last component is opened itself, whatever it is.
        FileType::Symlink => return FilesError::Astray(path),
        FileType::Socket => "a socket",
        FileType::Fifo => "a FIFO",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "no file, directory or link",
    };
    FilesError::Special { path, kind }
}

pub(super) fn io<E: Into<std::io::Error>>(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> FilesError {
    let path = path.to_owned();
    move |error| {
        let source = error.into();
        match source.kind() {
            std::io::ErrorKind::NotFound => FilesError::Missing(path),
            _ => FilesError::Io { what, path, source },
        }
    }
}

fn entry(path: PathBuf, kind: EntryKind, stat: &Stat) -> Entry {
    Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
    }
}

/// The link by which the kubelet changes all of a volume at once.
const DATA: &str = "..data";
const PIECE: usize = 256 * 1024;
const DEPTH_MAX: usize = 64;
const RACES_MAX: u32 = 100;
/// Longer than the steps of any file system's clock.
const SETTLED: Duration = Duration::from_millis(50);
