//! What sandboxes and containers use, in CRI's words.
//!
//! A pod's CPU and memory are its machine's, kernel and agent included, where the agent has the machine to itself: that is what
//! requests and overhead of the pod are compared with. Else they are the sums over its containers.

use std::path::Path;
use std::time::SystemTime;

use infranetes_core::stats::{
    ContainerStats, Counted, CpuStats, FilesystemStats, MachineStats, MemoryStats, NetworkStats,
    Pressure, PressureStats,
};
use infranetes_core::status::{ContainerStatus, SandboxStatus};

use super::status::{container_metadata, nanos, pod_metadata};
use crate::api::v1;

/// A container and its last figures; without any it has its name alone.
pub struct ContainerUsage<'a> {
    /// The container.
    pub status: &'a ContainerStatus,
    /// Its figures.
    pub counted: Option<&'a Counted<ContainerStats>>,
}

/// A sandbox, its machine's last figures, and its containers.
pub struct SandboxUsage<'a> {
    /// The sandbox.
    pub status: &'a SandboxStatus,
    /// Its machine's figures.
    pub counted: Option<&'a Counted<MachineStats>>,
    /// Its containers that have figures.
    pub containers: Vec<ContainerUsage<'a>>,
    /// CPU time of containers that were removed.
    pub removed_cpu_ns: u64,
}

/// What a container uses. `disk` is where the kubelet is told that writable layers are.
pub fn container_stats(usage: &ContainerUsage<'_>, disk: &Path) -> v1::ContainerStats {
    let status = usage.status;
    let attributes = v1::ContainerAttributes {
        id: status.id.to_string(),
        metadata: Some(container_metadata(status)),
        labels: status.spec.labels.clone(),
        annotations: status.spec.annotations.clone(),
    };
    let Some(counted) = usage.counted else {
        return v1::ContainerStats { attributes: Some(attributes), ..Default::default() };
    };
    let Counted { at, stats, nano_cores } = counted;
    v1::ContainerStats {
        attributes: Some(attributes),
        cpu: Some(cpu(&stats.cpu, *nano_cores, *at)),
        memory: Some(memory(&stats.memory, *at)),
        writable_layer: Some(filesystem(&stats.writable_layer, disk, *at)),
        swap: Some(swap(&stats.memory, *at)),
        io: stats.io_pressure.as_ref().map(|psi| io(psi, *at)),
    }
}

/// What a pod uses.
pub fn sandbox_stats(usage: &SandboxUsage<'_>, disk: &Path) -> v1::PodSandboxStats {
    let status = usage.status;
    let attributes = v1::PodSandboxAttributes {
        id: status.id.to_string(),
        metadata: Some(pod_metadata(&status.spec.pod)),
        labels: status.spec.labels.clone(),
        annotations: status.spec.annotations.clone(),
    };
    let machine = usage.counted;
    let own_cpu =
        machine.and_then(|one| Some(cpu(one.stats.cpu.as_ref()?, one.nano_cores, one.at)));
    let own_memory = machine.and_then(|one| Some(memory(one.stats.memory.as_ref()?, one.at)));
    let linux = v1::LinuxPodSandboxStats {
        cpu: own_cpu.or_else(|| sum_of_cpu(usage)),
        memory: own_memory.or_else(|| sum_of_memory(usage)),
        network: machine.map(|one| network(&one.stats, one.at)),
        process: process_count(usage),
        containers: usage.containers.iter().map(|one| container_stats(one, disk)).collect(),
        io: machine.and_then(|one| Some(io(one.stats.io_pressure.as_ref()?, one.at))),
    };
    v1::PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None }
}

fn cpu(stats: &CpuStats, nano_cores: Option<u64>, at: SystemTime) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: nanos(at),
        usage_core_nano_seconds: value(stats.usage_ns),
        usage_nano_cores: nano_cores.and_then(value),
        psi: stats.pressure.as_ref().map(psi),
    }
}

/// What is available is known only below a limit.
fn memory(stats: &MemoryStats, at: SystemTime) -> v1::MemoryUsage {
    let limited = (stats.limit_bytes > 0).then_some(stats.limit_bytes);
    v1::MemoryUsage {
        timestamp: nanos(at),
        working_set_bytes: value(stats.working_set_bytes),
        available_bytes: limited
            .and_then(|limit| value(limit.saturating_sub(stats.working_set_bytes))),
        usage_bytes: value(stats.usage_bytes),
        rss_bytes: value(stats.rss_bytes),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
        psi: stats.pressure.as_ref().map(psi),
    }
}

fn swap(stats: &MemoryStats, at: SystemTime) -> v1::SwapUsage {
    let limited = (stats.swap_limit_bytes > 0).then_some(stats.swap_limit_bytes);
    v1::SwapUsage {
        timestamp: nanos(at),
        swap_available_bytes: limited
            .and_then(|limit| value(limit.saturating_sub(stats.swap_usage_bytes))),
        swap_usage_bytes: value(stats.swap_usage_bytes),
    }
}

/// The layer is in the machine; the kubelet wants a file system of its own node, and gets that of the images.
fn filesystem(stats: &FilesystemStats, disk: &Path, at: SystemTime) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: nanos(at),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: disk.to_string_lossy().into_owned() }),
        used_bytes: value(stats.used_bytes),
        inodes_used: value(stats.inodes_used),
    }
}

fn io(pressure: &PressureStats, at: SystemTime) -> v1::IoUsage {
    v1::IoUsage { timestamp: nanos(at), psi: Some(psi(pressure)) }
}

fn psi(pressure: &PressureStats) -> v1::PsiStats {
    let one = |one: &Pressure| v1::PsiData {
        total: one.total_us.saturating_mul(1000),
        avg10: one.avg10,
        avg60: one.avg60,
        avg300: one.avg300,
    };
    v1::PsiStats { full: Some(one(&pressure.full)), some: Some(one(&pressure.some)) }
}

/// The one with the default route is the default; loopback is nobody's network.
fn network(stats: &MachineStats, at: SystemTime) -> v1::NetworkUsage {
    let all = || stats.networks.iter().filter(|one| one.name != LOOPBACK);
    let default = all().find(|one| one.name == stats.default_network).or_else(|| all().next());
    let is_default = |one: &&NetworkStats| default.is_some_and(|default| default.name == one.name);
    v1::NetworkUsage {
        timestamp: nanos(at),
        default_interface: default.map(interface),
        interfaces: all().filter(|one| !is_default(one)).map(interface).collect(),
    }
}

fn interface(stats: &NetworkStats) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: stats.name.clone(),
        rx_bytes: value(stats.received_bytes),
        rx_errors: value(stats.receive_errors),
        tx_bytes: value(stats.sent_bytes),
        tx_errors: value(stats.send_errors),
    }
}

fn process_count(usage: &SandboxUsage<'_>) -> Option<v1::ProcessUsage> {
    let figures = figures(usage);
    let at = figures.iter().map(|one| one.at).max()?;
    let count = figures.iter().map(|one| one.stats.processes.processes).sum();
    Some(v1::ProcessUsage { timestamp: nanos(at), process_count: value(count) })
}

fn sum_of_cpu(usage: &SandboxUsage<'_>) -> Option<v1::CpuUsage> {
    let figures = figures(usage);
    let at = figures.iter().map(|one| one.at).max()?;
    let used: u64 = figures.iter().map(|one| one.stats.cpu.usage_ns).sum();
    let rates: Vec<u64> = figures.iter().filter_map(|one| one.nano_cores).collect();
    Some(v1::CpuUsage {
        timestamp: nanos(at),
        usage_core_nano_seconds: value(used.saturating_add(usage.removed_cpu_ns)),
        usage_nano_cores: (!rates.is_empty()).then(|| rates.iter().sum()).and_then(value),
        psi: None,
    })
}

/// What is available to all of them together is known to none.
fn sum_of_memory(usage: &SandboxUsage<'_>) -> Option<v1::MemoryUsage> {
    let figures = figures(usage);
    let at = figures.iter().map(|one| one.at).max()?;
    let sum =
        |of: fn(&MemoryStats) -> u64| value(figures.iter().map(|one| of(&one.stats.memory)).sum());
    Some(v1::MemoryUsage {
        timestamp: nanos(at),
        working_set_bytes: sum(|one| one.working_set_bytes),
        available_bytes: None,
        usage_bytes: sum(|one| one.usage_bytes),
        rss_bytes: sum(|one| one.rss_bytes),
        page_faults: sum(|one| one.page_faults),
        major_page_faults: sum(|one| one.major_page_faults),
        psi: None,
    })
}

fn figures<'a>(usage: &SandboxUsage<'a>) -> Vec<&'a Counted<ContainerStats>> {
    usage.containers.iter().filter_map(|one| one.counted).collect()
}

/// A message of its own, because CRI tells 0 from nothing.
fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

pub(super) const LOOPBACK: &str = "lo";
