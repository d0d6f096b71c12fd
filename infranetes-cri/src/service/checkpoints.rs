//! Checkpoints of pods, and pods that go on from one.

use std::path::PathBuf;

use infranetes_core::ids::ContainerId;
use tonic::Status;

use super::Cri;
use super::containers::read_seccomp;
use crate::api::v1;
use crate::convert::{self, Refusal};

impl Cri {
    pub(super) async fn checkpoint_sandbox(
        &self,
        request: v1::CheckpointPodRequest,
    ) -> Result<v1::CheckpointPodResponse, Status> {
        no_options(&request.options).map_err(convert::from_refusal)?;
        let path = path("output_path", request.output_path).map_err(convert::from_refusal)?;
        let sandbox = self.find_sandbox(request.pod_sandbox_id)?.or_not_found("sandbox")?;
        let mut containers: Vec<ContainerId> = Vec::new();
        for id in request.container_ids {
            containers.push(self.find_container(id)?.or_not_found("container")?.id);
        }
        let written = self.engine().checkpoint_sandbox(&sandbox.id, &containers, path).await;
        written.map_err(convert::from_engine)?;
        Ok(v1::CheckpointPodResponse {})
    }

    pub(super) async fn restore_sandbox(
        &self,
        request: v1::RestorePodRequest,
    ) -> Result<v1::RestorePodResponse, Status> {
        no_options(&request.options).map_err(convert::from_refusal)?;
        let path =
            path("checkpoint_path", request.checkpoint_path).map_err(convert::from_refusal)?;
        let run = v1::RunPodSandboxRequest {
            config: request.config,
            runtime_handler: request.runtime_handler,
        };
        let spec = convert::sandbox_spec(run).map_err(convert::from_refusal)?;
        self.check_handler(&spec.handler).map_err(convert::from_refusal)?;
        let mut containers = Vec::new();
        for config in request.container_configs {
            let (mut container, seccomp) =
                convert::container_spec(Some(config), &spec).map_err(convert::from_refusal)?;
            container.security.seccomp =
                read_seccomp(seccomp).await.map_err(convert::from_refusal)?;
            containers.push(container);
        }
        let restored = self.engine().restore_sandbox(spec, containers, path).await;
        let (id, containers) = restored.map_err(convert::from_engine)?;
        let restored = |(name, id): (String, ContainerId)| v1::RestoredContainer {
            name,
            container_id: id.to_string(),
        };
        Ok(v1::RestorePodResponse {
            pod_sandbox_id: id.to_string(),
            restored_containers: containers.into_iter().map(restored).collect(),
        })
    }
}

/// CRI wants options refused that are not known, and none is.
fn no_options(options: &std::collections::BTreeMap<String, String>) -> Result<(), Refusal> {
    match options.keys().min() {
        Some(key) => Err(Refusal::invalid("options", format!("{key:?} is not known"))),
        None => Ok(()),
    }
}

fn path(field: &str, path: String) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(path);
    let plain = |part| !matches!(part, std::path::Component::ParentDir);
    if path.is_absolute() && path.components().all(plain) {
        return Ok(path);
    }
    Err(Refusal::invalid(field, "is not an absolute path without \"..\""))
}
