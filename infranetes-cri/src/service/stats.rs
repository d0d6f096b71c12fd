//! What pods use: answered from the last samples of their machines, so that no call waits for one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use infranetes_core::ids::SandboxId;
use infranetes_core::stats::{ContainerStats, Counted};
use infranetes_core::status::{ContainerState, ContainerStatus, SandboxStatus};
use tonic::Status;

use super::Cri;
use crate::api::v1;
use crate::convert::{
    self, ContainerFilter, ContainerMetricsOf, ContainerUsage, SandboxFilter, SandboxUsage,
};

type Figures = Option<Arc<Counted<ContainerStats>>>;

impl Cri {
    /// A container whose machine has not told since the daemon started has its name alone.
    pub(super) fn container_stats(
        &self,
        request: v1::ContainerStatsRequest,
    ) -> Result<v1::ContainerStatsResponse, Status> {
        let status = self.find_container(request.container_id)?.or_not_found("container")?;
        let counted = self.engine().container_stats(&status.id);
        let usage = ContainerUsage { status: &status, counted: counted.as_deref() };
        let stats = Some(convert::container_stats(&usage, &self.disk()));
        Ok(v1::ContainerStatsResponse { stats })
    }

    /// Of containers that run, as CRI has it: crictl takes one whose figures stand still for an error. And of those, the ones that have
    /// figures: a kubelet takes what is missing for 0, and 0 for what was used.
    pub(super) fn list_container_stats(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Vec<v1::ContainerStats> {
        let filter = ContainerFilter::of_stats(filter);
        let disk = self.disk();
        let stats = |status: ContainerStatus| {
            let counted = self.engine().container_stats(&status.id)?;
            let usage = ContainerUsage { status: &status, counted: Some(&counted) };
            Some(convert::container_stats(&usage, &disk))
        };
        let all = self.engine().containers().into_iter();
        all.filter(|container| runs(container) && filter.admits(container))
            .filter_map(stats)
            .collect()
    }

    pub(super) fn sandbox_stats(
        &self,
        request: v1::PodSandboxStatsRequest,
    ) -> Result<v1::PodSandboxStatsResponse, Status> {
        let status = self.find_sandbox(request.pod_sandbox_id)?.or_not_found("sandbox")?;
        let containers = self.engine().containers_of(&status.id);
        let stats = Some(self.stats_of(&status, &self.with_figures(containers), &self.disk()));
        Ok(v1::PodSandboxStatsResponse { stats })
    }

    pub(super) fn list_sandbox_stats(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Vec<v1::PodSandboxStats> {
        let filter = SandboxFilter::of_stats(filter);
        let mut pods = self.pods();
        pods.retain(|(sandbox, _)| filter.admits(sandbox));
        let disk = self.disk();
        let stats = |(sandbox, containers): &Pod| self.stats_of(sandbox, containers, &disk);
        pods.iter().map(stats).collect()
    }

    /// Of sandboxes that are ready, with their containers that run: what ended has no place in a scrape.
    pub(super) fn list_sandbox_metrics(&self) -> Vec<v1::PodSandboxMetrics> {
        let mut pods = self.pods();
        pods.retain(|(sandbox, _)| sandbox.is_ready());
        pods.into_iter()
            .map(|(sandbox, containers)| self.metrics_of(&sandbox, containers))
            .collect()
    }

    fn stats_of(
        &self,
        status: &SandboxStatus,
        containers: &[(ContainerStatus, Figures)],
        disk: &Path,
    ) -> v1::PodSandboxStats {
        let counted = self.engine().machine_stats(&status.id);
        let has_figures = |(_, counted): &&(ContainerStatus, Figures)| counted.is_some();
        let containers = containers.iter().filter(has_figures);
        let containers: Vec<_> = containers
            .map(|one| ContainerUsage { status: &one.0, counted: one.1.as_deref() })
            .collect();
        let usage = SandboxUsage {
            status,
            counted: counted.as_deref(),
            containers,
            removed_cpu_ns: self.engine().removed_cpu_ns(&status.id),
        };
        convert::sandbox_stats(&usage, disk)
    }

    fn metrics_of(
        &self,
        sandbox: &SandboxStatus,
        containers: Vec<(ContainerStatus, Figures)>,
    ) -> v1::PodSandboxMetrics {
        let machine = self.engine().machine_stats(&sandbox.id);
        let mut told = Vec::new();
        for (status, counted) in containers {
            if let (ContainerState::Running, Some(counted)) = (status.state, counted) {
                let image = image_name(&status);
                told.push(ContainerMetricsOf { status, image, counted });
            }
        }
        convert::sandbox_metrics(sandbox, machine.as_deref(), &told)
    }

    /// All sandboxes that a kubelet may see, each with its containers and their figures.
    fn pods(&self) -> Vec<Pod> {
        let mut by_sandbox = std::collections::BTreeMap::<SandboxId, Vec<ContainerStatus>>::new();
        for container in self.engine().containers() {
            by_sandbox.entry(container.sandbox.clone()).or_default().push(container);
        }
        let mut sandboxes = self.engine().sandboxes();
        sandboxes.retain(SandboxStatus::is_listed);
        let pod = |sandbox: SandboxStatus| {
            let containers = by_sandbox.remove(&sandbox.id).unwrap_or_default();
            (sandbox, self.with_figures(containers))
        };
        sandboxes.into_iter().map(pod).collect()
    }

    fn with_figures(&self, containers: Vec<ContainerStatus>) -> Vec<(ContainerStatus, Figures)> {
        let with = |one: ContainerStatus| {
            let figures = self.engine().container_stats(&one.id);
            (one, figures)
        };
        containers.into_iter().map(with).collect()
    }

    /// Where the kubelet is told that writable layers are.
    fn disk(&self) -> PathBuf {
        self.images().root()
    }
}

/// Or did when the node last saw it.
fn runs(container: &ContainerStatus) -> bool {
    matches!(container.state, ContainerState::Running | ContainerState::Unknown)
}

/// As people name it.
fn image_name(container: &ContainerStatus) -> String {
    let spec = &container.spec;
    let named = [&spec.user_specified_image, &spec.image];
    named.into_iter().find(|name| !name.is_empty()).cloned().unwrap_or_default()
}

type Pod = (SandboxStatus, Vec<(ContainerStatus, Figures)>);
