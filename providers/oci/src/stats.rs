//! What a container uses: the counters of its cgroup, its open files, its writable layer.
//!
//! Nothing here fails: what cannot be read is 0. Looking costs little whatever the container does: files are counted up to a
//! bound, and a writable layer that takes long to walk through is walked through seldom.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use infranetes_sdk::v1::{ContainerStats, DeviceStats, HugepageStats, Pressure, PressureStats};
use rustix::process::Pid;

use crate::cgroup::{Cgroup, field};
use crate::container::{Container, now_unix_ns};
use crate::rootfs::Rootfs;

/// All counters of a container.
pub(crate) fn of(container: &Container) -> ContainerStats {
    let mut stats = container.cgroup.stats();
    stats.id = container.id().to_owned();
    stats.timestamp_unix_ns = now_unix_ns();
    let pids = container.cgroup.pids();
    stats.processes = pids.len() as u64;
    (stats.file_descriptors, stats.sockets) = open_files(&pids);
    stats.open_files_limit = open_files_limit(container.status().pid);
    (stats.writable_layer_bytes, stats.writable_layer_inodes) =
        container.layer.measure(&container.rootfs);
    if let Ok(found) = rustix::fs::statvfs(&container.rootfs.writable) {
        stats.file_system_bytes = found.f_blocks.saturating_mul(found.f_frsize);
        stats.file_system_inodes = found.f_files;
        stats.file_system_free_inodes = found.f_ffree;
    }
    stats
}

/// Counters of a cgroup of version 2. `limits` is the one in which the runtime sets limits, below `dir`.
pub(crate) fn of_v2(dir: &Path, limits: &Path) -> ContainerStats {
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let limit = |file: &str| number(&fs::read_to_string(limits.join(file)).unwrap_or_default());
    let throttled = fs::read_to_string(limits.join("cpu.stat")).unwrap_or_default();
    let throttled = |name: &str| field(&throttled, name).unwrap_or(0);
    let (cpu, memory, events) = (read("cpu.stat"), read("memory.stat"), read("memory.events"));
    let cpu_ns = |name: &str| field(&cpu, name).unwrap_or(0).saturating_mul(1000);
    let memory = |name: &str| field(&memory, name).unwrap_or(0);
    let event = |name: &str| field(&events, name).unwrap_or(0);
    let usage = number(&read("memory.current"));
    ContainerStats {
        cpu_usage_ns: cpu_ns("usage_usec"),
        cpu_user_ns: cpu_ns("user_usec"),
        cpu_system_ns: cpu_ns("system_usec"),
        cpu_periods: throttled("nr_periods"),
        cpu_throttled_periods: throttled("nr_throttled"),
        cpu_throttled_ns: throttled("throttled_usec").saturating_mul(1000),
        cpu_pressure: pressure(&read("cpu.pressure")),
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(memory("inactive_file")),
        memory_rss_bytes: memory("anon"),
        memory_cache_bytes: memory("file"),
        memory_mapped_file_bytes: memory("file_mapped"),
        memory_kernel_bytes: memory("kernel"),
        memory_max_usage_bytes: number(&read("memory.peak")),
        memory_limit_bytes: limit("memory.max"),
        swap_usage_bytes: number(&read("memory.swap.current")),
        swap_limit_bytes: limit("memory.swap.max"),
        memory_page_faults: memory("pgfault"),
        memory_major_page_faults: memory("pgmajfault"),
        memory_limit_hits: event("max"),
        oom_kills: event("oom_kill"),
        memory_pressure: pressure(&read("memory.pressure")),
        io_pressure: pressure(&read("io.pressure")),
        devices: devices_v2(&read("io.stat")),
        threads: number(&read("pids.current")),
        threads_max: limit("pids.max"),
        hugepages: hugepages(dir, "current", None),
        ..Default::default()
    }
}

/// Counters of cgroups of version 1.
pub(crate) fn of_v1(cgroup: &Cgroup) -> ContainerStats {
    let read = |controller: &str, file: &str| {
        let dir = cgroup.v1(controller);
        dir.and_then(|dir| fs::read_to_string(dir.join(file)).ok()).unwrap_or_default()
    };
    let value = |controller: &str, file: &str| number(&read(controller, file));
    let (cpu, memory) = (read("cpu", "cpu.stat"), read("memory", "memory.stat"));
    let cpu = |name: &str| field(&cpu, name).unwrap_or(0);
    let memory = |name: &str| field(&memory, name).unwrap_or(0);
    let limit = |file: &str| Some(value("memory", file)).filter(|one| *one < NO_LIMIT).unwrap_or(0);
    let usage = value("memory", "memory.usage_in_bytes");
    let memory_limit = limit("memory.limit_in_bytes");
    ContainerStats {
        cpu_usage_ns: value("cpuacct", "cpuacct.usage"),
        cpu_user_ns: value("cpuacct", "cpuacct.usage_user"),
        cpu_system_ns: value("cpuacct", "cpuacct.usage_sys"),
        cpu_periods: cpu("nr_periods"),
        cpu_throttled_periods: cpu("nr_throttled"),
        cpu_throttled_ns: cpu("throttled_time"),
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(memory("total_inactive_file")),
        memory_rss_bytes: memory("total_rss"),
        memory_cache_bytes: memory("total_cache"),
        memory_mapped_file_bytes: memory("total_mapped_file"),
        memory_kernel_bytes: value("memory", "memory.kmem.usage_in_bytes"),
        memory_max_usage_bytes: value("memory", "memory.max_usage_in_bytes"),
        memory_limit_bytes: memory_limit,
        swap_usage_bytes: memory("total_swap"),
        // Version 1 limits both together.
        swap_limit_bytes: limit("memory.memsw.limit_in_bytes").saturating_sub(memory_limit),
        memory_page_faults: memory("total_pgfault"),
        memory_major_page_faults: memory("total_pgmajfault"),
        memory_limit_hits: value("memory", "memory.failcnt"),
        oom_kills: field(&read("memory", "memory.oom_control"), "oom_kill").unwrap_or(0),
        devices: devices_v1(
            &read("blkio", "blkio.throttle.io_service_bytes_recursive"),
            &read("blkio", "blkio.throttle.io_serviced_recursive"),
        ),
        threads: value("pids", "pids.current"),
        threads_max: value("pids", "pids.max"),
        hugepages: cgroup
            .v1("hugetlb")
            .map(|dir| hugepages(&dir, "usage_in_bytes", Some("max_usage_in_bytes")))
            .unwrap_or_default(),
        ..Default::default()
    }
}

/// Remembers how much a writable layer has, and how long it took to find out.
#[derive(Default)]
pub(crate) struct LayerUsage(Mutex<Option<Measured>>);

struct Measured {
    at: Instant,
    took: Duration,
    used: (u64, u64),
}

impl LayerUsage {
    /// Bytes and inodes: as they are, or as they were not long ago where finding out takes long.
    fn measure(&self, rootfs: &Rootfs) -> (u64, u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known
            && known.at.elapsed() < known.took * REST
        {
            return known.used;
        }
        let began = Instant::now();
        let used = rootfs.usage();
        *known = Some(Measured { at: Instant::now(), took: began.elapsed(), used });
        used
    }
}

/// Open files of some processes, and how many of them are sockets.
fn open_files(pids: &[Pid]) -> (u64, u64) {
    let (mut files, mut sockets) = (0, 0);
    for pid in pids.iter().take(PROCESSES_MAX) {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())) else {
            continue;
        };
        for entry in entries.flatten() {
            if files == FILES_MAX {
                return (files, sockets);
            }
            files += 1;
            let target = fs::read_link(entry.path()).unwrap_or_default();
            sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    (files, sockets)
}

fn open_files_limit(pid: u32) -> u64 {
    if pid == 0 {
        return 0;
    }
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A file with one number; "max" is none.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// `None` where the kernel does not tell.
fn pressure(text: &str) -> Option<PressureStats> {
    let line = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let value =
            |key: &str| rest.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let percent = |key: &str| value(key).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        Some(Pressure {
            total_us: value("total").and_then(|text| text.parse().ok())?,
            avg10: percent("avg10"),
            avg60: percent("avg60"),
            avg300: percent("avg300"),
        })
    };
    let some = line("some")?;
    Some(PressureStats { some: Some(some), full: line("full") })
}

fn devices_v2(text: &str) -> Vec<DeviceStats> {
    let device = |line: &str| {
        let mut words = line.split(' ');
        let mut device = numbered(words.next()?)?;
        for word in words {
            let Some((key, value)) = word.split_once('=') else { continue };
            match key {
                "rbytes" => device.read_bytes = number(value),
                "wbytes" => device.written_bytes = number(value),
                "rios" => device.reads = number(value),
                "wios" => device.writes = number(value),
                _ => {}
            }
        }
        Some(device)
    };
    text.lines().filter_map(device).take(DEVICES_MAX).collect()
}

/// Lines as "8:0 Read 123"; the first file counts bytes, the second requests.
fn devices_v1(bytes: &str, requests: &str) -> Vec<DeviceStats> {
    let mut devices: Vec<DeviceStats> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (requests, false)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(name), Some(operation), Some(count)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let Some(new) = numbered(name) else { continue };
            let same = |one: &DeviceStats| (one.major, one.minor) == (new.major, new.minor);
            let at = devices.iter().position(same).unwrap_or_else(|| {
                devices.push(new);
                devices.len() - 1
            });
            match (operation, is_bytes) {
                ("Read", true) => devices[at].read_bytes = number(count),
                ("Write", true) => devices[at].written_bytes = number(count),
                ("Read", false) => devices[at].reads = number(count),
                ("Write", false) => devices[at].writes = number(count),
                _ => {}
            }
        }
    }
    devices.truncate(DEVICES_MAX);
    devices
}

fn numbered(name: &str) -> Option<DeviceStats> {
    let (major, minor) = name.split_once(':')?;
    Some(DeviceStats {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..Default::default()
    })
}

/// Files as "hugetlb.2MB.current".
fn hugepages(dir: &Path, usage: &str, most: Option<&str>) -> Vec<HugepageStats> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let of = |name: std::ffi::OsString| {
        let name = name.into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(usage)?.strip_suffix('.')?;
        // Reservations have names of their own ("2MB.rsvd").
        if size.is_empty() || size.contains('.') {
            return None;
        }
        let read = |what: &str| {
            number(
                &fs::read_to_string(dir.join(format!("hugetlb.{size}.{what}"))).unwrap_or_default(),
            )
        };
        Some(HugepageStats {
            page_size: size.to_owned(),
            usage_bytes: read(usage),
            max_usage_bytes: most.map(read).unwrap_or(0),
        })
    };
    let mut all: Vec<_> = entries.flatten().filter_map(|entry| of(entry.file_name())).collect();
    all.sort_by(|left, right| left.page_size.cmp(&right.page_size));
    all.truncate(HUGEPAGES_MAX);
    all
}

/// So many times as long as finding out takes, nobody finds out again.
const REST: u32 = 20;
/// Processes whose open files are counted.
const PROCESSES_MAX: usize = 256;
/// Open files that are counted.
const FILES_MAX: u64 = 4096;
const DEVICES_MAX: usize = 8;
const HUGEPAGES_MAX: usize = 4;
/// Version 1 has no word for "no limit"; a number of pages near the largest one stands for it.
const NO_LIMIT: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_as_the_kernel_writes_it() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let found = pressure(text).unwrap();
        let some = found.some.unwrap();
        assert_eq!((some.avg10, some.avg60, some.total_us), (1.5, 0.25, 1234));
        assert_eq!(found.full.unwrap().total_us, 7);
        for none in ["", "some\n", "some avg10=1.00\n"] {
            assert_eq!(pressure(none), None, "{none:?}");
        }
    }

    #[test]
    fn devices_of_both_versions_come_out_alike() {
        let expected = DeviceStats {
            major: 8,
            minor: 16,
            read_bytes: 4096,
            written_bytes: 512,
            reads: 2,
            writes: 1,
        };
        let v2 = "8:16 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\nbroken\n";
        assert_eq!(devices_v2(v2), [expected]);
        let bytes = "8:16 Read 4096\n8:16 Write 512\n8:16 Sync 9\nTotal 4608\n";
        let requests = "8:16 Read 2\n8:16 Write 1\nTotal 3\n";
        assert_eq!(devices_v1(bytes, requests), [expected]);
    }

    #[test]
    fn no_limit_is_zero() {
        for (text, value) in [("max\n", 0), ("", 0), ("42\n", 42)] {
            assert_eq!(number(text), value);
        }
    }

    #[test]
    fn own_files_and_sockets_are_counted() {
        let (_left, _right) = std::os::unix::net::UnixStream::pair().unwrap();
        let own = Pid::from_raw(std::process::id().cast_signed()).unwrap();
        let (files, sockets) = open_files(&[own]);
        assert!(sockets >= 2 && files > sockets, "{files} {sockets}");
        assert!(open_files_limit(std::process::id()) > 0);
    }
}
