//! CRI at the socket of the real daemon: what needs no machine.

#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Daemon, Node};
use infranetes_cri::api::v1;
use tonic::{Code, Status};

const HANDLERS: &str = "default_handler = \"vm\"\n\
     [handlers.vm]\nprovider = \"missing\"\n\
     [handlers.bad]\nprovider = \"bad\"\n";

/// A node with a handler whose provider is not there, and one whose plugin is none.
async fn node() -> (Node, Daemon) {
    let node = Node::new(HANDLERS);
    std::fs::write(node.path("bad.so"), "no library").unwrap();
    let plugin = format!("plugin = \"{}\"\n", node.path("bad.so").display());
    std::fs::write(node.path("providers.d/bad.toml"), plugin).unwrap();
    let daemon = node.start().await;
    (node, daemon)
}

fn sandbox(handler: &str) -> v1::RunPodSandboxRequest {
    let metadata = v1::PodSandboxMetadata {
        name: "web".into(),
        uid: "u1".into(),
        namespace: "default".into(),
        attempt: 0,
    };
    v1::RunPodSandboxRequest {
        config: Some(v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }),
        runtime_handler: handler.into(),
    }
}

fn image(name: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: name.into(), ..Default::default() })
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, parts: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    for part in parts {
        assert!(status.message().contains(part), "{:?} has no {part:?}", status.message());
    }
}

#[tokio::test]
async fn status_says_which_handlers_cannot_run_pods_and_why() {
    let (_node, daemon) = node().await;
    let request = v1::StatusRequest { verbose: true };
    let status = daemon.runtime().await.status(request).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let condition = |name: &str| conditions.iter().find(|c| c.r#type == name).unwrap();
    assert!(condition("NetworkReady").status);
    assert!(!condition("RuntimeReady").status);
    let missing = condition("HandlerReady:vm");
    assert!(!missing.status && missing.message.contains("missing.toml is missing"), "{missing:?}");
    let bad = condition("HandlerReady:bad");
    assert!(!bad.status && bad.message.contains("bad.so is not a shared library"), "{bad:?}");
    let names: Vec<&str> = status.runtime_handlers.iter().map(|h| h.name.as_str()).collect();
    assert_eq!(names, ["", "bad", "vm"]);
    assert!(status.info["handlers"].contains("missing.toml"));
}

#[tokio::test]
async fn a_pod_whose_handler_cannot_run_it_is_refused_by_name() {
    let (_node, daemon) = node().await;
    let mut runtime = daemon.runtime().await;
    let cases = [
        ("nobody", Code::InvalidArgument, "no handler \"nobody\"; handlers: bad, vm"),
        ("vm", Code::Unavailable, "missing.toml is missing"),
        ("bad", Code::Unavailable, "bad.so is not a shared library"),
        ("", Code::Unavailable, "missing.toml"),
    ];
    for (handler, code, part) in cases {
        refused(runtime.run_pod_sandbox(sandbox(handler)).await, code, &[part]);
    }
    let listed = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().items, []);
}

#[tokio::test]
async fn the_node_learns_its_configuration() {
    let (_node, daemon) = node().await;
    let mut runtime = daemon.runtime().await;
    let config = runtime.runtime_config(v1::RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver, v1::CgroupDriver::Cgroupfs as i32);
    let network = v1::NetworkConfig { pod_cidr: "10.0.0.0/24".into() };
    let config = v1::RuntimeConfig { network_config: Some(network) };
    let update = v1::UpdateRuntimeConfigRequest { runtime_config: Some(config) };
    runtime.update_runtime_config(update).await.unwrap();
}

#[tokio::test]
async fn stopping_and_removing_what_is_not_there_succeeds() {
    let (_node, daemon) = node().await;
    let (mut runtime, mut images) = (daemon.runtime().await, daemon.images().await);
    for id in ["0".repeat(64), "unknown".to_owned(), "x".repeat(10_000)] {
        let pod_sandbox_id = id.clone();
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        runtime.stop_pod_sandbox(stop).await.unwrap();
        runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();
        let container_id = id.clone();
        let stop = v1::StopContainerRequest { container_id: container_id.clone(), timeout: 1 };
        runtime.stop_container(stop).await.unwrap();
        runtime.remove_container(v1::RemoveContainerRequest { container_id }).await.unwrap();
    }
    images.remove_image(v1::RemoveImageRequest { image: image("busybox") }).await.unwrap();
    let status = v1::ImageStatusRequest { image: image("busybox"), verbose: true };
    assert_eq!(images.image_status(status).await.unwrap().into_inner().image, None);
}

#[tokio::test]
async fn asking_for_what_is_not_there_says_so() {
    let (_node, daemon) = node().await;
    let mut runtime = daemon.runtime().await;
    for id in ["0".repeat(64), "unknown".to_owned()] {
        let what = [id.as_str()];
        let status = v1::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
        refused(runtime.pod_sandbox_status(status).await, Code::NotFound, &what);
        let container_id = id.clone();
        let status =
            v1::ContainerStatusRequest { container_id: container_id.clone(), verbose: false };
        refused(runtime.container_status(status).await, Code::NotFound, &what);
        let start = v1::StartContainerRequest { container_id: container_id.clone() };
        refused(runtime.start_container(start).await, Code::NotFound, &what);
        let exec = v1::ExecSyncRequest {
            container_id: container_id.clone(),
            cmd: vec!["true".into()],
            timeout: 0,
        };
        refused(runtime.exec_sync(exec).await, Code::NotFound, &what);
        let reopen = v1::ReopenContainerLogRequest { container_id };
        refused(runtime.reopen_container_log(reopen).await, Code::NotFound, &what);
        let create =
            v1::CreateContainerRequest { pod_sandbox_id: id.clone(), ..Default::default() };
        refused(runtime.create_container(create).await, Code::NotFound, &what);
    }
}

#[tokio::test]
async fn a_wrong_request_names_the_field() {
    let (_node, daemon) = node().await;
    let (mut runtime, mut images) = (daemon.runtime().await, daemon.images().await);
    let wrong = Code::InvalidArgument;
    refused(runtime.run_pod_sandbox(v1::RunPodSandboxRequest::default()).await, wrong, &["config"]);
    let mut traversal = sandbox("vm");
    traversal.config.as_mut().unwrap().log_directory = "/var/../etc".into();
    refused(runtime.run_pod_sandbox(traversal).await, wrong, &["config.log_directory", ".."]);
    refused(
        runtime.stop_pod_sandbox(v1::StopPodSandboxRequest::default()).await,
        wrong,
        &["pod_sandbox_id"],
    );
    refused(
        runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest::default()).await,
        wrong,
        &["pod_sandbox_id"],
    );
    refused(
        runtime.pod_sandbox_status(v1::PodSandboxStatusRequest::default()).await,
        wrong,
        &["pod_sandbox_id"],
    );
    refused(
        runtime.create_container(v1::CreateContainerRequest::default()).await,
        wrong,
        &["pod_sandbox_id"],
    );
    refused(
        runtime.start_container(v1::StartContainerRequest::default()).await,
        wrong,
        &["container_id"],
    );
    refused(
        runtime.stop_container(v1::StopContainerRequest::default()).await,
        wrong,
        &["container_id"],
    );
    refused(
        runtime.remove_container(v1::RemoveContainerRequest::default()).await,
        wrong,
        &["container_id"],
    );
    refused(
        runtime.container_status(v1::ContainerStatusRequest::default()).await,
        wrong,
        &["container_id"],
    );
    refused(
        runtime.reopen_container_log(v1::ReopenContainerLogRequest::default()).await,
        wrong,
        &["container_id"],
    );
    refused(
        runtime.exec_sync(v1::ExecSyncRequest::default()).await,
        wrong,
        &["cmd", "names no program"],
    );
    let negative =
        v1::ExecSyncRequest { cmd: vec!["true".into()], timeout: -1, ..Default::default() };
    refused(runtime.exec_sync(negative).await, wrong, &["timeout"]);
    refused(images.pull_image(v1::PullImageRequest::default()).await, wrong, &["image"]);
    refused(images.image_status(v1::ImageStatusRequest::default()).await, wrong, &["image"]);
    refused(images.remove_image(v1::RemoveImageRequest::default()).await, wrong, &["image"]);
    let unreadable = v1::PullImageRequest { image: image("A B"), ..Default::default() };
    refused(images.pull_image(unreadable).await, wrong, &["A B"]);
    let auth = v1::AuthConfig { auth: "s3cr3t-not-base64".into(), ..Default::default() };
    let pull = v1::PullImageRequest {
        image: image("r.example/i"),
        auth: Some(auth),
        ..Default::default()
    };
    refused(images.pull_image(pull).await, wrong, &["auth", "base64"]);
    assert!(!daemon.log().contains("s3cr3t"), "{}", daemon.log());
}

#[tokio::test]
async fn the_image_file_systems_are_told() {
    let (node, daemon) = node().await;
    let request = v1::ImageFsInfoRequest {};
    let info = daemon.images().await.image_fs_info(request).await.unwrap().into_inner();
    let mountpoint = node.path("state/images").display().to_string();
    for usage in info.image_filesystems.iter().chain(&info.container_filesystems) {
        assert_eq!(usage.fs_id.as_ref().unwrap().mountpoint, mountpoint);
        assert!(usage.timestamp > 0);
    }
    assert_eq!((info.image_filesystems.len(), info.container_filesystems.len()), (1, 1));
    let listed = daemon.images().await.list_images(v1::ListImagesRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().images, []);
}

#[tokio::test]
async fn what_is_not_supported_says_so_in_a_sentence() {
    let (_node, daemon) = node().await;
    let mut runtime = daemon.runtime().await;
    let no = Code::Unimplemented;
    refused(
        runtime.checkpoint_container(v1::CheckpointContainerRequest::default()).await,
        no,
        &["CheckpointContainer"],
    );
    refused(
        runtime.checkpoint_pod(v1::CheckpointPodRequest::default()).await,
        Code::InvalidArgument,
        &["output_path", "absolute path"],
    );
}

#[tokio::test]
async fn a_node_without_pods_lists_nothing_in_every_way() {
    let (_node, daemon) = node().await;
    let (mut runtime, mut images) = (daemon.runtime().await, daemon.images().await);
    let stats = runtime.list_container_stats(v1::ListContainerStatsRequest::default()).await;
    assert_eq!(stats.unwrap().into_inner().stats, []);
    let stats = runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await;
    assert_eq!(stats.unwrap().into_inner().stats, []);
    let metrics = runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await;
    assert_eq!(metrics.unwrap().into_inner().pod_metrics, []);
    let described = runtime.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}).await;
    for one in described.unwrap().into_inner().descriptors {
        assert!(!one.help.is_empty() && one.label_keys.len() >= 6, "{one:?}");
    }
    let mut streamed =
        images.stream_images(v1::StreamImagesRequest::default()).await.unwrap().into_inner();
    assert_eq!(streamed.message().await.unwrap(), None);
    let mut streamed = runtime
        .stream_pod_sandboxes(v1::StreamPodSandboxesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(streamed.message().await.unwrap(), None);

    let missing = v1::ContainerStatsRequest { container_id: "nope".into() };
    refused(runtime.container_stats(missing).await, Code::NotFound, &["nope"]);
    let missing = v1::PodSandboxStatsRequest { pod_sandbox_id: "nope".into() };
    refused(runtime.pod_sandbox_stats(missing).await, Code::NotFound, &["nope"]);
    let update = v1::UpdateContainerResourcesRequest::default();
    let refusal = runtime.update_container_resources(update).await;
    refused(refusal, Code::InvalidArgument, &["linux: is missing"]);
}

#[tokio::test]
async fn a_service_that_nobody_knows_is_answered_as_such() {
    let (_node, daemon) = node().await;
    let mut grpc = tonic::client::Grpc::new(daemon.channel().await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::VersionRequest, v1::VersionResponse>::default();
    let path = "/runtime.v1alpha2.RuntimeService/Version".parse().unwrap();
    let answer = grpc.unary(tonic::Request::new(v1::VersionRequest::default()), path, codec).await;
    refused(answer, Code::Unimplemented, &["runtime.v1alpha2.RuntimeService"]);
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused() {
    let (_node, daemon) = node().await;
    let mut huge = sandbox("vm");
    huge.config.as_mut().unwrap().annotations.insert("a".into(), "x".repeat(17 << 20));
    let status = daemon.runtime().await.run_pod_sandbox(huge).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}
