//! Figures under the names that cAdvisor gave them, so that dashboards and alerts go on working.
//!
//! Every metric has the labels of its descriptor, by position: those of all, then its own. Values are whole numbers, so seconds
//! are whole seconds. Names, help and labels are those of cAdvisor's Prometheus metrics, as the kubelet serves them.

mod table;

use std::sync::Arc;

use infranetes_core::stats::{ContainerStats, Counted, MachineStats};
use infranetes_core::status::{ContainerStatus, SandboxStatus};

use self::table::{CONTAINER, NETWORK, Series};
use super::status::nanos;
use crate::api::v1;

/// What every metric is.
pub fn metric_descriptors() -> Vec<v1::MetricDescriptor> {
    let describe = |name: &str, help: &str, own: &[&str]| v1::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS.iter().chain(own).map(|key| (*key).to_owned()).collect(),
    };
    let containers = CONTAINER.iter().map(|one| describe(one.name, one.help, one.labels));
    let networks = NETWORK.iter().map(|one| describe(one.name, one.help, one.labels));
    containers.chain(networks).collect()
}

/// A container that runs, with figures.
pub struct ContainerMetricsOf {
    /// The container.
    pub status: ContainerStatus,
    /// The image, as people name it.
    pub image: String,
    /// Its figures.
    pub counted: Arc<Counted<ContainerStats>>,
}

/// All metrics of a sandbox: the machine's network, and each container's own.
pub fn sandbox_metrics(
    sandbox: &SandboxStatus,
    machine: Option<&Counted<MachineStats>>,
    containers: &[ContainerMetricsOf],
) -> v1::PodSandboxMetrics {
    let pod = &sandbox.spec.pod;
    let labels = |container: &str, id: String, image: &str, name: &str| {
        [container, &id, image, name, &pod.namespace, &pod.name].map(str::to_owned)
    };
    let own = labels("", format!("/{}", sandbox.id), "", "");
    let networks = machine.map_or_else(Vec::new, |counted| {
        let at = nanos(counted.at);
        let series = |one: &Series<MachineStats>| one.metrics(&counted.stats, &own, at);
        NETWORK.iter().flat_map(series).collect()
    });
    let container = |one: &ContainerMetricsOf| {
        let status = &one.status;
        let id = format!("/{}/{}", sandbox.id, status.id);
        let labels = labels(&status.spec.name, id, &one.image, status.id.as_str());
        let at = nanos(one.counted.at);
        v1::ContainerMetrics {
            container_id: status.id.to_string(),
            metrics: CONTAINER.iter().flat_map(|series| series.metrics(one, &labels, at)).collect(),
        }
    };
    v1::PodSandboxMetrics {
        pod_sandbox_id: sandbox.id.to_string(),
        metrics: networks,
        container_metrics: containers.iter().map(container).collect(),
    }
}

/// As the kubelet labels what cAdvisor tells.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::SystemTime;

    use infranetes_core::ids::{ContainerId, SandboxId};
    use infranetes_core::stats::{DeviceStats, HugepageStats, NetworkStats, PressureStats};
    use infranetes_core::status::{ContainerState, Phase, Timeline};

    use super::*;
    use crate::convert::container_spec;
    use crate::convert::tests::{container, made_sandbox};

    fn pod() -> (SandboxStatus, ContainerStatus) {
        let spec = Arc::new(made_sandbox());
        let now = SystemTime::UNIX_EPOCH;
        let (container, _) = container_spec(Some(container()), &spec).unwrap();
        let sandbox = SandboxStatus {
            id: SandboxId::from_random([1; 32]),
            spec,
            phase: Phase::Ready,
            created_at: now,
            ips: Vec::new(),
            machine: None,
            reason: String::new(),
            timeline: Timeline::default(),
        };
        let container = ContainerStatus {
            id: ContainerId::from_random([2; 32]),
            sandbox: sandbox.id.clone(),
            spec: Arc::new(container),
            image_id: String::new(),
            state: ContainerState::Running,
            wanted_at: None,
            created_at: now,
            started_at: Some(now),
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image_ready_at: None,
            user: None,
        };
        (sandbox, container)
    }

    fn machine() -> Counted<MachineStats> {
        let network = |name: &str| NetworkStats { name: name.into(), ..Default::default() };
        let stats =
            MachineStats { networks: vec![network("eth0"), network("net1")], ..Default::default() };
        Counted { at: SystemTime::UNIX_EPOCH, stats, nano_cores: None }
    }

    #[test]
    fn labels_are_as_many_as_the_descriptor_names_and_no_series_is_there_twice() {
        let (sandbox, container) = pod();
        let mut stats = ContainerStats {
            devices: vec![DeviceStats { major: 8, ..Default::default() }],
            hugepages: vec![HugepageStats { page_size: "2MB".into(), ..Default::default() }],
            io_pressure: Some(PressureStats::default()),
            ..Default::default()
        };
        stats.cpu.pressure = Some(PressureStats::default());
        stats.memory.pressure = Some(PressureStats::default());
        stats.cpu.usage_ns = 2_500_000_000;
        let counted = Counted { at: SystemTime::UNIX_EPOCH, stats, nano_cores: None };
        let containers = [ContainerMetricsOf {
            status: container,
            image: "i".into(),
            counted: Arc::new(counted),
        }];
        let told = sandbox_metrics(&sandbox, Some(&machine()), &containers);

        let descriptors: BTreeMap<_, _> =
            metric_descriptors().into_iter().map(|one| (one.name, one.label_keys)).collect();
        let all = told.metrics.iter().chain(&told.container_metrics[0].metrics);
        let mut series = BTreeSet::new();
        for metric in all {
            assert_eq!(metric.label_values.len(), descriptors[&metric.name].len(), "{metric:?}");
            assert!(
                series.insert((metric.name.clone(), metric.label_values.clone())),
                "{metric:?}"
            );
        }
        let named: BTreeSet<_> = series.iter().map(|(name, _)| name).collect();
        let silent: Vec<_> = descriptors.keys().filter(|name| !named.contains(name)).collect();
        // Told only where there is a quota.
        assert_eq!(silent, ["container_spec_cpu_quota"]);
        let cpu = told.container_metrics[0].metrics.iter();
        let cpu: Vec<_> =
            cpu.filter(|one| one.name == "container_cpu_usage_seconds_total").collect();
        assert_eq!((cpu.len(), cpu[0].value.map(|one| one.value)), (1, Some(2)));
    }

    #[test]
    fn the_names_that_dashboards_use_are_all_there() {
        let there: BTreeSet<_> = metric_descriptors().into_iter().map(|one| one.name).collect();
        let missing: Vec<_> =
            EXPECTED.split_whitespace().filter(|name| !there.contains(*name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    /// What the kubelet serves with cAdvisor, and what conformance suites ask for.
    const EXPECTED: &str = "
        container_blkio_device_usage_total container_cpu_cfs_periods_total
        container_cpu_cfs_throttled_periods_total container_cpu_cfs_throttled_seconds_total
        container_cpu_system_seconds_total container_cpu_usage_seconds_total container_cpu_user_seconds_total
        container_file_descriptors container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes
        container_fs_reads_bytes_total container_fs_reads_total container_fs_usage_bytes
        container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes
        container_hugetlb_usage_bytes container_last_seen container_memory_cache container_memory_failcnt
        container_memory_failures_total container_memory_kernel_usage container_memory_mapped_file
        container_memory_max_usage_bytes container_memory_rss container_memory_swap container_memory_usage_bytes
        container_memory_working_set_bytes container_network_receive_bytes_total
        container_network_receive_errors_total container_network_receive_packets_dropped_total
        container_network_receive_packets_total container_network_transmit_bytes_total
        container_network_transmit_errors_total container_network_transmit_packets_dropped_total
        container_network_transmit_packets_total container_oom_events_total
        container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
        container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total
        container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total
        container_processes container_sockets container_spec_cpu_period container_spec_cpu_quota
        container_spec_cpu_shares container_spec_memory_limit_bytes
        container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
        container_start_time_seconds container_threads container_threads_max container_ulimits_soft";
}
