//! Network namespaces, kept alive by a mount on a file.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

/// Makes a network namespace with loopback, and pins it at `path`, where nothing may be.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    let path = path.to_owned();
    // A thread of its own, which ends in the new namespace: no other work ever sees it.
    let thread = std::thread::Builder::new().name("namespace".to_owned());
    let made = thread.spawn(move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let none: Option<&str> = None;
        mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)?;
        loopback_up()
    })?;
    made.join().map_err(|_| io::Error::other("the thread that makes it died"))?
}

/// Whether a namespace is pinned here.
pub(crate) fn is_there(path: &Path) -> bool {
    statfs(path).is_ok_and(|at| at.filesystem_type() == NSFS_MAGIC)
}

/// Lets go of a namespace, which ends with the last process in it. Gone already is success.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    while is_there(path) {
        umount2(path, MntFlags::MNT_DETACH).or_else(|error| match error {
            Errno::ENOENT | Errno::EINVAL => Ok(()),
            error => Err(error),
        })?;
    }
    // This takes the mount out of the mount namespaces of others, too: a copy there would keep the namespace alive.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The program runs in the namespace of the thread that starts it.
fn loopback_up() -> io::Result<()> {
    let output = Command::new("ip").args(["link", "set", "lo", "up"]).output();
    let output = output.map_err(|error| {
        io::Error::new(error.kind(), format!("the program ip, of iproute2, cannot be run: {error}"))
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_made_pinned_and_let_go() {
        if std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) != 0 {
            eprintln!("skipped: making namespaces takes root");
            return;
        }
        let own = || fs::read_link("/proc/thread-self/ns/net").unwrap();
        let (dir, before) = (tempfile::tempdir().unwrap(), own());
        let path = dir.path().join("deep/ns");
        make(&path).unwrap();
        assert_eq!(own(), before);
        assert!(is_there(&path));
        assert!(make(&path).is_err(), "there is one already");
        let mut show = Command::new("nsenter");
        show.arg(format!("--net={}", path.display())).args(["ip", "-o", "link"]);
        let links = String::from_utf8(show.output().unwrap().stdout).unwrap();
        assert!(links.lines().count() == 1 && links.contains("LOOPBACK,UP"), "{links}");
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
    }
}
