//! Makes one directory what another is, while others read it.
//!
//! Whoever has it mounted holds the directory itself, so that it cannot be swapped as a whole; its entries can, each in one
//! step. The order is what makes a tree change as a whole whose readers go through one link, as those that the kubelet
//! writes: directories that are new come first, then links whose names begin with "..", which lead readers from the old
//! directories to the new ones, then all else, and what is gone goes last.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, fchmod,
    fchown, futimens, openat, renameat, renameat_with, statat, unlinkat,
};

/// Moves all entries of `new` over those of `live`, and removes what `new` does not have.
pub(super) fn merge(new: BorrowedFd<'_>, live: BorrowedFd<'_>) -> io::Result<()> {
    merge_at(new, live, 0)
}

fn merge_at(new: BorrowedFd<'_>, live: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deep"));
    }
    let (wanted, there) = (entries(new)?, entries(live)?);
    let mut order: Vec<(&OsString, FileType)> =
        wanted.iter().map(|(name, kind)| (name, *kind)).collect();
    order.sort_by_key(|(name, kind)| rank(name, *kind, there.contains_key(*name)));
    for (name, kind) in order {
        match there.get(name) {
            Some(FileType::Directory) if kind == FileType::Directory => {
                let (new, live) = (open(new, name)?, open(live, name)?);
                merge_at(new.as_fd(), live.as_fd(), depth + 1)?;
                take_after(new.as_fd(), live.as_fd())?;
            }
            // A directory cannot be renamed over anything else, nor anything else over it.
            Some(old) if *old == FileType::Directory || kind == FileType::Directory => {
                renameat_with(new, name, live, name, RenameFlags::EXCHANGE)?;
            }
            _ => renameat(new, name, live, name)?,
        }
    }
    let mut gone: Vec<&OsString> =
        there.keys().filter(|name| !wanted.contains_key(*name)).collect();
    gone.sort_by_key(|name| is_hidden(name));
    gone.into_iter().try_for_each(|name| remove_at(live, name, 0))
}

/// The place of an entry in the order of changes.
fn rank(name: &OsStr, kind: FileType, replaces: bool) -> u8 {
    match (kind, is_hidden(name)) {
        (FileType::Directory, _) if !replaces => 0,
        (FileType::Symlink, true) => 1,
        _ => 2,
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"..")
}

fn entries(dir: BorrowedFd<'_>) -> io::Result<BTreeMap<OsString, FileType>> {
    let mut entries = BTreeMap::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            let name = OsString::from_vec(name.to_vec());
            let stat = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            entries.insert(name, FileType::from_raw_mode(stat.st_mode));
        }
    }
    Ok(entries)
}

/// Owner, mode and time of a directory whose entries were moved.
fn take_after(new: BorrowedFd<'_>, live: BorrowedFd<'_>) -> io::Result<()> {
    let stat = rustix::fs::fstat(new)?;
    fchown(live, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(live, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
    Ok(futimens(live, &Timestamps { last_access: time, last_modification: time })?)
}

fn remove_at(parent: BorrowedFd<'_>, name: &OsStr, depth: u32) -> io::Result<()> {
    use rustix::io::Errno;
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    if depth > DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deep"));
    }
    let dir = open(parent, name)?;
    for below in entries(dir.as_fd())?.keys() {
        remove_at(dir.as_fd(), below, depth + 1)?;
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn open(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

const DEPTH_MAX: u32 = 256;
