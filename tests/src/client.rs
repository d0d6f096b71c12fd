//! A CRI client in few words, as a kubelet would call.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use infranetes_cri::api::v1::image_service_client::ImageServiceClient;
use infranetes_cri::api::v1::runtime_service_client::RuntimeServiceClient;
use infranetes_cri::api::v1::{self as cri};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::streams::Wanted;

/// Both services of one daemon. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    /// RuntimeService.
    pub runtime: RuntimeServiceClient<Channel>,
    /// ImageService.
    pub images: ImageServiceClient<Channel>,
}

/// What a case says of a pod; the rest is as a kubelet would fill it.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Name and uid of the pod.
    pub name: String,
    /// RuntimeClass handler; empty is the default.
    pub handler: String,
    /// Where its logs go.
    pub log_directory: String,
}

impl Pod {
    /// The sandbox that a kubelet would ask for.
    pub fn config(&self) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: self.name.clone(),
                uid: format!("uid-{}", self.name),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: self.name.clone(),
            log_directory: self.log_directory.clone(),
            linux: Some(cri::LinuxPodSandboxConfig::default()),
            ..Default::default()
        }
    }
}

/// A container that runs a command.
pub fn container(name: &str, image: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(as_a_kubelet_has_it()),
        ..Default::default()
    }
}

/// Of a pod that asks for nothing and shares no processes.
fn as_a_kubelet_has_it() -> cri::LinuxContainerConfig {
    let pid = cri::NamespaceMode::Container as i32;
    let options = cri::NamespaceOption { pid, ..Default::default() };
    let security = cri::LinuxContainerSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    };
    let no_pages = |size: &str| cri::HugepageLimit { page_size: size.to_owned(), limit: 0 };
    let resources = cri::LinuxContainerResources {
        cpu_shares: 2,
        cpu_period: 100_000,
        oom_score_adj: 1000,
        hugepage_limits: vec![no_pages("2MB"), no_pages("1GB")],
        ..Default::default()
    };
    cri::LinuxContainerConfig { resources: Some(resources), security_context: Some(security) }
}

impl Client {
    /// Connects to a daemon's socket and asks for its version.
    pub async fn connect(socket: &Path) -> Result<Client> {
        let channel = Client::channel(socket).await?;
        let mut client = Client {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        };
        client.runtime.version(cri::VersionRequest::default()).await?;
        Ok(client)
    }

    /// A connection to a daemon's socket, for calls that are none of CRI.
    pub async fn channel(socket: &Path) -> Result<Channel> {
        let path = socket.to_owned();
        let dial = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let endpoint = Endpoint::from_static("http://cri").timeout(CALL_LIMIT);
        Ok(endpoint.connect_with_connector(dial).await?)
    }

    /// Pulls an image; its id.
    pub async fn pull(&mut self, image: &str) -> Result<String> {
        let image = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = cri::PullImageRequest { image: Some(image), ..Default::default() };
        Ok(self.images.pull_image(request).await?.into_inner().image_ref)
    }

    /// Runs a sandbox; its id.
    pub async fn run_pod(&mut self, pod: &Pod) -> Result<String, tonic::Status> {
        let request = cri::RunPodSandboxRequest {
            config: Some(pod.config()),
            runtime_handler: pod.handler.clone(),
        };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// Creates a container in a sandbox and starts it; its id.
    pub async fn run_container(
        &mut self,
        sandbox: &str,
        pod: &Pod,
        config: cri::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let id = self.create_container(sandbox, pod, config).await?;
        let request = cri::StartContainerRequest { container_id: id.clone() };
        self.runtime.start_container(request).await?;
        Ok(id)
    }

    /// Creates a container in a sandbox; its id.
    pub async fn create_container(
        &mut self,
        sandbox: &str,
        pod: &Pod,
        config: cri::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.config()),
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// Executes a command to its end.
    pub async fn exec(
        &mut self,
        container: &str,
        command: &[&str],
    ) -> Result<cri::ExecSyncResponse, tonic::Status> {
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: EXEC_SECONDS,
        };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    /// A link for a command on streams.
    pub async fn exec_link(
        &mut self,
        container: &str,
        command: &[&str],
        wanted: Wanted,
    ) -> Result<String, tonic::Status> {
        let request = cri::ExecRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
        };
        Ok(self.runtime.exec(request).await?.into_inner().url)
    }

    /// A link for a container's own streams.
    pub async fn attach_link(
        &mut self,
        container: &str,
        wanted: Wanted,
    ) -> Result<String, tonic::Status> {
        let request = cri::AttachRequest {
            container_id: container.to_owned(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
        };
        Ok(self.runtime.attach(request).await?.into_inner().url)
    }

    /// A link for connections to a sandbox's ports.
    pub async fn port_forward_link(
        &mut self,
        sandbox: &str,
        ports: &[i32],
    ) -> Result<String, tonic::Status> {
        let request =
            cri::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: ports.to_vec() };
        Ok(self.runtime.port_forward(request).await?.into_inner().url)
    }

    /// A container's status.
    pub async fn container(&mut self, id: &str) -> Result<cri::ContainerStatusResponse> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        Ok(self.runtime.container_status(request).await?.into_inner())
    }

    /// Waits until a container is in a state.
    pub async fn wait_container(
        &mut self,
        id: &str,
        state: cri::ContainerState,
        limit: Duration,
    ) -> Result<cri::ContainerStatus> {
        let mut last = None;
        let what = format!("container {id} is {}", state.as_str_name());
        crate::wait::until(limit, &what, async || {
            let status = self.container(id).await?.status.context("a status without a status")?;
            let reached = status.state == state as i32;
            last = Some(status);
            Ok(reached)
        })
        .await?;
        last.context("no status was seen")
    }

    /// A sandbox's status, with the details that `verbose` gives.
    pub async fn sandbox(&mut self, id: &str) -> Result<cri::PodSandboxStatusResponse> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        Ok(self.runtime.pod_sandbox_status(request).await?.into_inner())
    }

    /// What the node recorded of a sandbox's start: the steps, with milliseconds since the pod was wanted.
    pub async fn timeline(&mut self, id: &str) -> Result<Vec<(String, u64)>> {
        let sandbox = self.sandbox(id).await?;
        let timeline = sandbox.info.get("timeline").context("the status has no timeline")?;
        Ok(serde_json::from_str(timeline)?)
    }

    /// Stops a container.
    pub async fn stop_container(&mut self, id: &str, seconds: i64) -> Result<(), tonic::Status> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: seconds };
        self.runtime.stop_container(request).await.map(drop)
    }

    /// Stops a pod.
    pub async fn stop_pod(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.stop_pod_sandbox(request).await.map(drop)
    }

    /// Writes a checkpoint of a sandbox with these containers.
    pub async fn checkpoint(
        &mut self,
        sandbox: &str,
        containers: &[&str],
        directory: &Path,
    ) -> Result<(), tonic::Status> {
        let request = cri::CheckpointPodRequest {
            pod_sandbox_id: sandbox.to_owned(),
            output_path: directory.display().to_string(),
            container_ids: containers.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        };
        self.runtime.checkpoint_pod(request).await.map(drop)
    }

    /// Restores a pod with these containers from a checkpoint.
    pub async fn restore(
        &mut self,
        pod: &Pod,
        containers: &[cri::ContainerConfig],
        directory: &Path,
    ) -> Result<cri::RestorePodResponse, tonic::Status> {
        let request = cri::RestorePodRequest {
            checkpoint_path: directory.display().to_string(),
            config: Some(pod.config()),
            runtime_handler: pod.handler.clone(),
            container_configs: containers.to_vec(),
            ..Default::default()
        };
        Ok(self.runtime.restore_pod(request).await?.into_inner())
    }

    /// Stops and removes a sandbox.
    pub async fn remove_pod(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.stop_pod_sandbox(request).await?;
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.remove_pod_sandbox(request).await.map(drop)
    }
}

/// Longer than any call of the daemon takes; the kubelet's own limit is four minutes.
const CALL_LIMIT: Duration = Duration::from_secs(240);
const EXEC_SECONDS: i64 = 60;
const MESSAGE_LIMIT: usize = 64 * 1024 * 1024;
