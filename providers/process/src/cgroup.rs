//! The cgroups of a machine, in every hierarchy that can be written: v1, v2, or both.
//!
//! ```text
//! PARENT/NAME/agent   the keeper, the agent, and what they start by themselves
//! PARENT/NAME/pod     below it, the container provider makes those of containers
//! ```
//!
//! They take the machine out of the daemon's own cgroup, so that a service manager that ends the daemon leaves it alone; they
//! share the CPU by size and bound the number of processes; and they name everything that is to be killed at the end. Where
//! nothing can be written there are none, and that is fine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::mounts;
use crate::process;

/// Where cgroups are made.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    parent: String,
}

/// What a machine may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A share, not a wall.
    pub(crate) cpu_millis: u64,
    /// 0 is no limit.
    pub(crate) pids: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    v2: bool,
    /// That of cpuset in version 1 is only cleaned up: a new cgroup there has no CPUs, so that nothing can enter it.
    enters: bool,
}

impl Cgroups {
    /// Cgroups below one named `parent` in what is mounted; an empty name means none.
    pub(crate) fn new(parent: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let hierarchies = if parent.is_empty() { Vec::new() } else { hierarchies(&mounts) };
        Self { hierarchies, parent: parent.to_owned() }
    }

    /// The cgroup below which the containers of a machine go, from the root of a hierarchy on.
    pub(crate) fn of_containers(&self, name: &str) -> String {
        let parent = if self.parent.is_empty() { DEFAULT_PARENT } else { &self.parent };
        format!("{parent}/{name}/{POD}")
    }

    /// Puts a process into the cgroups of a machine, as far as that is possible; says in how many hierarchies it is.
    pub(crate) fn enter(&self, name: &str, pid: i32, limits: Limits) -> usize {
        let open = self.hierarchies.iter().filter(|hierarchy| hierarchy.enters);
        let entered = open.filter(|hierarchy| {
            let entered = hierarchy.enter(&self.parent, name, pid, limits);
            if let Err(error) = &entered {
                let mount = hierarchy.mount.display();
                tracing::debug!(machine = name, %mount, %error, "no cgroup in this hierarchy");
            }
            entered.is_ok()
        });
        entered.count()
    }

    /// Kills what is in the cgroups of a machine, and removes them with all below. `Ok(false)` if the kernel has not let go
    /// of everything yet: ask again.
    pub(crate) fn remove(&self, name: &str) -> io::Result<bool> {
        let mut all_gone = true;
        for dir in self.dirs_of(name) {
            all_gone &= remove(&dir, &format!("/{}/{name}/", self.parent))?;
        }
        for hierarchy in &self.hierarchies {
            // Fails while other machines are there.
            let _ = fs::remove_dir(hierarchy.mount.join(&self.parent));
        }
        if all_gone && self.is_hybrid() {
            mounts::remove_hidden(&Path::new(&self.parent).join(name))?;
        }
        Ok(all_gone)
    }

    /// Names of the machines that have cgroups.
    pub(crate) fn names(&self) -> Vec<String> {
        let parents = self.hierarchies.iter().map(|one| one.mount.join(&self.parent));
        let mut names: Vec<String> = parents
            .flat_map(|parent| children(&parent))
            .filter_map(|dir| Some(dir.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn dirs_of(&self, name: &str) -> Vec<PathBuf> {
        let dirs = self.hierarchies.iter().map(|one| one.mount.join(&self.parent).join(name));
        dirs.filter(|dir| dir.is_dir()).collect()
    }

    fn is_hybrid(&self) -> bool {
        let count = |v2| self.hierarchies.iter().filter(|one| one.v2 == v2).count();
        count(true) > 0 && count(false) > 0
    }
}

impl Hierarchy {
    fn enter(&self, parent: &str, name: &str, pid: i32, limits: Limits) -> io::Result<()> {
        let machine = self.mount.join(parent).join(name);
        let agent = machine.join(AGENT);
        make(&agent)?;
        if self.v2 {
            // Controllers that are not there are not handed down; the limits below then have no file.
            for dir in [&self.mount, &self.mount.join(parent), &machine] {
                for controller in ["+cpu", "+memory", "+pids"] {
                    let _ = fs::write(dir.join("cgroup.subtree_control"), controller);
                }
            }
        }
        for (file, value) in settings(limits) {
            let path = machine.join(file);
            // Each hierarchy has its own files.
            if path.exists()
                && let Err(error) = fs::write(&path, &value)
            {
                tracing::debug!(machine = name, file, value, %error, "a limit could not be set");
            }
        }
        fs::write(agent.join(PROCS), pid.to_string())
    }
}

fn settings(limits: Limits) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if limits.cpu_millis > 0 {
        let shares = (limits.cpu_millis.saturating_mul(1024) / 1000).clamp(2, 262_144);
        let weight = (limits.cpu_millis / 10).clamp(1, 10_000);
        settings.push(("cpu.shares", shares.to_string()));
        settings.push(("cpu.weight", weight.to_string()));
    }
    if limits.pids > 0 {
        settings.push(("pids.max", limits.pids.to_string()));
    }
    settings
}

/// The hierarchies among the mounts of a `mountinfo`.
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut right = right.split(' ');
        let v2 = match right.next() {
            Some("cgroup2") => true,
            Some("cgroup") => false,
            _ => continue,
        };
        let enters = right.nth(1).unwrap_or_default().split(',').all(|word| word != "cpuset");
        if !v2 || found.iter().all(|one| !one.v2) {
            found.push(Hierarchy { mount, v2, enters });
        }
    }
    found
}

/// Another machine's end may remove the parent between two steps, so try again.
fn make(dir: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match fs::create_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => tries += 1,
            answer => return answer,
        }
    }
}

fn remove(dir: &Path, marker: &str) -> io::Result<bool> {
    // A frozen process does not even die.
    let _ = fs::write(dir.join("freezer.state"), "THAWED");
    // Linux 5.14 and later, version 2; the others one by one.
    let _ = fs::write(dir.join("cgroup.kill"), "1");
    for pid in pids(dir) {
        process::kill_if(pid, |pid| is_in(pid, marker))?;
    }
    let mut all_gone = true;
    for child in children(dir) {
        all_gone &= remove(&child, marker)?;
    }
    match fs::remove_dir(dir) {
        Ok(()) => Ok(all_gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(all_gone),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(error),
    }
}

fn pids(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join(PROCS)).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn is_in(pid: i32, marker: &str) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().any(|line| format!("{line}/").contains(marker))
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

const AGENT: &str = "agent";
const POD: &str = "pod";
const PROCS: &str = "cgroup.procs";
/// Where containers go when we make no cgroups ourselves.
const DEFAULT_PARENT: &str = "infranetes-process";
const TRIES: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn mountinfo(lines: &[(&str, &str, &str)]) -> String {
        let line = |(mount, kind, options): &(&str, &str, &str)| {
            format!("31 24 0:27 / {mount} rw,nosuid shared:9 - {kind} {kind} {options}\n")
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn every_hierarchy_is_found_once() {
        let names = |text: &str| {
            let found = hierarchies(text);
            found
                .iter()
                .map(|one| format!("{} {} {}", one.mount.display(), one.v2, one.enters))
                .collect::<Vec<_>>()
        };
        let hybrid = mountinfo(&[
            ("/", "ext4", "rw"),
            ("/c/cpu", "cgroup", "rw,cpu,cpuacct"),
            ("/c/cpuset", "cgroup", "rw,cpuset"),
            ("/c/unified", "cgroup2", "rw"),
            ("/again", "cgroup2", "rw"),
        ]);
        assert_eq!(
            names(&hybrid),
            ["/c/cpu false true", "/c/cpuset false false", "/c/unified true true"]
        );
        assert_eq!(names(&mountinfo(&[("/c", "cgroup2", "rw")])), ["/c true true"]);
        assert!(names("").is_empty());
    }

    #[test]
    fn limits_are_written_where_a_hierarchy_has_them() {
        let root = tempfile::tempdir().expect("a directory");
        let (v1, v2) = (root.path().join("cpu"), root.path().join("unified"));
        let cgroups = Cgroups {
            hierarchies: vec![
                Hierarchy { mount: v1.clone(), v2: false, enters: true },
                Hierarchy { mount: v2.clone(), v2: true, enters: true },
            ],
            parent: "parent".to_owned(),
        };
        for (mount, file) in [(&v1, "cpu.shares"), (&v2, "cpu.weight"), (&v2, "pids.max")] {
            let dir = mount.join("parent/m");
            fs::create_dir_all(&dir).expect("made");
            fs::write(dir.join(file), "").expect("written");
        }
        let limits = Limits { cpu_millis: 2000, pids: 64 };
        assert_eq!(cgroups.enter("m", 42, limits), 2);
        let read = |path: PathBuf| fs::read_to_string(path).expect("read");
        assert_eq!(read(v1.join("parent/m/cpu.shares")), "2048");
        assert_eq!(read(v2.join("parent/m/cpu.weight")), "200");
        assert_eq!(read(v2.join("parent/m/pids.max")), "64");
        assert!(!v1.join("parent/m/pids.max").exists());
        assert_eq!(read(v1.join("parent/m/agent/cgroup.procs")), "42");
        assert_eq!(cgroups.names(), ["m"]);
        assert_eq!(cgroups.of_containers("m"), "parent/m/pod");
        assert!(cgroups.remove("none").expect("not there is success"));
    }

    #[test]
    fn without_a_name_there_are_no_cgroups() {
        let cgroups = Cgroups::new("");
        assert_eq!(cgroups.enter("m", 1, Limits { cpu_millis: 1, pids: 1 }), 0);
        assert!(cgroups.names().is_empty());
    }
}
