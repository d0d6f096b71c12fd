//! The metrics, each with where its value comes from.

use std::time::{SystemTime, UNIX_EPOCH};

use infranetes_core::stats::{
    DeviceStats, HugepageStats, MachineStats, NetworkStats, Pressure, PressureStats,
};

use super::ContainerMetricsOf as Container;
use crate::api::v1;
use crate::api::v1::MetricType::{Counter, Gauge};

/// A metric: what it is, and its values with those labels that are its own.
pub(super) struct Series<T> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) labels: &'static [&'static str],
    kind: v1::MetricType,
    values: fn(&T) -> Values,
}

type Values = Vec<(Vec<String>, u64)>;

impl<T> Series<T> {
    pub(super) fn metrics(&self, of: &T, labels: &[String], at: i64) -> Vec<v1::Metric> {
        let metric = |(own, value): (Vec<String>, u64)| v1::Metric {
            name: self.name.to_owned(),
            timestamp: at,
            metric_type: self.kind as i32,
            label_values: labels.iter().cloned().chain(own).collect(),
            value: Some(v1::UInt64Value { value }),
        };
        (self.values)(of).into_iter().map(metric).collect()
    }
}

macro_rules! table {
    ($($name:literal $kind:ident $help:literal $labels:tt $values:expr;)*) => {
        &[$(Series { name: $name, help: $help, labels: &$labels, kind: $kind, values: $values }),*]
    };
}

/// Those of a machine, told of its pod.
pub(super) const NETWORK: &[Series<MachineStats>] = table! {
    "container_network_receive_bytes_total" Counter "Cumulative count of bytes received." ["interface"]
        |of| networks(of, |one| one.received_bytes);
    "container_network_receive_packets_total" Counter "Cumulative count of packets received." ["interface"]
        |of| networks(of, |one| one.received_packets);
    "container_network_receive_errors_total" Counter "Cumulative count of errors encountered while receiving." ["interface"]
        |of| networks(of, |one| one.receive_errors);
    "container_network_receive_packets_dropped_total" Counter "Cumulative count of packets dropped while receiving." ["interface"]
        |of| networks(of, |one| one.receive_drops);
    "container_network_transmit_bytes_total" Counter "Cumulative count of bytes transmitted." ["interface"]
        |of| networks(of, |one| one.sent_bytes);
    "container_network_transmit_packets_total" Counter "Cumulative count of packets transmitted." ["interface"]
        |of| networks(of, |one| one.sent_packets);
    "container_network_transmit_errors_total" Counter "Cumulative count of errors encountered while transmitting." ["interface"]
        |of| networks(of, |one| one.send_errors);
    "container_network_transmit_packets_dropped_total" Counter "Cumulative count of packets dropped while transmitting." ["interface"]
        |of| networks(of, |one| one.send_drops);
};

/// Those of a container.
pub(super) const CONTAINER: &[Series<Container>] = table! {
    "container_cpu_usage_seconds_total" Counter "Cumulative cpu time consumed in seconds." ["cpu"]
        |of| with("total", of.counted.stats.cpu.usage_ns / NANOS);
    "container_cpu_user_seconds_total" Counter "Cumulative user cpu time consumed in seconds." []
        |of| one(of.counted.stats.cpu.user_ns / NANOS);
    "container_cpu_system_seconds_total" Counter "Cumulative system cpu time consumed in seconds." []
        |of| one(of.counted.stats.cpu.system_ns / NANOS);
    "container_cpu_cfs_periods_total" Counter "Number of elapsed enforcement period intervals." []
        |of| one(of.counted.stats.cpu.periods);
    "container_cpu_cfs_throttled_periods_total" Counter "Number of throttled period intervals." []
        |of| one(of.counted.stats.cpu.throttled_periods);
    "container_cpu_cfs_throttled_seconds_total" Counter "Total time duration the container has been throttled." []
        |of| one(of.counted.stats.cpu.throttled_ns / NANOS);
    "container_pressure_cpu_waiting_seconds_total" Counter "Total time duration in which some tasks of the container waited for cpu." []
        |of| pressure(of.counted.stats.cpu.pressure.as_ref(), |one| &one.some);
    "container_pressure_cpu_stalled_seconds_total" Counter "Total time duration in which all tasks of the container waited for cpu." []
        |of| pressure(of.counted.stats.cpu.pressure.as_ref(), |one| &one.full);
    "container_pressure_memory_waiting_seconds_total" Counter "Total time duration in which some tasks of the container waited for memory." []
        |of| pressure(of.counted.stats.memory.pressure.as_ref(), |one| &one.some);
    "container_pressure_memory_stalled_seconds_total" Counter "Total time duration in which all tasks of the container waited for memory." []
        |of| pressure(of.counted.stats.memory.pressure.as_ref(), |one| &one.full);
    "container_pressure_io_waiting_seconds_total" Counter "Total time duration in which some tasks of the container waited for io." []
        |of| pressure(of.counted.stats.io_pressure.as_ref(), |one| &one.some);
    "container_pressure_io_stalled_seconds_total" Counter "Total time duration in which all tasks of the container waited for io." []
        |of| pressure(of.counted.stats.io_pressure.as_ref(), |one| &one.full);
    "container_memory_cache" Gauge "Number of bytes of page cache memory." []
        |of| one(of.counted.stats.memory.cache_bytes);
    "container_memory_rss" Gauge "Size of RSS in bytes." []
        |of| one(of.counted.stats.memory.rss_bytes);
    "container_memory_kernel_usage" Gauge "Size of kernel memory allocated in bytes." []
        |of| one(of.counted.stats.memory.kernel_bytes);
    "container_memory_mapped_file" Gauge "Size of memory mapped files in bytes." []
        |of| one(of.counted.stats.memory.mapped_file_bytes);
    "container_memory_swap" Gauge "Container swap usage in bytes." []
        |of| one(of.counted.stats.memory.swap_usage_bytes);
    "container_memory_usage_bytes" Gauge "Current memory usage in bytes, including all memory regardless of when it was accessed." []
        |of| one(of.counted.stats.memory.usage_bytes);
    "container_memory_max_usage_bytes" Gauge "Maximum memory usage recorded in bytes." []
        |of| one(of.counted.stats.memory.max_usage_bytes);
    "container_memory_working_set_bytes" Gauge "Current working set in bytes." []
        |of| one(of.counted.stats.memory.working_set_bytes);
    "container_memory_failcnt" Counter "Number of times that memory usage hit its limit." []
        |of| one(of.counted.stats.memory.limit_hits);
    "container_memory_failures_total" Counter "Cumulative count of memory allocation failures." ["failure_type", "scope"]
        |of| failures(of);
    "container_oom_events_total" Counter "Count of out of memory events observed for the container." []
        |of| one(of.counted.stats.memory.oom_kills);
    "container_fs_usage_bytes" Gauge "Number of bytes that the container wrote to its root file system." ["device"]
        |of| with(ROOT, of.counted.stats.writable_layer.used_bytes);
    "container_fs_limit_bytes" Gauge "Size of the file system of the container in bytes." ["device"]
        |of| with(ROOT, of.counted.stats.writable_layer.capacity_bytes);
    "container_fs_inodes_total" Gauge "Number of inodes of the file system." ["device"]
        |of| with(ROOT, of.counted.stats.writable_layer.inodes_total);
    "container_fs_inodes_free" Gauge "Number of inodes that are free." ["device"]
        |of| with(ROOT, of.counted.stats.writable_layer.inodes_free);
    "container_fs_reads_bytes_total" Counter "Cumulative count of bytes read." ["device"]
        |of| devices(of, |one| one.read_bytes);
    "container_fs_reads_total" Counter "Cumulative count of reads completed." ["device"]
        |of| devices(of, |one| one.reads);
    "container_fs_writes_bytes_total" Counter "Cumulative count of bytes written." ["device"]
        |of| devices(of, |one| one.written_bytes);
    "container_fs_writes_total" Counter "Cumulative count of writes completed." ["device"]
        |of| devices(of, |one| one.writes);
    "container_blkio_device_usage_total" Counter "Bytes moved between the container and block devices." ["device", "major", "minor", "operation"]
        |of| blkio(of);
    "container_hugetlb_usage_bytes" Gauge "Current huge page usage in bytes." ["pagesize"]
        |of| hugepages(of, |one| one.usage_bytes);
    "container_hugetlb_max_usage_bytes" Gauge "Maximum huge page usage recorded in bytes." ["pagesize"]
        |of| hugepages(of, |one| one.max_usage_bytes);
    "container_processes" Gauge "Number of processes running inside the container." []
        |of| one(of.counted.stats.processes.processes);
    "container_threads" Gauge "Number of threads running inside the container." []
        |of| one(of.counted.stats.processes.threads);
    "container_threads_max" Gauge "Maximum number of threads allowed inside the container, infinity if value is zero." []
        |of| one(of.counted.stats.processes.threads_max);
    "container_file_descriptors" Gauge "Number of open file descriptors for the container." []
        |of| one(of.counted.stats.processes.file_descriptors);
    "container_sockets" Gauge "Number of open sockets for the container." []
        |of| one(of.counted.stats.processes.sockets);
    "container_ulimits_soft" Gauge "Soft ulimit values for the container root process." ["ulimit"]
        |of| with("max_open_files", of.counted.stats.processes.open_files_limit);
    "container_spec_cpu_period" Gauge "CPU period of the container." []
        |of| one(or_default(of.status.spec.resources.cpu_period_us));
    "container_spec_cpu_quota" Gauge "CPU quota of the container." []
        |of| some(of.status.spec.resources.cpu_quota_us);
    "container_spec_cpu_shares" Gauge "CPU share of the container." []
        |of| one(of.status.spec.resources.cpu_shares);
    "container_spec_memory_limit_bytes" Gauge "Memory limit for the container." []
        |of| one(positive(of.status.spec.resources.memory_limit_bytes));
    "container_spec_memory_swap_limit_bytes" Gauge "Memory swap limit for the container." []
        |of| one(positive(of.status.spec.resources.memory_swap_limit_bytes));
    "container_spec_memory_reservation_limit_bytes" Gauge "Memory reservation limit for the container." []
        |_| one(0);
    "container_start_time_seconds" Gauge "Start time of the container since unix epoch in seconds." []
        |of| one(seconds(of.status.started_at.unwrap_or(of.status.created_at)));
    "container_last_seen" Gauge "Last time a container was seen by the exporter." []
        |of| one(seconds(of.counted.at));
};

fn one(value: u64) -> Values {
    vec![(Vec::new(), value)]
}

fn with(label: &str, value: u64) -> Values {
    vec![(vec![label.to_owned()], value)]
}

/// Nothing where it is not set.
fn some(value: i64) -> Values {
    if value > 0 { one(positive(value)) } else { Vec::new() }
}

fn positive(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn or_default(period_us: u64) -> u64 {
    if period_us == 0 { PERIOD_US } else { period_us }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Nothing where the machine does not count it.
fn pressure(pressure: Option<&PressureStats>, which: fn(&PressureStats) -> &Pressure) -> Values {
    pressure.map_or_else(Vec::new, |pressure| one(which(pressure).total_us / MICROS))
}

/// Counted with all below, which for a container is the same.
fn failures(of: &Container) -> Values {
    let memory = &of.counted.stats.memory;
    let mut values = Vec::new();
    for (kind, count) in [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)]
    {
        for scope in ["container", "hierarchy"] {
            values.push((vec![kind.to_owned(), scope.to_owned()], count));
        }
    }
    values
}

fn devices(of: &Container, count: fn(&DeviceStats) -> u64) -> Values {
    let devices = of.counted.stats.devices.iter();
    devices.map(|one| (vec![format!("{}:{}", one.major, one.minor)], count(one))).collect()
}

fn blkio(of: &Container) -> Values {
    let values = |one: &DeviceStats| {
        let (major, minor) = (one.major.to_string(), one.minor.to_string());
        let device = format!("{major}:{minor}");
        [("Read", one.read_bytes), ("Write", one.written_bytes)].map(|(operation, bytes)| {
            (vec![device.clone(), major.clone(), minor.clone(), operation.to_owned()], bytes)
        })
    };
    of.counted.stats.devices.iter().flat_map(values).collect()
}

fn hugepages(of: &Container, count: fn(&HugepageStats) -> u64) -> Values {
    let sizes = of.counted.stats.hugepages.iter();
    sizes.map(|one| (vec![one.page_size.clone()], count(one))).collect()
}

fn networks(of: &MachineStats, count: fn(&NetworkStats) -> u64) -> Values {
    of.networks.iter().map(|one| (vec![one.name.clone()], count(one))).collect()
}

const NANOS: u64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;
/// The kernel's own.
const PERIOD_US: u64 = 100_000;
/// A machine's disk has no name on the node.
const ROOT: &str = "rootfs";
