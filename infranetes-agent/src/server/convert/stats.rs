//! Counters of containers.

use infranetes_agent_protocol::v1::{
    ContainerStats, CpuStats, DeviceStats, FilesystemStats, HugepageStats, MemoryStats, Pressure,
    PressureStats, ProcessStats,
};
use infranetes_sdk::container as sdk;

/// A provider may know more devices and sizes of huge pages than fit.
pub(in crate::server) fn container_stats(stats: sdk::ContainerStats) -> ContainerStats {
    let cpu = CpuStats {
        usage_ns: stats.cpu_usage_ns,
        user_ns: stats.cpu_user_ns,
        system_ns: stats.cpu_system_ns,
        periods: stats.cpu_periods,
        throttled_periods: stats.cpu_throttled_periods,
        throttled_ns: stats.cpu_throttled_ns,
        pressure: stats.cpu_pressure.map(pressure),
    };
    let memory = MemoryStats {
        usage_bytes: stats.memory_usage_bytes,
        working_set_bytes: stats.memory_working_set_bytes,
        rss_bytes: stats.memory_rss_bytes,
        cache_bytes: stats.memory_cache_bytes,
        mapped_file_bytes: stats.memory_mapped_file_bytes,
        kernel_bytes: stats.memory_kernel_bytes,
        max_usage_bytes: stats.memory_max_usage_bytes,
        limit_bytes: stats.memory_limit_bytes,
        swap_usage_bytes: stats.swap_usage_bytes,
        swap_limit_bytes: stats.swap_limit_bytes,
        page_faults: stats.memory_page_faults,
        major_page_faults: stats.memory_major_page_faults,
        limit_hits: stats.memory_limit_hits,
        oom_kills: stats.oom_kills,
        pressure: stats.memory_pressure.map(pressure),
    };
    let writable_layer = FilesystemStats {
        used_bytes: stats.writable_layer_bytes,
        inodes_used: stats.writable_layer_inodes,
        capacity_bytes: stats.file_system_bytes,
        inodes_total: stats.file_system_inodes,
        inodes_free: stats.file_system_free_inodes,
    };
    let processes = ProcessStats {
        processes: stats.processes,
        threads: stats.threads,
        threads_max: stats.threads_max,
        file_descriptors: stats.file_descriptors,
        sockets: stats.sockets,
        open_files_limit: stats.open_files_limit,
    };
    ContainerStats {
        id: stats.id,
        cpu: Some(cpu),
        memory: Some(memory),
        writable_layer: Some(writable_layer),
        io_pressure: stats.io_pressure.map(pressure),
        devices: stats.devices.into_iter().take(DEVICES_MAX).map(device).collect(),
        processes: Some(processes),
        hugepages: stats.hugepages.into_iter().take(HUGEPAGES_MAX).map(hugepage).collect(),
    }
}

fn pressure(stats: sdk::PressureStats) -> PressureStats {
    let one = |one: sdk::Pressure| Pressure {
        total_us: one.total_us,
        avg10: one.avg10,
        avg60: one.avg60,
        avg300: one.avg300,
    };
    PressureStats { some: stats.some.map(one), full: stats.full.map(one) }
}

fn device(device: sdk::DeviceStats) -> DeviceStats {
    DeviceStats {
        major: device.major,
        minor: device.minor,
        read_bytes: device.read_bytes,
        written_bytes: device.written_bytes,
        reads: device.reads,
        writes: device.writes,
    }
}

fn hugepage(stats: sdk::HugepageStats) -> HugepageStats {
    HugepageStats {
        page_size: stats.page_size,
        usage_bytes: stats.usage_bytes,
        max_usage_bytes: stats.max_usage_bytes,
    }
}

const DEVICES_MAX: usize = 8;
const HUGEPAGES_MAX: usize = 4;
