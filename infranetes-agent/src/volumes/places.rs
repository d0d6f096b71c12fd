//! Where volumes are in the machine, and the mounts that keep them apart.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use super::staging::{Entry, Ownership};
use super::{Kind, VolumeError, leads_down};

pub(super) struct Places {
    dir: PathBuf,
    /// Whether the tmpfs of delivered volumes is mounted: most machines need it, idle ones do without.
    ram_mounted: bool,
}

impl Places {
    pub(super) fn prepare(dir: PathBuf) -> io::Result<Self> {
        let mut places = Self { dir, ram_mounted: false };
        // Nothing is left of a former agent where there was none, as in a guest that boots.
        if places.dir.try_exists()? {
            places.clear()?;
        }
        Ok(places)
    }

    /// The directory of delivered volumes.
    pub(super) fn ram(&mut self) -> Result<PathBuf, VolumeError> {
        let ram = self.dir.join(RAM);
        if !self.ram_mounted {
            make_private(&ram).map_err(VolumeError::io("make room for"))?;
            mount_tmpfs(&ram, "mode=0700").map_err(VolumeError::io("mount memory for"))?;
            self.ram_mounted = true;
        }
        Ok(ram)
    }

    /// The path of a volume.
    pub(super) fn of(&mut self, id: &str, kind: Kind) -> Result<PathBuf, VolumeError> {
        Ok(match kind {
            Kind::Tree | Kind::File | Kind::Shared => self.ram()?.join(id),
            Kind::Empty { memory_bytes: 0 } => self.dir.join(EMPTY).join(id),
            Kind::Empty { .. } => self.dir.join(MEMORY).join(id),
        })
    }

    pub(super) fn make_empty(
        &self,
        path: &Path,
        memory_bytes: u64,
        owner: &Entry,
    ) -> Result<(), VolumeError> {
        let made = || -> io::Result<()> {
            make_private(path.parent().unwrap_or(path))?;
            fs::create_dir(path)?;
            if memory_bytes > 0 {
                mount_tmpfs(path, &format!("size={memory_bytes},mode=0700"))?;
            }
            let dir = openat(CWD, path, DIRECTORY, Mode::empty())?;
            Ownership::of(owner).give(dir.as_fd())?;
            Ok(())
        };
        made().map_err(VolumeError::io("make"))
    }

    /// Makes the directory of a shared volume, where delivered ones are.
    pub(super) fn make_shared(&self, path: &Path, owner: &Entry) -> Result<(), VolumeError> {
        let made = || -> io::Result<()> {
            fs::create_dir(path)?;
            let dir = openat(CWD, path, DIRECTORY, Mode::empty())?;
            Ok(Ownership::of(owner).give(dir.as_fd())?)
        };
        made().map_err(VolumeError::io("make"))
    }

    /// Where a container's part of a volume is mounted.
    pub(super) fn part(&self, container: &str, number: usize) -> PathBuf {
        self.dir.join(SUB).join(format!("{container}-{number}"))
    }

    /// Mounts what is at a path beneath a volume. Containers may change the volume at any time: what is mounted is what was
    /// opened, wherever its name leads afterwards.
    pub(super) fn mount_part(
        &self,
        volume: &Path,
        path: &str,
        part: &Path,
        makes_dirs: bool,
    ) -> Result<(), VolumeError> {
        let no_part =
            |cause: Errno| VolumeError::NoPart { path: path.to_owned(), cause: cause.into() };
        if !leads_down(Path::new(path)) {
            return Err(no_part(Errno::INVAL));
        }
        // The same container again: its part is mounted already.
        if fs::symlink_metadata(part).is_ok() {
            return Ok(());
        }
        let root =
            openat(CWD, volume, DIRECTORY, Mode::empty()).map_err(VolumeError::io("open"))?;
        let found = match open_beneath(&root, path) {
            Err(Errno::NOENT) if makes_dirs => make_beneath(&root, path).map_err(no_part)?,
            other => other.map_err(no_part)?,
        };
        let is_dir = rustix::fs::fstat(&found)
            .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
            .map_err(VolumeError::io("look into"))?;
        let mounted = || -> io::Result<()> {
            make_private(&self.dir.join(SUB))?;
            if is_dir {
                fs::create_dir(part)?;
            } else {
                fs::File::create_new(part)?;
            }
            mount_bind(format!("/proc/self/fd/{}", found.as_raw_fd()), part)?;
            Ok(mount_change(part, MountPropagationFlags::PRIVATE)?)
        };
        mounted().map_err(VolumeError::io("mount a part of"))
    }

    pub(super) fn unmount_part(&self, part: &Path) {
        let gone = detach(part).and_then(|()| remove(part));
        if let Err(error) = gone {
            tracing::warn!(%error, "a part of a volume stays mounted");
        }
    }

    /// Unmounts and removes everything.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        for places in [SUB, MEMORY] {
            for entry in fs::read_dir(self.dir.join(places)).into_iter().flatten().flatten() {
                detach(&entry.path())?;
            }
        }
        detach(&self.dir.join(RAM))?;
        self.ram_mounted = false;
        remove(&self.dir)
    }
}

/// Opens what a path leads to; links inside of the volume are followed inside of it.
fn open_beneath(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Makes the directories of a path that are missing; they are like the volume itself.
fn make_beneath(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let like = rustix::fs::fstat(root)?;
    let mut so_far = PathBuf::new();
    let mut above = root.try_clone().map_err(|_| Errno::MFILE)?;
    for name in Path::new(path).components() {
        so_far.push(name);
        let text = so_far.to_str().ok_or(Errno::ILSEQ)?;
        above = match open_beneath(root, text) {
            Err(Errno::NOENT) => {
                mkdirat(&above, name.as_os_str(), Mode::from_raw_mode(0o700))?;
                let made =
                    openat(&above, name.as_os_str(), DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
                Ownership::like(&like).give(made.as_fd())?;
                open_beneath(root, text)?
            }
            other => other?,
        };
    }
    Ok(above)
}

fn mount_tmpfs(path: &Path, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", path, "tmpfs", flags, options.as_c_str())?;
    Ok(mount_change(path, MountPropagationFlags::PRIVATE)?)
}

/// Unmounts whatever is mounted there, if anything is.
fn detach(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a file, or a directory with all that it holds; links are removed, not followed. Not there is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

const RAM: &str = "ram";
const EMPTY: &str = "empty";
const MEMORY: &str = "memory";
const SUB: &str = "sub";
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
