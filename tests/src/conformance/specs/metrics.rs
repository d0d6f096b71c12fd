//! The metrics that users of cAdvisor expect.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1 as cri;
use tonic::Code;

use crate::conformance::context::Context;
use crate::conformance::spec::{Group, Skip, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("PodSandbox > runtime should support metrics operations")
        .spec("runtime should support returning metrics descriptors [Conformance]", |c| {
            Box::pin(names(c))
        })
        .spec("runtime should support listing pod sandbox metrics [Conformance]", |c| {
            Box::pin(values(c))
        })
        .done()
}

async fn names(c: &mut Context) -> Result<()> {
    let descriptors = descriptors(c).await?;
    let vague = descriptors.values().find(|d| d.help.is_empty() || d.label_keys.is_empty());
    ensure!(vague.is_none(), "without a help text or labels: {vague:?}");
    let missing =
        EXPECTED.iter().chain(&OF_DEVICES).filter(|name| !descriptors.contains_key(**name));
    let missing: Vec<_> = missing.collect();
    ensure!(missing.is_empty(), "no descriptors of {missing:?}");
    Ok(())
}

async fn values(c: &mut Context) -> Result<()> {
    let descriptors = descriptors(c).await?;
    let sandbox = c.sandbox().await?;
    let mut config = c.container_config(&[]);
    config.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let id = c.running_of(&sandbox, config).await?;
    c.exec(
        &id,
        &[
            "sh",
            "-c",
            "mkdir -p /var/lib/files; for i in 1 2 3; do echo $i > /var/lib/files/$i; done; sync",
        ],
    )
    .await?;
    let request = cri::ListPodSandboxMetricsRequest::default();
    let answer = c.client.runtime.list_pod_sandbox_metrics(request).await?.into_inner();
    let mut pods = answer.pod_metrics.into_iter();
    let pod =
        pods.find(|pod| pod.pod_sandbox_id == sandbox.id).context("the pod has no metrics")?;
    let of_containers = pod.container_metrics.into_iter().flat_map(|container| container.metrics);
    let mut labels: BTreeMap<String, usize> = BTreeMap::new();
    for metric in pod.metrics.into_iter().chain(of_containers) {
        labels.entry(metric.name).or_insert(metric.label_values.len());
    }
    let missing: Vec<_> = EXPECTED.iter().filter(|name| !labels.contains_key(**name)).collect();
    ensure!(missing.is_empty(), "no values of {missing:?}");
    for descriptor in descriptors.values() {
        let Some(values) = labels.get(&descriptor.name) else { continue };
        let keys = descriptor.label_keys.len();
        ensure!(*values == keys, "{} has {keys} labels and {values} values", descriptor.name);
    }
    Ok(())
}

async fn descriptors(c: &mut Context) -> Result<BTreeMap<String, cri::MetricDescriptor>> {
    let request = cri::ListMetricDescriptorsRequest::default();
    match c.client.runtime.list_metric_descriptors(request).await {
        Ok(answer) => {
            let all = answer.into_inner().descriptors.into_iter();
            Ok(all.map(|descriptor| (descriptor.name.clone(), descriptor)).collect())
        }
        Err(status) if status.code() == Code::Unimplemented => {
            Err(Skip("ListMetricDescriptors is not implemented".to_owned()).into())
        }
        Err(status) => Err(status.into()),
    }
}

/// Those that the public suite wants of every runtime.
const EXPECTED: [&str; 40] = [
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_usage_bytes",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
];

/// These may be without a value where a disk tells nothing of its devices.
const OF_DEVICES: [&str; 5] = [
    "container_blkio_device_usage_total",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
];
