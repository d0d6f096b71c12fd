//! One line for each RPC, in the order of the definition. Every answer is logged: failures for the operator, the rest for
//! those who look closely. Requests are not: they hold what pods consist of.

use std::pin::Pin;

use futures::Stream;
use tonic::{Code, Request, Response, Status};

use super::Cri;
use super::streams::pieces;
use crate::api::v1;
use crate::api::v1::image_service_server::ImageService;
use crate::api::v1::runtime_service_server::RuntimeService;
use crate::convert;

type Answer<T> = Result<Response<T>, Status>;
pub(super) type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RuntimeService for Cri {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        answer("Version", async { Ok(Cri::version(self)) }).await
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        answer("Status", async { Ok(Cri::status(self, request.get_ref())) }).await
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        answer("RuntimeConfig", async { Ok(Cri::runtime_config(self)) }).await
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        answer("UpdateRuntimeConfig", async {
            Cri::update_runtime_config(self, request.into_inner())
        })
        .await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        answer("RunPodSandbox", self.run_sandbox(request.into_inner())).await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        answer("StopPodSandbox", self.stop_sandbox(request.into_inner())).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        answer("RemovePodSandbox", self.remove_sandbox(request.into_inner())).await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        answer("PodSandboxStatus", async { self.sandbox_status(request.into_inner()) }).await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        answer("ListPodSandbox", async { Ok(self.list_sandboxes(request.into_inner())) }).await
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        answer("CreateContainer", Cri::create_container(self, request.into_inner())).await
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        answer("StartContainer", Cri::start_container(self, request.into_inner())).await
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        answer("StopContainer", Cri::stop_container(self, request.into_inner())).await
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        answer("RemoveContainer", Cri::remove_container(self, request.into_inner())).await
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        answer("ContainerStatus", async { Cri::container_status(self, request.into_inner()) }).await
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        answer("ListContainers", async { Ok(Cri::list_containers(self, request.into_inner())) })
            .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        answer("ReopenContainerLog", self.reopen_log(request.into_inner())).await
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Answer<v1::ExecSyncResponse> {
        answer("ExecSync", Cri::exec_sync(self, request.into_inner())).await
    }

    // What follows is not there yet, and says so.

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        answer("UpdatePodSandboxResources", self.update_sandbox(request.into_inner())).await
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        answer("UpdateContainerResources", self.update_container(request.into_inner())).await
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        answer("Exec", async { Cri::exec(self, request.into_inner()) }).await
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        answer("Attach", async { Cri::attach(self, request.into_inner()) }).await
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        answer("PortForward", async { Cri::port_forward(self, request.into_inner()) }).await
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        answer("ContainerStats", async { Cri::container_stats(self, request.into_inner()) }).await
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        answer("ListContainerStats", async {
            let stats = Cri::list_container_stats(self, request.into_inner().filter);
            Ok(v1::ListContainerStatsResponse { stats })
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        answer("PodSandboxStats", async { self.sandbox_stats(request.into_inner()) }).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        answer("ListPodSandboxStats", async {
            let stats = self.list_sandbox_stats(request.into_inner().filter);
            Ok(v1::ListPodSandboxStatsResponse { stats })
        })
        .await
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        answer("ListMetricDescriptors", async {
            Ok(v1::ListMetricDescriptorsResponse { descriptors: convert::metric_descriptors() })
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        answer("ListPodSandboxMetrics", async {
            Ok(v1::ListPodSandboxMetricsResponse { pod_metrics: self.list_sandbox_metrics() })
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        not_supported(
            "CheckpointContainer",
            "one container cannot be taken out of its machine; what can be kept is the machine, a pod as a whole",
        )
    }

    async fn checkpoint_pod(
        &self,
        request: Request<v1::CheckpointPodRequest>,
    ) -> Answer<v1::CheckpointPodResponse> {
        answer("CheckpointPod", self.checkpoint_sandbox(request.into_inner())).await
    }

    async fn restore_pod(
        &self,
        request: Request<v1::RestorePodRequest>,
    ) -> Answer<v1::RestorePodResponse> {
        answer("RestorePod", self.restore_sandbox(request.into_inner())).await
    }

    type GetContainerEventsStream = Items<v1::ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        answer("GetContainerEvents", async { self.events() }).await
    }

    type StreamPodSandboxesStream = Items<v1::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        answer("StreamPodSandboxes", async {
            let filter = request.into_inner().filter;
            let list = self.list_sandboxes(v1::ListPodSandboxRequest { filter }).items;
            Ok(pieces(list, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
        })
        .await
    }

    type StreamContainersStream = Items<v1::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        answer("StreamContainers", async {
            let filter = request.into_inner().filter;
            let list = Cri::list_containers(self, v1::ListContainersRequest { filter }).containers;
            Ok(pieces(list, |containers| v1::StreamContainersResponse { containers }))
        })
        .await
    }

    type StreamContainerStatsStream = Items<v1::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        answer("StreamContainerStats", async {
            let list = Cri::list_container_stats(self, request.into_inner().filter);
            Ok(pieces(list, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
        })
        .await
    }

    type StreamPodSandboxStatsStream = Items<v1::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        answer("StreamPodSandboxStats", async {
            let list = self.list_sandbox_stats(request.into_inner().filter);
            Ok(pieces(list, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse {
                pod_sandbox_stats,
            }))
        })
        .await
    }

    type StreamPodSandboxMetricsStream = Items<v1::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        answer("StreamPodSandboxMetrics", async {
            Ok(pieces(self.list_sandbox_metrics(), |pod_sandbox_metrics| {
                v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
            }))
        })
        .await
    }
}

#[tonic::async_trait]
impl ImageService for Cri {
    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Answer<v1::PullImageResponse> {
        answer("PullImage", Cri::pull_image(self, request.into_inner())).await
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        answer("ImageStatus", async { Cri::image_status(self, request.into_inner()) }).await
    }

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        answer("ListImages", async { Ok(Cri::list_images(self, request.into_inner())) }).await
    }

    type StreamImagesStream = Items<v1::StreamImagesResponse>;
    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        answer("StreamImages", async {
            let filter = request.into_inner().filter;
            let list = Cri::list_images(self, v1::ListImagesRequest { filter }).images;
            Ok(pieces(list, |images| v1::StreamImagesResponse { images }))
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        answer("RemoveImage", Cri::remove_image(self, request.into_inner())).await
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<v1::ImageFsInfoResponse> {
        answer("ImageFsInfo", async { Ok(self.image_usage()) }).await
    }
}

async fn answer<T>(rpc: &'static str, work: impl Future<Output = Result<T, Status>>) -> Answer<T> {
    let asked = tokio::time::Instant::now();
    let result = work.await;
    let millis = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
    match &result {
        Ok(_) => tracing::debug!(rpc, millis, "answered"),
        // What is gone is asked for all the time.
        Err(status) if status.code() == Code::NotFound => {
            tracing::debug!(rpc, millis, reason = status.message(), "not found");
        }
        Err(status) => {
            tracing::warn!(rpc, millis, code = ?status.code(), reason = status.message(), "failed");
        }
    }
    result.map(Response::new)
}

/// Debug, not warn: kubelets try some of these again and again.
fn not_supported<T>(rpc: &'static str, instead: &str) -> Answer<T> {
    tracing::debug!(rpc, "not supported");
    Err(Status::unimplemented(format!(
        "{rpc} is not supported by this version of infranetes: {instead}"
    )))
}
