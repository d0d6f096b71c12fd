//! What is on this machine, counted from outside, so that a test can say that nothing was left behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::wait::until;
use crate::world;

/// Processes, mounts, network namespaces, cgroups and files at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    things: BTreeSet<String>,
}

impl Footprint {
    /// Looks at this machine. `dirs` are where files are counted.
    pub fn take(dirs: &[&Path]) -> Footprint {
        let mut things = BTreeSet::new();
        add_processes(&mut things);
        add_mounts(&mut things);
        add_cgroups(&mut things, Path::new("/sys/fs/cgroup"), 0);
        for dir in dirs {
            add_files(&mut things, dir);
        }
        Footprint { things }
    }

    /// What is here now and was not in `before`.
    pub fn since(&self, before: &Footprint) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }
}

/// Waits until nothing is left that was not there `before`; the error lists what is.
pub async fn nothing_left(before: &Footprint, dirs: &[&Path]) -> Result<()> {
    let mut left = Vec::new();
    let waited = until(LEAVE_LIMIT, "nothing is left behind", async || {
        left = Footprint::take(dirs).since(before);
        Ok(left.is_empty())
    });
    if waited.await.is_err() {
        bail!("left behind:\n  {}", left.join("\n  "));
    }
    Ok(())
}

/// Processes whose command line has `needle` in it, as (pid, command line).
pub fn processes_with(needle: &str) -> Vec<(u32, String)> {
    let all = pids().filter_map(|pid| Some((pid, command_line(pid)?)));
    all.filter(|(_, line)| line.contains(needle)).collect()
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    Some(statm.split(' ').nth(1)?.parse::<u64>().ok()? * PAGE)
}

/// Only programs of this project and what it starts: other things on the machine come and go by themselves.
fn add_processes(things: &mut BTreeSet<String>) {
    for pid in pids() {
        let Some(line) = command_line(pid) else { continue };
        let program =
            line.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let counts = PROGRAMS.iter().any(|ours| program.starts_with(ours));
        if counts && !is_anothers(pid) {
            things.insert(format!("process {pid}: {line}"));
            if let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) {
                things.insert(format!("network namespace {}", namespace.display()));
            }
        }
    }
}

/// Whether it, or a process that it comes from, works for a test in another process.
fn is_anothers(pid: u32) -> bool {
    let parents = std::iter::successors(Some(pid), |pid| parent(*pid).filter(|pid| *pid > 1));
    parents.take(ANCESTORS_MAX).any(|pid| {
        let line = command_line(pid).unwrap_or_default();
        let place = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        world::is_anothers(&line) || world::is_anothers(&place.to_string_lossy())
    })
}

/// The name before it, in parentheses, may hold anything.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

fn add_mounts(things: &mut BTreeSet<String>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts.lines() {
        let point = mount.split(' ').nth(4).unwrap_or_default();
        if !world::is_anothers(point) {
            things.insert(format!("mount {point}"));
        }
    }
    for name in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        things.insert(format!("named network namespace {}", name.file_name().to_string_lossy()));
    }
}

fn add_cgroups(things: &mut BTreeSet<String>, dir: &Path, depth: usize) {
    for path in entries(dir) {
        if depth < CGROUP_DEPTH && path.is_dir() && !path.is_symlink() {
            let name = path.to_string_lossy();
            if name.contains("infranetes") && !pids_of_cgroup(&path).any(is_anothers) {
                things.insert(format!("cgroup {name}"));
            }
            add_cgroups(things, &path, depth + 1);
        }
    }
}

fn pids_of_cgroup(dir: &Path) -> impl Iterator<Item = u32> {
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>().into_iter()
}

fn add_files(things: &mut BTreeSet<String>, dir: &Path) {
    for path in entries(dir) {
        let inode = fs::symlink_metadata(&path).map(|meta| meta.ino()).unwrap_or_default();
        things.insert(format!("file {} (inode {inode})", path.display()));
        if path.is_dir() && !path.is_symlink() {
            add_files(things, &path);
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(dir).into_iter().flatten().flatten();
    found.map(|entry| entry.path()).collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let found = fs::read_dir("/proc").into_iter().flatten().flatten();
    found.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// `None` for processes that are gone and for kernel threads. A zombie has an empty line: it shows by its name.
fn command_line(pid: u32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
    if line.is_empty() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        return Some(format!("{} (zombie or kernel thread)", name.trim()));
    }
    Some(line)
}

/// As the kernel cuts the names of threads: a zombie has no other.
const PROGRAMS: [&str; 9] = [
    "infranetes-cri",
    "infranetes-agen",
    "infranetes-prob",
    "qemu-system",
    "crun",
    "runc",
    "docker-registry",
    "busybox",
    "httpd",
];
const ANCESTORS_MAX: usize = 64;
const CGROUP_DEPTH: usize = 4;
const PAGE: u64 = 4096;
const LEAVE_LIMIT: Duration = Duration::from_secs(10);
