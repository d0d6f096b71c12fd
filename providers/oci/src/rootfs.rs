//! A container's root file system: its image's layers below a writable one.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use infranetes_sdk::{ProviderError, Result};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount};
use rustix::thread::UnshareFlags;

use crate::error::io_error;
use crate::image::{LayerPath, OverlayForm, remove_tree};

/// Where the parts of a root file system are.
#[derive(Debug, Clone)]
pub(crate) struct Rootfs {
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
    /// Holds the upper and the work directory.
    pub(crate) writable: PathBuf,
}

impl Rootfs {
    /// Mounts it. `layers` are names in `layers_dir`, lowest first.
    pub(crate) fn mount(
        &self,
        layers_dir: &Path,
        layers: &[LayerPath],
        form: OverlayForm,
        changes_owners: bool,
    ) -> Result<()> {
        for dir in [&self.mountpoint, &self.upper(), &self.work()] {
            fs::create_dir_all(dir).map_err(io_error(format!("cannot make {}", dir.display())))?;
        }
        let upper = openat(CWD, self.upper(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(io_error("cannot open the writable layer"))?;
        rustix::fs::fchmod(&upper, Mode::from_raw_mode(0o755))
            .map_err(io_error("cannot set the mode of the writable layer"))?;
        let mut options = self.options(layers, form);
        if changes_owners && form != OverlayForm::User {
            options.push_str(",metacopy=on");
        }
        self.mount_volatile(layers_dir, &options)
            .map_err(io_error("cannot mount the container's root file system"))
    }

    /// Without writing back: the layer goes with its container and is never mounted again, so that neither the container's own
    /// `fsync` nor unmounting it needs to wait for the disk. Linux before 5.10 does not know how.
    fn mount_volatile(&self, layers_dir: &Path, options: &str) -> io::Result<()> {
        match mount_overlay(layers_dir, &format!("{options},volatile"), &self.mountpoint) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                mount_overlay(layers_dir, options, &self.mountpoint)
            }
            result => result,
        }
    }

    /// Takes all of it away; what is not there is fine.
    pub(crate) fn remove(&self) -> Result<()> {
        unmount(&self.mountpoint)
            .map_err(io_error("cannot unmount the container's root file system"))?;
        remove_tree(&self.writable).map_err(io_error("cannot remove the writable layer"))
    }

    /// What was written: bytes and inodes.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let mut seen = HashSet::new();
        usage(&self.upper(), &mut seen)
    }

    fn upper(&self) -> PathBuf {
        self.writable.join("upper")
    }

    fn work(&self) -> PathBuf {
        self.writable.join("work")
    }

    fn options(&self, layers: &[LayerPath], form: OverlayForm) -> String {
        let (upper, work) = (self.upper(), self.work());
        format!("{},upperdir={},workdir={}", lower(layers, form), upper.display(), work.display())
    }
}

/// Mounts layers that nobody writes to. There have to be two at least.
pub(crate) fn mount_read_only(
    layers_dir: &Path,
    layers: &[LayerPath],
    form: OverlayForm,
    target: &Path,
) -> Result<()> {
    fs::create_dir_all(target).map_err(io_error(format!("cannot make {}", target.display())))?;
    mount_overlay(layers_dir, &lower(layers, form), target)
        .map_err(io_error("cannot mount an image"))
}

/// Unmounts what is mounted there; nothing is fine.
pub(crate) fn unmount(mountpoint: &Path) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn lower(layers: &[LayerPath], form: OverlayForm) -> String {
    // The kernel wants the highest first.
    let lower: Vec<&str> = layers.iter().rev().map(String::as_str).collect();
    let userxattr = if form == OverlayForm::User { ",userxattr" } else { "" };
    format!("lowerdir={}{userxattr}", lower.join(":"))
}

/// Mounts an overlay whose lower directories are named relative to `dir`: absolute ones of many layers would not fit into
/// the one page that a mount's options have.
fn mount_overlay(dir: &Path, options: &str, target: &Path) -> io::Result<()> {
    let (dir, options, target) = (dir.to_owned(), options.to_owned(), target.to_owned());
    let mounting = std::thread::Builder::new().name("mount".to_owned()).spawn(move || {
        #[expect(deprecated, reason = "sound: only sharing file descriptors anew would be unsafe")]
        rustix::thread::unshare(UnshareFlags::FS)?;
        // This thread's own working directory, from here on.
        rustix::process::chdir(&dir)?;
        let options = std::ffi::CString::new(options)?;
        mount("overlay", &target, "overlay", MountFlags::empty(), options.as_c_str())?;
        Ok(())
    })?;
    mounting.join().map_err(|_| io::Error::other("the mounting thread panicked"))?
}

/// Opens something of a container's root file system as the container would see it: no link leads out of it.
pub(crate) fn open_in(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens a root file system.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(io_error("cannot open the container's root file system"))
}

/// Makes a directory of the container with all above it; there already is success.
pub(crate) fn make_dir_in(root: &OwnedFd, path: &str) -> Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::PATH;
    let failed = || io_error::<Errno>(format!("cannot make {path:?} in the container"));
    let mut above = open_in(root, "/", flags).map_err(failed())?;
    let mut so_far = String::new();
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        if name == ".." {
            return Err(ProviderError::invalid(format!("the path {path:?} climbs")));
        }
        so_far = format!("{so_far}/{name}");
        above = match open_in(root, &so_far, flags) {
            Err(Errno::NOENT) => {
                mkdirat(above.as_fd(), name, Mode::from_raw_mode(0o755)).map_err(failed())?;
                open_in(root, &so_far, flags).map_err(failed())?
            }
            other => other.map_err(failed())?,
        };
    }
    Ok(())
}

fn usage(dir: &Path, seen: &mut HashSet<(u64, u64)>) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return (0, 0) };
    let mut sum = (0, 0);
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        sum = (sum.0 + metadata.blocks() * 512, sum.1 + 1);
        if metadata.is_dir() {
            let below = usage(&entry.path(), seen);
            sum = (sum.0 + below.0, sum.1 + below.1);
        }
    }
    sum
}
