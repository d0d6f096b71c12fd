//! One line for each RPC, in the order of the definition. Every answer is logged: failures for the operator, the rest for
//! those who look closely. Requests are not: they hold what pods consist of.

use std::pin::Pin;

use futures::Stream;
use tonic::{Code, Request, Response, Status};

use super::Cri;
use crate::api::v1;
use crate::api::v1::image_service_server::ImageService;
use crate::api::v1::runtime_service_server::RuntimeService;

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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
        _: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        not_supported("UpdatePodSandboxResources", "a pod keeps the size that it started with")
    }

    async fn update_container_resources(
        &self,
        _: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        not_supported(
            "UpdateContainerResources",
            "a container keeps the limits that it started with",
        )
    }

    async fn exec(&self, _: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        not_supported("Exec", "only ExecSync runs commands")
    }

    async fn attach(&self, _: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        not_supported("Attach", "a container's output is in its log")
    }

    async fn port_forward(
        &self,
        _: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        not_supported("PortForward", "a pod is reached at its own address")
    }

    async fn container_stats(
        &self,
        _: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        not_supported("ContainerStats", NO_STATS)
    }

    async fn list_container_stats(
        &self,
        _: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        not_supported("ListContainerStats", NO_STATS)
    }

    async fn pod_sandbox_stats(
        &self,
        _: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        not_supported("PodSandboxStats", NO_STATS)
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        not_supported("ListPodSandboxStats", NO_STATS)
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        not_supported("ListMetricDescriptors", NO_STATS)
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        not_supported("ListPodSandboxMetrics", NO_STATS)
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        not_supported("CheckpointContainer", NO_CHECKPOINTS)
    }

    async fn checkpoint_pod(
        &self,
        _: Request<v1::CheckpointPodRequest>,
    ) -> Answer<v1::CheckpointPodResponse> {
        not_supported("CheckpointPod", NO_CHECKPOINTS)
    }

    async fn restore_pod(
        &self,
        _: Request<v1::RestorePodRequest>,
    ) -> Answer<v1::RestorePodResponse> {
        not_supported("RestorePod", NO_CHECKPOINTS)
    }

    type GetContainerEventsStream = Items<v1::ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        not_supported("GetContainerEvents", "the kubelet asks for lists instead")
    }

    type StreamPodSandboxesStream = Items<v1::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        _: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        not_supported("StreamPodSandboxes", "ask with ListPodSandbox")
    }

    type StreamContainersStream = Items<v1::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        _: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        not_supported("StreamContainers", "ask with ListContainers")
    }

    type StreamContainerStatsStream = Items<v1::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        _: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        not_supported("StreamContainerStats", NO_STATS)
    }

    type StreamPodSandboxStatsStream = Items<v1::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        not_supported("StreamPodSandboxStats", NO_STATS)
    }

    type StreamPodSandboxMetricsStream = Items<v1::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        not_supported("StreamPodSandboxMetrics", NO_STATS)
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
        _: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        not_supported("StreamImages", "ask with ListImages")
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

const NO_STATS: &str = "it counts nothing yet";
const NO_CHECKPOINTS: &str = "machines cannot be checkpointed yet";
