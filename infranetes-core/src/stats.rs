//! What machines and containers use, as their agents count it.
//!
//! Figures come from guests and may be anything; a guest lies about its own pod alone. In all of them 0 also means that the
//! machine does not tell. Times are the node's.

use std::time::{Duration, SystemTime};

use crate::ids::ContainerId;

/// The last figures of one thing, and when the node got them.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted<T> {
    /// When the node got them; for a container that never ran, when it was created.
    pub at: SystemTime,
    /// The figures. CPU time never goes back, whatever the machine says.
    pub stats: T,
    /// CPU time per second of the machine's clock, in nanoseconds, between the last two samples that are at least a second
    /// apart; `None` until there are two.
    pub nano_cores: Option<u64>,
}

/// All that an agent counted at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatsSample {
    /// When, since the machine started. Only differences count.
    pub taken: Duration,
    /// The machine.
    pub machine: MachineStats,
    /// The containers that run.
    pub containers: Vec<(ContainerId, ContainerStats)>,
}

/// What a machine uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MachineStats {
    /// Of the machine as a whole; `None` where its agent has it not to itself.
    pub cpu: Option<CpuStats>,
    /// Likewise.
    pub memory: Option<MemoryStats>,
    /// Waiting for disks.
    pub io_pressure: Option<PressureStats>,
    /// Interfaces; loopback only where there is no other.
    pub networks: Vec<NetworkStats>,
    /// Name of the one with the default route, or empty.
    pub default_network: String,
}

/// What a container uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerStats {
    /// CPU time.
    pub cpu: CpuStats,
    /// Memory and swap.
    pub memory: MemoryStats,
    /// What it wrote to its root file system.
    pub writable_layer: FilesystemStats,
    /// Waiting for disks.
    pub io_pressure: Option<PressureStats>,
    /// Traffic with block devices.
    pub devices: Vec<DeviceStats>,
    /// Processes and what they hold.
    pub processes: ProcessStats,
    /// Huge pages, by size.
    pub hugepages: Vec<HugepageStats>,
}

/// CPU time since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CpuStats {
    /// Nanoseconds, over all CPUs.
    pub usage_ns: u64,
    /// Of these, in programs.
    pub user_ns: u64,
    /// Of these, in the kernel.
    pub system_ns: u64,
    /// Periods in which it could be held back.
    pub periods: u64,
    /// Periods in which it was.
    pub throttled_periods: u64,
    /// For how long.
    pub throttled_ns: u64,
    /// Waiting for a CPU.
    pub pressure: Option<PressureStats>,
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryStats {
    /// All that is charged, caches included.
    pub usage_bytes: u64,
    /// Without what the kernel can take back at once.
    pub working_set_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// Cached files.
    pub cache_bytes: u64,
    /// Mapped files.
    pub mapped_file_bytes: u64,
    /// The kernel's own, on its behalf.
    pub kernel_bytes: u64,
    /// The most that was charged.
    pub max_usage_bytes: u64,
    /// The limit; 0 where there is none.
    pub limit_bytes: u64,
    /// Swap in use.
    pub swap_usage_bytes: u64,
    /// The limit of swap; 0 where there is none.
    pub swap_limit_bytes: u64,
    /// Page faults since the start.
    pub page_faults: u64,
    /// Of these, those that waited for a disk.
    pub major_page_faults: u64,
    /// How often usage met the limit.
    pub limit_hits: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Waiting for memory.
    pub pressure: Option<PressureStats>,
}

/// How much of the time was spent waiting for a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureStats {
    /// Something waited.
    pub some: Pressure,
    /// Everything waited.
    pub full: Pressure,
}

/// Time spent waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Microseconds since the start.
    pub total_us: u64,
    /// Percent over the last 10 seconds.
    pub avg10: f64,
    /// Percent over the last minute.
    pub avg60: f64,
    /// Percent over the last five minutes.
    pub avg300: f64,
}

/// A writable layer, and the file system that it is on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilesystemStats {
    /// Bytes written.
    pub used_bytes: u64,
    /// Files and directories made.
    pub inodes_used: u64,
    /// Size of the file system.
    pub capacity_bytes: u64,
    /// Its inodes.
    pub inodes_total: u64,
    /// Of these, those that are free.
    pub inodes_free: u64,
}

/// Traffic with one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Its numbers.
    pub major: u32,
    /// Its numbers.
    pub minor: u32,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
}

/// Processes of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessStats {
    /// How many there are.
    pub processes: u64,
    /// Threads of all of them.
    pub threads: u64,
    /// The most threads that may be; 0 where there is no limit.
    pub threads_max: u64,
    /// Open files.
    pub file_descriptors: u64,
    /// Of these, sockets.
    pub sockets: u64,
    /// How many files the first process may open.
    pub open_files_limit: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugepageStats {
    /// As the kernel names it ("2MB").
    pub page_size: String,
    /// In use.
    pub usage_bytes: u64,
    /// The most that was in use.
    pub max_usage_bytes: u64,
}

/// Traffic of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// Its name in the machine.
    pub name: String,
    /// Bytes.
    pub received_bytes: u64,
    /// Packets.
    pub received_packets: u64,
    /// Errors.
    pub receive_errors: u64,
    /// Packets dropped.
    pub receive_drops: u64,
    /// Bytes.
    pub sent_bytes: u64,
    /// Packets.
    pub sent_packets: u64,
    /// Errors.
    pub send_errors: u64,
    /// Packets dropped.
    pub send_drops: u64,
}
