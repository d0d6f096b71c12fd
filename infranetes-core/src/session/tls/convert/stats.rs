//! Samples of what a machine uses. Counts are bounded here; what figures say is the machine's own affair.

use std::time::Duration;

use infranetes_agent_protocol::v1;

use super::{WORD_BYTES_MAX, container_id, cut};
use crate::ids::ContainerId;
use crate::session::SessionError;
use crate::stats::{
    ContainerStats, CpuStats, DeviceStats, FilesystemStats, HugepageStats, MachineStats,
    MemoryStats, NetworkStats, Pressure, PressureStats, ProcessStats, StatsSample,
};

/// A sample. More of anything than a machine may send is a violation.
pub(in crate::session::tls) fn stats_sample(
    sample: v1::StatsResponse,
) -> Result<StatsSample, SessionError> {
    let containers = sample.containers.into_iter().map(container);
    Ok(StatsSample {
        taken: Duration::from_micros(sample.taken_us),
        machine: machine(sample.machine.unwrap_or_default())?,
        containers: containers.collect::<Result<_, _>>()?,
    })
}

fn machine(machine: v1::MachineStats) -> Result<MachineStats, SessionError> {
    few(&machine.networks, NETWORKS_MAX, "interfaces")?;
    Ok(MachineStats {
        cpu: machine.cpu.map(cpu),
        memory: machine.memory.map(memory),
        io_pressure: machine.io_pressure.map(pressure),
        networks: machine.networks.into_iter().map(network).collect(),
        default_network: cut(machine.default_network, WORD_BYTES_MAX),
    })
}

fn container(stats: v1::ContainerStats) -> Result<(ContainerId, ContainerStats), SessionError> {
    few(&stats.devices, DEVICES_MAX, "devices")?;
    few(&stats.hugepages, HUGEPAGES_MAX, "sizes of huge pages")?;
    let id = container_id(&stats.id)?;
    let stats = ContainerStats {
        cpu: cpu(stats.cpu.unwrap_or_default()),
        memory: memory(stats.memory.unwrap_or_default()),
        writable_layer: filesystem(stats.writable_layer.unwrap_or_default()),
        io_pressure: stats.io_pressure.map(pressure),
        devices: stats.devices.into_iter().map(device).collect(),
        processes: processes(stats.processes.unwrap_or_default()),
        hugepages: stats.hugepages.into_iter().map(hugepage).collect(),
    };
    Ok((id, stats))
}

fn few<T>(items: &[T], most: usize, what: &str) -> Result<(), SessionError> {
    if items.len() <= most {
        return Ok(());
    }
    Err(SessionError::Violation(format!("a sample with {} {what}", items.len())))
}

fn cpu(cpu: v1::CpuStats) -> CpuStats {
    CpuStats {
        usage_ns: cpu.usage_ns,
        user_ns: cpu.user_ns,
        system_ns: cpu.system_ns,
        periods: cpu.periods,
        throttled_periods: cpu.throttled_periods,
        throttled_ns: cpu.throttled_ns,
        pressure: cpu.pressure.map(pressure),
    }
}

fn memory(memory: v1::MemoryStats) -> MemoryStats {
    MemoryStats {
        usage_bytes: memory.usage_bytes,
        working_set_bytes: memory.working_set_bytes,
        rss_bytes: memory.rss_bytes,
        cache_bytes: memory.cache_bytes,
        mapped_file_bytes: memory.mapped_file_bytes,
        kernel_bytes: memory.kernel_bytes,
        max_usage_bytes: memory.max_usage_bytes,
        limit_bytes: memory.limit_bytes,
        swap_usage_bytes: memory.swap_usage_bytes,
        swap_limit_bytes: memory.swap_limit_bytes,
        page_faults: memory.page_faults,
        major_page_faults: memory.major_page_faults,
        limit_hits: memory.limit_hits,
        oom_kills: memory.oom_kills,
        pressure: memory.pressure.map(pressure),
    }
}

fn pressure(stats: v1::PressureStats) -> PressureStats {
    let one = |one: Option<v1::Pressure>| {
        let one = one.unwrap_or_default();
        Pressure {
            total_us: one.total_us,
            avg10: percent(one.avg10),
            avg60: percent(one.avg60),
            avg300: percent(one.avg300),
        }
    };
    PressureStats { some: one(stats.some), full: one(stats.full) }
}

/// What is no number must not reach who computes with it.
fn percent(value: f64) -> f64 {
    if value.is_finite() { value.clamp(0.0, 100.0) } else { 0.0 }
}

fn filesystem(stats: v1::FilesystemStats) -> FilesystemStats {
    FilesystemStats {
        used_bytes: stats.used_bytes,
        inodes_used: stats.inodes_used,
        capacity_bytes: stats.capacity_bytes,
        inodes_total: stats.inodes_total,
        inodes_free: stats.inodes_free,
    }
}

fn device(device: v1::DeviceStats) -> DeviceStats {
    DeviceStats {
        major: device.major,
        minor: device.minor,
        read_bytes: device.read_bytes,
        written_bytes: device.written_bytes,
        reads: device.reads,
        writes: device.writes,
    }
}

fn processes(stats: v1::ProcessStats) -> ProcessStats {
    ProcessStats {
        processes: stats.processes,
        threads: stats.threads,
        threads_max: stats.threads_max,
        file_descriptors: stats.file_descriptors,
        sockets: stats.sockets,
        open_files_limit: stats.open_files_limit,
    }
}

fn hugepage(stats: v1::HugepageStats) -> HugepageStats {
    HugepageStats {
        page_size: cut(stats.page_size, WORD_BYTES_MAX),
        usage_bytes: stats.usage_bytes,
        max_usage_bytes: stats.max_usage_bytes,
    }
}

fn network(stats: v1::NetworkStats) -> NetworkStats {
    NetworkStats {
        name: cut(stats.name, WORD_BYTES_MAX),
        received_bytes: stats.received_bytes,
        received_packets: stats.received_packets,
        receive_errors: stats.receive_errors,
        receive_drops: stats.receive_drops,
        sent_bytes: stats.sent_bytes,
        sent_packets: stats.sent_packets,
        send_errors: stats.send_errors,
        send_drops: stats.send_drops,
    }
}

const NETWORKS_MAX: usize = 32;
const DEVICES_MAX: usize = 32;
const HUGEPAGES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_sample_is_refused_or_made_harmless() {
        let violation = |sample: v1::StatsResponse| {
            let result = stats_sample(sample);
            assert!(matches!(result, Err(SessionError::Violation(_))), "{result:?}");
        };
        let with = |container: v1::ContainerStats| v1::StatsResponse {
            containers: vec![container],
            ..Default::default()
        };
        let id = || "ab".repeat(32);
        violation(with(v1::ContainerStats { id: "../x".into(), ..Default::default() }));
        let devices = vec![v1::DeviceStats::default(); DEVICES_MAX + 1];
        violation(with(v1::ContainerStats { id: id(), devices, ..Default::default() }));
        let hugepages = vec![v1::HugepageStats::default(); HUGEPAGES_MAX + 1];
        violation(with(v1::ContainerStats { id: id(), hugepages, ..Default::default() }));
        let networks = vec![v1::NetworkStats::default(); NETWORKS_MAX + 1];
        let machine = Some(v1::MachineStats { networks, ..Default::default() });
        violation(v1::StatsResponse { machine, ..Default::default() });

        let odd = v1::Pressure { total_us: 1, avg10: f64::NAN, avg60: -1.0, avg300: 1e300 };
        let io_pressure = Some(v1::PressureStats { some: Some(odd), full: None });
        let sample =
            stats_sample(with(v1::ContainerStats { id: id(), io_pressure, ..Default::default() }));
        let some = sample.unwrap().containers[0].1.io_pressure.unwrap().some;
        assert_eq!((some.avg10, some.avg60, some.avg300), (0.0, 0.0, 100.0));
    }
}
