//! From what the engine holds to CRI's answers.

use std::time::{SystemTime, UNIX_EPOCH};

use infranetes_core::image::ImageInfo;
use infranetes_core::spec::{IdRange, PidMode, PodIdentity, SandboxSpec};
use infranetes_core::status::{ContainerState, ContainerStatus, SandboxStatus};

use super::{mounts, resources, signal};
use crate::api::v1;

/// A sandbox in a list.
pub fn sandbox_item(sandbox: &SandboxStatus) -> v1::PodSandbox {
    v1::PodSandbox {
        id: sandbox.id.to_string(),
        metadata: Some(pod_metadata(&sandbox.spec.pod)),
        state: sandbox_state(sandbox) as i32,
        created_at: nanos(sandbox.created_at),
        labels: sandbox.spec.labels.clone(),
        annotations: sandbox.spec.annotations.clone(),
        runtime_handler: sandbox.spec.handler.clone(),
    }
}

/// A sandbox by itself.
pub fn sandbox_status(sandbox: &SandboxStatus) -> v1::PodSandboxStatus {
    let mut ips = sandbox.ips.iter().cloned();
    v1::PodSandboxStatus {
        id: sandbox.id.to_string(),
        metadata: Some(pod_metadata(&sandbox.spec.pod)),
        state: sandbox_state(sandbox) as i32,
        created_at: nanos(sandbox.created_at),
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(namespaces(&sandbox.spec)) }),
        }),
        labels: sandbox.spec.labels.clone(),
        annotations: sandbox.spec.annotations.clone(),
        runtime_handler: sandbox.spec.handler.clone(),
    }
}

pub(super) fn sandbox_state(sandbox: &SandboxStatus) -> v1::PodSandboxState {
    if sandbox.is_ready() {
        v1::PodSandboxState::SandboxReady
    } else {
        v1::PodSandboxState::SandboxNotready
    }
}

pub(super) fn pod_metadata(pod: &PodIdentity) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        attempt: pod.attempt,
    }
}

/// As they were asked for: only these can be had.
fn namespaces(spec: &SandboxSpec) -> v1::NamespaceOption {
    let pid = match &spec.pid_mode {
        PidMode::Container => v1::NamespaceMode::Container,
        PidMode::Pod => v1::NamespaceMode::Pod,
        PidMode::Machine => v1::NamespaceMode::Node,
        PidMode::Target(_) => v1::NamespaceMode::Target,
    };
    let userns_options = spec.users.map(|users| v1::UserNamespace {
        mode: v1::NamespaceMode::Pod as i32,
        uids: vec![id_mapping(users.uids)],
        gids: vec![id_mapping(users.gids)],
    });
    v1::NamespaceOption { pid: pid as i32, userns_options, ..Default::default() }
}

/// A mapping as it was asked for.
pub(super) fn id_mapping(range: IdRange) -> v1::IdMapping {
    v1::IdMapping { host_id: range.first, container_id: 0, length: range.count }
}

/// A container in a list. `image` is what it runs, if the node still has that.
pub fn container_item(container: &ContainerStatus, image: Option<&ImageInfo>) -> v1::Container {
    v1::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox.to_string(),
        metadata: Some(container_metadata(container)),
        image: Some(image_spec(container, image)),
        image_ref: image_ref(container, image),
        state: container_state(container) as i32,
        created_at: nanos(container.created_at),
        labels: container.spec.labels.clone(),
        annotations: container.spec.annotations.clone(),
        image_id: container.image_id.clone(),
    }
}

/// A container by itself. `image` is what it runs, if the node still has that; `sandbox` is what its sandbox was made with.
pub fn container_status(
    container: &ContainerStatus,
    image: Option<&ImageInfo>,
    sandbox: Option<&SandboxSpec>,
) -> v1::ContainerStatus {
    v1::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(container_metadata(container)),
        state: container_state(container) as i32,
        created_at: nanos(container.created_at),
        started_at: container.started_at.map(nanos).unwrap_or_default(),
        finished_at: container.finished_at.map(nanos).unwrap_or_default(),
        exit_code: container.exit_code,
        image: Some(image_spec(container, image)),
        image_ref: image_ref(container, image),
        reason: container.reason.clone(),
        message: container.message.clone(),
        labels: container.spec.labels.clone(),
        annotations: container.spec.annotations.clone(),
        mounts: mounts::given_back(container),
        log_path: log_path(container, sandbox),
        resources: Some(v1::ContainerResources {
            linux: Some(resources::to_cri(&container.spec.resources)),
            windows: None,
        }),
        image_id: container.image_id.clone(),
        user: user(container),
        stop_signal: signal::value(&container.spec.stop_signal) as i32,
    }
}

pub(super) fn container_state(container: &ContainerStatus) -> v1::ContainerState {
    match container.state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running => v1::ContainerState::ContainerRunning,
        ContainerState::Exited => v1::ContainerState::ContainerExited,
        ContainerState::Unknown => v1::ContainerState::ContainerUnknown,
    }
}

pub(super) fn container_metadata(container: &ContainerStatus) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: container.spec.name.clone(), attempt: container.spec.attempt }
}

/// A name that people know where there is one: the kubelet asks for containers by the image's id.
fn image_spec(container: &ContainerStatus, image: Option<&ImageInfo>) -> v1::ImageSpec {
    let name = image.and_then(|image| image.repo_tags.first());
    v1::ImageSpec {
        image: name.unwrap_or(&container.spec.image).clone(),
        user_specified_image: container.spec.user_specified_image.clone(),
        ..Default::default()
    }
}

/// The digest by which it was pulled, else its id.
fn image_ref(container: &ContainerStatus, image: Option<&ImageInfo>) -> String {
    let digest = image.and_then(|image| image.repo_digests.first());
    digest.unwrap_or(&container.image_id).clone()
}

fn log_path(container: &ContainerStatus, sandbox: Option<&SandboxSpec>) -> String {
    let path = &container.spec.log_path;
    match sandbox {
        Some(sandbox) if !path.as_os_str().is_empty() => {
            sandbox.log_directory.join(path).to_string_lossy().into_owned()
        }
        _ => String::new(),
    }
}

/// What the machine said. Before that it is known only if the pod fixed both: else the image decides.
fn user(container: &ContainerStatus) -> Option<v1::ContainerUser> {
    let security = &container.spec.security;
    let linux = match &container.user {
        Some(user) => v1::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|gid| i64::from(*gid)).collect(),
        },
        None => {
            let (uid, gid) = security.uid.zip(security.gid)?;
            let supplemental_groups = security.supplemental_groups.clone();
            v1::LinuxContainerUser { uid, gid, supplemental_groups }
        }
    };
    Some(v1::ContainerUser { linux: Some(linux) })
}

/// Nanoseconds since 1970, as CRI counts time.
pub fn nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
