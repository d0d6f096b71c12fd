//! A cgroup for each machine, in every hierarchy that can be written: v1, v2, or both.
//!
//! It bounds what a QEMU that broke out of its habits may take, and names the machine's processes for other tools. Where
//! nothing can be written, as without root, there is none, and that is fine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where cgroups are made.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    /// The parent's directory in each hierarchy.
    parents: Vec<(Hierarchy, PathBuf)>,
}

/// What a machine may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_millis: u64,
    pub(crate) threads: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hierarchy {
    V1Cpu,
    V1Memory,
    V1Pids,
    V2,
}

impl Cgroups {
    /// Cgroups below one named `parent`; an empty name means none.
    pub(crate) fn new(parent: &str) -> Self {
        Self::below(Path::new("/sys/fs/cgroup"), parent)
    }

    fn below(root: &Path, parent: &str) -> Self {
        if parent.is_empty() {
            return Self { parents: Vec::new() };
        }
        let known = [
            (Hierarchy::V1Cpu, root.join("cpu"), "cpu.shares"),
            (Hierarchy::V1Memory, root.join("memory"), "memory.limit_in_bytes"),
            (Hierarchy::V1Pids, root.join("pids"), "cgroup.procs"),
            (Hierarchy::V2, root.to_owned(), "cgroup.controllers"),
        ];
        let parents = known
            .into_iter()
            .filter(|(_, dir, sign)| dir.join(sign).exists())
            .map(|(hierarchy, dir, _)| (hierarchy, dir.join(parent)))
            .collect();
        Self { parents }
    }

    /// Puts a process into the cgroup of a machine, as far as that is possible; says in how many hierarchies it is.
    pub(crate) fn enter(&self, id: &str, pid: i32, limits: Limits) -> usize {
        let entered = self.parents.iter().filter(|(hierarchy, parent)| {
            match enter(*hierarchy, parent, id, pid, limits) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(machine = id, parent = %parent.display(), %error, "no cgroup here");
                    // Half-made ones are removed with the machine.
                    false
                }
            }
        });
        entered.count()
    }

    /// Removes the cgroup of a machine, and the parent with its last child. True if nothing of it is left.
    pub(crate) fn remove(&self, id: &str) -> bool {
        let mut all_gone = true;
        for (_, parent) in &self.parents {
            all_gone &= is_gone(fs::remove_dir(parent.join(id)));
            // Fails while other machines are there.
            let _ = fs::remove_dir(parent);
        }
        all_gone
    }

    /// Names of the cgroups that exist.
    pub(crate) fn names(&self) -> Vec<String> {
        let dirs = self.parents.iter().filter_map(|(_, parent)| fs::read_dir(parent).ok());
        let entries = dirs.flatten().flatten().filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names.dedup();
        names
    }
}

fn enter(
    hierarchy: Hierarchy,
    parent: &Path,
    id: &str,
    pid: i32,
    limits: Limits,
) -> io::Result<()> {
    let dir = parent.join(id);
    make(&dir)?;
    if hierarchy == Hierarchy::V2 {
        // Controllers that are not there are not handed down; the limits below then have no file.
        for top in [parent.parent(), Some(parent)].into_iter().flatten() {
            for controller in ["+cpu", "+memory", "+pids"] {
                let _ = fs::write(top.join("cgroup.subtree_control"), controller);
            }
        }
    }
    for (file, value) in settings(hierarchy, limits) {
        if let Err(error) = fs::write(dir.join(file), &value) {
            tracing::debug!(machine = id, file, value, %error, "a limit could not be set");
        }
    }
    fs::write(dir.join("cgroup.procs"), pid.to_string())
}

/// Another machine's end may remove the parent between the two steps, so try again.
fn make(dir: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match fs::create_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => tries += 1,
            answer => return answer,
        }
    }
}

fn settings(hierarchy: Hierarchy, limits: Limits) -> Vec<(&'static str, String)> {
    let shares = (limits.cpu_millis * 1024 / 1000).clamp(2, 262_144);
    let weight = (limits.cpu_millis / 10).clamp(1, 10_000);
    match hierarchy {
        Hierarchy::V1Cpu => vec![("cpu.shares", shares.to_string())],
        Hierarchy::V1Memory => vec![("memory.limit_in_bytes", limits.memory_bytes.to_string())],
        Hierarchy::V1Pids => vec![("pids.max", limits.threads.to_string())],
        Hierarchy::V2 => vec![
            ("cpu.weight", weight.to_string()),
            ("memory.max", limits.memory_bytes.to_string()),
            ("pids.max", limits.threads.to_string()),
        ],
    }
}

fn is_gone(removed: io::Result<()>) -> bool {
    match removed {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

const TRIES: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_in_the_words_of_each_hierarchy() {
        let root = tempfile::tempdir().expect("a directory");
        for (dir, sign) in
            [("cpu", "cpu.shares"), ("memory", "memory.limit_in_bytes"), ("pids", "cgroup.procs")]
        {
            fs::create_dir(root.path().join(dir)).expect("made");
            fs::write(root.path().join(dir).join(sign), "").expect("written");
        }
        let cgroups = Cgroups::below(root.path(), "infranetes");
        let limits = Limits { memory_bytes: 1 << 30, cpu_millis: 2000, threads: 64 };
        assert_eq!(cgroups.enter("vm-1", 42, limits), 3);
        let read = |path: &str| fs::read_to_string(root.path().join(path)).expect("read");
        assert_eq!(read("cpu/infranetes/vm-1/cpu.shares"), "2048");
        assert_eq!(read("memory/infranetes/vm-1/memory.limit_in_bytes"), "1073741824");
        assert_eq!(read("pids/infranetes/vm-1/pids.max"), "64");
        assert_eq!(read("pids/infranetes/vm-1/cgroup.procs"), "42");
        assert_eq!(cgroups.names(), ["vm-1"]);
        // A plain directory is not a cgroup: it keeps its files, and so stays, which `remove` reports.
        assert!(!cgroups.remove("vm-1"));
        assert!(cgroups.remove("vm-2"));
    }

    #[test]
    fn without_a_name_there_are_no_cgroups() {
        let limits = Limits { memory_bytes: 1, cpu_millis: 1, threads: 1 };
        assert_eq!(Cgroups::new("").enter("vm-1", 1, limits), 0);
    }
}
