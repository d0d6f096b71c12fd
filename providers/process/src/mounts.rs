//! Mounts that could be in the way when a machine's files are removed.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

/// Detaches every mount below a directory. There should be none: a machine's mounts end with its namespace. But what removes
/// the directory must never walk into the file system of somebody else.
pub(crate) fn detach_below(dir: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // Later mounts may lie on earlier ones.
    for mount in mount_points(&table).filter(|mount| mount.starts_with(dir)).rev() {
        tracing::warn!(mount = %mount.display(), "a mount was left below a machine's directory");
        match unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes what an OCI runtime wrote to where the unified hierarchy would be, had the agent not unmounted it in its
/// namespace: plain directories, which the mount hides from us.
pub(crate) fn remove_hidden(cgroup: &Path) -> io::Result<()> {
    // A copy of the one mount without those on it, which nobody else sees.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = match open_tree(CWD, CGROUP_ROOT, flags) {
        Ok(tree) => tree,
        Err(Errno::NOSYS | Errno::PERM | Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let hidden = PathBuf::from(format!("/proc/self/fd/{}/unified", tree.as_raw_fd()));
    let dir = hidden.join(cgroup);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(parent) = dir.parent() {
        // Not there, or of other machines.
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn mount_points(table: &str) -> impl DoubleEndedIterator<Item = PathBuf> {
    table.lines().filter_map(|line| line.split(' ').nth(4).map(unescape))
}

/// Blanks and the like are written in octal.
fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, character);
    }
    plain.into()
}

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let table =
            "31 24 0:27 / /a rw shared:9 - tmpfs t rw\n32 24 0:28 / /a/b\\040c rw - ext4 d rw\n";
        let found: Vec<_> = mount_points(table).collect();
        assert_eq!(found, [PathBuf::from("/a"), PathBuf::from("/a/b c")]);
    }
}
