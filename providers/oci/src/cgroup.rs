//! The cgroup of a container: where it is, what it counted, how it ends.
//!
//! Each container has an outer cgroup of ours, `PARENT/ID`, and the runtime makes `PARENT/ID/c` in it. The outer one outlives
//! the runtime's, so that what the container used and whether memory ran out can still be read when it is gone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use infranetes_sdk::v1::ContainerStats;
use rustix::event::EventfdFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::image::remove_tree;
use crate::stats;

/// Which hierarchies this machine has.
#[derive(Debug, Clone)]
pub(crate) enum Cgroups {
    /// One for all controllers.
    V2 { root: PathBuf },
    /// One for each controller, or for a few.
    V1 { hierarchies: Vec<Hierarchy> },
}

/// A hierarchy of version 1.
#[derive(Debug, Clone)]
pub(crate) struct Hierarchy {
    controllers: Vec<String>,
    mount: PathBuf,
}

/// What of a machine can be limited, among that which not every machine has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limitable {
    pub(crate) swap: bool,
    /// Sizes of huge pages, as in "2MB".
    pub(crate) page_sizes: BTreeSet<String>,
}

/// The cgroup of one container.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    cgroups: Cgroups,
    /// From the root of each hierarchy on, without a slash at its start.
    outer: PathBuf,
}

impl Cgroups {
    /// Looks at what is mounted.
    pub(crate) fn detect() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut hierarchies = Vec::new();
        let mut unified = None;
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => unified = unified.or(Some(mount)),
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    let controllers = options.split(',').map(str::to_owned).collect();
                    hierarchies.push(Hierarchy { controllers, mount });
                }
                _ => {}
            }
        }
        match (hierarchies.is_empty(), unified) {
            (false, _) => Ok(Self::V1 { hierarchies }),
            (true, Some(root)) => Ok(Self::V2 { root }),
            (true, None) => Err(io::Error::other("no cgroup hierarchy is mounted")),
        }
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// The cgroup of a container; makes nothing.
    pub(crate) fn container(&self, parent: &str, id: &str) -> Cgroup {
        let outer = Path::new(parent.trim_start_matches('/')).join(id);
        Cgroup { cgroups: self.clone(), outer }
    }

    /// What has limits here.
    pub(crate) fn limitable(&self) -> Limitable {
        let page_sizes = if self.has_huge_pages() { page_sizes() } else { BTreeSet::new() };
        Limitable { swap: self.counts_swap(), page_sizes }
    }

    fn has_huge_pages(&self) -> bool {
        match self {
            Self::V2 { root } => fs::read_to_string(root.join("cgroup.controllers"))
                .is_ok_and(|all| all.split_whitespace().any(|one| one == "hugetlb")),
            Self::V1 { hierarchies } => controller(hierarchies, "hugetlb").is_some(),
        }
    }

    fn counts_swap(&self) -> bool {
        match self {
            // The root has no such file; what it delegates says enough.
            Self::V2 { .. } => Path::new("/proc/swaps").exists(),
            Self::V1 { hierarchies } => controller(hierarchies, "memory")
                .is_some_and(|mount| mount.join("memory.memsw.limit_in_bytes").exists()),
        }
    }

    /// Whether containers can be made to stand still.
    pub(crate) fn can_freeze(&self) -> bool {
        match self {
            Self::V2 { .. } => true,
            Self::V1 { hierarchies } => controller(hierarchies, "freezer").is_some(),
        }
    }

    fn mounts(&self) -> Vec<&Path> {
        match self {
            Self::V2 { root } => vec![root],
            Self::V1 { hierarchies } => hierarchies.iter().map(|one| one.mount.as_path()).collect(),
        }
    }
}

impl Cgroup {
    /// What the runtime is given as `cgroupsPath`.
    pub(crate) fn path_for_runtime(&self) -> String {
        format!("/{}", self.outer.join(INNER).display())
    }

    /// Makes the outer cgroup; there already is success.
    pub(crate) fn make(&self) -> io::Result<()> {
        for mount in self.cgroups.mounts() {
            // The hierarchies of version 1 are made by the runtime, which knows what cpuset asks for.
            if self.cgroups.is_v2() {
                fs::create_dir_all(mount.join(&self.outer))?;
            }
        }
        // Except for the one whose events have to be listened for from the first moment on.
        match self.v1("memory") {
            Some(dir) => fs::create_dir_all(dir),
            None => Ok(()),
        }
    }

    /// Listens for running out of memory, where the counter goes with the runtime's cgroup.
    pub(crate) fn watch_oom(&self) -> Option<OomWatch> {
        OomWatch::start(&self.v1("memory")?)
            .inspect_err(|error| tracing::debug!(%error, "running out of memory cannot be seen"))
            .ok()
    }

    /// How often the kernel killed something in it for want of memory; `None` where that is not known any more.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        let file = match &self.cgroups {
            Cgroups::V2 { root } => root.join(&self.outer).join("memory.events"),
            Cgroups::V1 { .. } => self.v1("memory")?.join("memory.oom_control"),
        };
        field(&fs::read_to_string(file).ok()?, "oom_kill")
    }

    /// Counters, as far as the hierarchies have them.
    pub(crate) fn stats(&self) -> ContainerStats {
        match &self.cgroups {
            Cgroups::V2 { root } => {
                let dir = root.join(&self.outer);
                stats::of_v2(&dir, &dir.join(INNER))
            }
            Cgroups::V1 { .. } => stats::of_v1(self),
        }
    }

    /// Lets all that is in it stand still, or go on, and waits until it does. `Unsupported` where no hierarchy can.
    pub(crate) async fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        let (order, order_file, state_file, state) = match &self.cgroups {
            Cgroups::V2 { root } => {
                let dir = root.join(&self.outer);
                let state = if frozen { "frozen 1" } else { "frozen 0" };
                let order = if frozen { "1" } else { "0" };
                (order, dir.join("cgroup.freeze"), dir.join("cgroup.events"), state)
            }
            Cgroups::V1 { .. } => {
                let file = self.v1("freezer").map(|dir| dir.join("freezer.state"));
                let file = file.filter(|file| file.exists()).ok_or(io::ErrorKind::Unsupported)?;
                let state = if frozen { "FROZEN" } else { "THAWED" };
                (state, file.clone(), file, state)
            }
        };
        fs::write(order_file, order)?;
        let mut pause = Duration::from_millis(1);
        for _ in 0..FREEZE_ROUNDS {
            let now = fs::read_to_string(&state_file)?;
            if now.lines().any(|line| line == state) {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(KILL_PAUSE);
        }
        Err(io::Error::other("the kernel does not let all of it stand still, or go on"))
    }

    /// Kills all that is in it, and waits until nothing is.
    pub(crate) async fn kill(&self) -> io::Result<()> {
        if let Cgroups::V2 { root } = &self.cgroups {
            // Missing before Linux 5.14; then one by one.
            let _ = fs::write(root.join(&self.outer).join("cgroup.kill"), "1");
        }
        let mut pause = Duration::from_millis(1);
        for _ in 0..KILL_ROUNDS {
            let pids = self.pids();
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                let _ = kill_process(pid, Signal::KILL);
            }
            if let (Some(dir), false) = (self.v1("freezer"), self.cgroups.is_v2()) {
                // In version 1, what stands still does not even die.
                let _ = fs::write(dir.join("freezer.state"), "THAWED");
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(KILL_PAUSE);
        }
        Err(io::Error::other("processes stay alive after SIGKILL"))
    }

    /// Removes it with all below; not there is success.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for mount in self.cgroups.mounts() {
            remove_dirs(&mount.join(&self.outer))?;
        }
        self.remove_stray()
    }

    /// crun writes to where the unified hierarchy would be, beside those of version 1: into a plain directory where it is not.
    fn remove_stray(&self) -> io::Result<()> {
        let Cgroups::V1 { hierarchies } = &self.cgroups else { return Ok(()) };
        let Some(base) = hierarchies.first().and_then(|one| one.mount.parent()) else {
            return Ok(());
        };
        let stray = base.join("unified");
        match rustix::fs::statfs(&stray) {
            Ok(stat) if stat.f_type as u64 != CGROUP2 => remove_tree(&stray.join(&self.outer)),
            _ => Ok(()),
        }
    }

    /// Bytes of memory that are charged to it; 0 where that is not known.
    pub(crate) fn memory_used(&self) -> u64 {
        let file = match &self.cgroups {
            Cgroups::V2 { root } => Some(root.join(&self.outer).join(INNER).join("memory.current")),
            Cgroups::V1 { .. } => self.v1("memory").map(|dir| dir.join("memory.usage_in_bytes")),
        };
        let text = file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Asks the kernel to take back so much memory; what it can, it does before this returns.
    pub(crate) fn reclaim(&self, bytes: u64) {
        let done = match &self.cgroups {
            Cgroups::V2 { root } => {
                let file = root.join(&self.outer).join(INNER).join("memory.reclaim");
                fs::write(file, bytes.to_string())
            }
            // With children it would be refused; it has none.
            Cgroups::V1 { .. } => match self.v1("memory") {
                Some(dir) => fs::write(dir.join("memory.force_empty"), "0"),
                None => Ok(()),
            },
        };
        if let Err(error) = done {
            tracing::debug!(%error, "the kernel took back less memory than it was asked to");
        }
    }

    /// All processes in it.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        for mount in self.cgroups.mounts() {
            collect_pids(&mount.join(&self.outer), &mut pids);
        }
        pids.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        pids.dedup();
        pids
    }

    /// The runtime's cgroup in the hierarchy of a controller.
    pub(crate) fn v1(&self, name: &str) -> Option<PathBuf> {
        let Cgroups::V1 { hierarchies } = &self.cgroups else { return None };
        Some(controller(hierarchies, name)?.join(&self.outer).join(INNER))
    }
}

/// Remembers that a cgroup of version 1 ran out of memory.
pub(crate) struct OomWatch {
    seen: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl OomWatch {
    fn start(dir: &Path) -> io::Result<Self> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = fs::File::open(dir.join("memory.oom_control"))?;
        let order = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        fs::write(dir.join("cgroup.event_control"), order)?;
        // No pipe, but it is waited for like one.
        let event = tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(event)?;
        let seen = Arc::<AtomicBool>::default();
        let task = tokio::spawn(remember(event, control, seen.clone()));
        Ok(Self { seen, task })
    }

    pub(crate) fn seen(&self) -> bool {
        self.seen.load(Ordering::Acquire)
    }
}

impl Drop for OomWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn remember(
    event: tokio::net::unix::pipe::Receiver,
    control: fs::File,
    seen: Arc<AtomicBool>,
) {
    if event.readable().await.is_ok() {
        // The removal of the cgroup is an event, too; then there is nothing to read any more.
        let mut byte = [0];
        if matches!(control.read_at(&mut byte, 0), Ok(1)) {
            seen.store(true, Ordering::Release);
        }
    }
}

/// The number that stands after a name at the start of a line.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn controller<'a>(hierarchies: &'a [Hierarchy], name: &str) -> Option<&'a Path> {
    let found = hierarchies.iter().find(|one| one.controllers.iter().any(|known| known == name));
    found.map(|one| one.mount.as_path())
}

/// Sizes of the kernel's huge pages, as it writes them into the names of its cgroups' files.
fn page_sizes() -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return BTreeSet::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| page_size(&name)).collect()
}

/// "2MB" of "hugepages-2048kB".
fn page_size(name: &str) -> Option<String> {
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        1_048_576.. => format!("{}GB", kib >> 20),
        1024.. => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    })
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let entries = entries.flatten().filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir()));
    entries.map(|one| one.path()).collect()
}

fn collect_pids(dir: &Path, pids: &mut Vec<Pid>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process of another pid namespace.
    pids.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
    for child in children(dir) {
        collect_pids(&child, pids);
    }
}

fn remove_dirs(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_dirs(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

const CGROUP2: u64 = 0x6367_7270;

/// The name of the runtime's cgroup in ours.
const INNER: &str = "c";
const KILL_ROUNDS: u32 = 200;
/// A process in the middle of the kernel comes to a stop when it leaves it.
const FREEZE_ROUNDS: u32 = 400;
const KILL_PAUSE: Duration = Duration::from_millis(25);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "oom 3\noom_kill 2\noom_kill_disable 0\n";
        assert_eq!(field(text, "oom_kill"), Some(2));
        assert_eq!(field(text, "oom"), Some(3));
        assert_eq!(field(text, "kill"), None);
    }

    #[test]
    fn sizes_of_huge_pages_are_named_as_the_kernel_names_its_files() {
        for (name, expected) in [
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-16777216kB", Some("16GB")),
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-kB", None),
            ("hugepages", None),
        ] {
            assert_eq!(page_size(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_container_has_a_cgroup_in_one_of_ours() {
        let cgroups = Cgroups::V2 { root: "/sys/fs/cgroup".into() };
        let path = cgroups.container("/infranetes", "c1").path_for_runtime();
        assert_eq!(path, "/infranetes/c1/c");
    }
}
