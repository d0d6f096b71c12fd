//! Users of a pod that are others in the machine: whose the files of a root file system are.
//!
//! Kernels of guests cannot map the owners of every file system on the fly (tmpfs least of all), so each file gets its new owner
//! in the container's writable layer; the overlay keeps the content where it is (`metacopy`). File capabilities are lost by that, as with any change of owner.

use std::os::fd::OwnedFd;

use infranetes_sdk::v1::UserNamespace;
use infranetes_sdk::{ProviderError, Result};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, openat, statat,
};
use rustix::io::Errno;

use crate::error::io_error;
use crate::rootfs::open_in;

/// Checks a mapping before anything is made of it.
pub(crate) fn check(users: &UserNamespace) -> Result<()> {
    for (first, count) in [(users.first_uid, users.uid_count), (users.first_gid, users.gid_count)] {
        if count == 0 || first.checked_add(count).is_none() {
            return Err(ProviderError::invalid(format!("{count} users from {first} on are none")));
        }
    }
    Ok(())
}

/// Gives every file below `root` to the same user and group of the pod as it belongs to now in the machine.
pub(crate) fn shift_owners(root: &OwnedFd, users: &UserNamespace) -> Result<()> {
    shift_all(root, users).map_err(io_error("cannot give the container's files to its users"))
}

fn shift_all(root: &OwnedFd, users: &UserNamespace) -> Result<(), Errno> {
    shift(root, c".", users)?;
    let mut dirs = vec![String::from("/")];
    while let Some(path) = dirs.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let dir = open_in(root, &path, flags)?;
        let again =
            openat(&dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for entry in Dir::new(again)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if shift(&dir, name, users)? == FileType::Directory {
                // A name that is no text cannot be passed on as one.
                let name = name.to_str().map_err(|_| Errno::ILSEQ)?;
                dirs.push(format!("{path}{name}/"));
            }
        }
    }
    Ok(())
}

fn shift(dir: &OwnedFd, name: &std::ffi::CStr, users: &UserNamespace) -> Result<FileType, Errno> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    // What the pod has no number for is nobody's: as it is, it may be one of the pod's in the machine.
    let shifted = |id, first, count| if id < count { first + id } else { NOBODY };
    let uid = Uid::from_raw(shifted(stat.st_uid, users.first_uid, users.uid_count));
    let gid = Gid::from_raw(shifted(stat.st_gid, users.first_gid, users.gid_count));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let set_id = stat.st_mode & (Mode::SUID | Mode::SGID).as_raw_mode() != 0;
    if set_id && kind == FileType::RegularFile {
        // The change of owner took it away.
        chmodat(dir, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    Ok(kind)
}

/// The highest number there is: no range of a pod gets there.
const NOBODY: u32 = u32::MAX - 1;
