//! The file systems that every program expects, and a root that containers can leave.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::console::already;

/// Mounts what the agent itself needs to meet its node.
pub(super) fn prepare() -> io::Result<()> {
    file_system("proc", "/proc", DATA, "")?;
    file_system("sysfs", "/sys", DATA, "")?;
    // Layers are unpacked below it and run from there.
    file_system("tmpfs", "/run", PROGRAMS, "mode=755,size=90%")?;
    std::fs::create_dir_all("/etc")
}

/// Mounts the rest, before the first container.
pub(super) fn complete() -> io::Result<()> {
    leave_initial_root()?;
    let devices = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    file_system("devtmpfs", "/dev", devices, "")?;
    file_system("devpts", "/dev/pts", devices, "gid=5,mode=620,ptmxmode=666")?;
    file_system("tmpfs", "/dev/shm", PROGRAMS, "mode=1777")?;
    file_system("mqueue", "/dev/mqueue", DATA, "")?;
    file_system("tmpfs", "/tmp", PROGRAMS, "mode=1777")?;
    file_system("cgroup2", "/sys/fs/cgroup", DATA, "nsdelegate")?;
    enable_controllers(Path::new("/sys/fs/cgroup"))
}

/// The initial root file system has no mount above it, so that pivot_root refuses to leave it. The same files, mounted once
/// more over themselves with all that is mounted in them, do have one. All threads of this process see that.
fn leave_initial_root() -> io::Result<()> {
    let none: Option<&str> = None;
    std::fs::create_dir_all(NEW_ROOT)?;
    mount(Some("/"), NEW_ROOT, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    chdir(NEW_ROOT)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

fn file_system(kind: &str, target: &str, flags: MsFlags, options: &str) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    mount(Some(kind), target, Some(kind), flags, Some(options)).or_else(already).map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("{kind} on {target}: {error}"))
    })
}

/// What the root has, its children may use.
fn enable_controllers(root: &Path) -> io::Result<()> {
    let controllers = std::fs::read_to_string(root.join("cgroup.controllers"))?;
    let all: Vec<_> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    std::fs::write(root.join("cgroup.subtree_control"), all.join(" "))
}

const NEW_ROOT: &str = "/.root";
const PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const DATA: MsFlags = PROGRAMS.union(MsFlags::MS_NOEXEC);
