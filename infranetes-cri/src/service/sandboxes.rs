//! Pod sandboxes.

use std::time::SystemTime;

use infranetes_core::error::EngineError;
use infranetes_core::status::ContainerStatus;
use tonic::Status;

use super::Cri;
use crate::api::v1;
use crate::convert::{self, Refusal, SandboxFilter};

impl Cri {
    pub(super) async fn run_sandbox(
        &self,
        request: v1::RunPodSandboxRequest,
    ) -> Result<v1::RunPodSandboxResponse, Status> {
        let spec = convert::sandbox_spec(request).map_err(convert::from_refusal)?;
        self.check_handler(&spec.handler).map_err(convert::from_refusal)?;
        let id = self.engine().run_sandbox(spec).await.map_err(convert::from_engine)?;
        Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
    }

    pub(super) async fn stop_sandbox(
        &self,
        request: v1::StopPodSandboxRequest,
    ) -> Result<v1::StopPodSandboxResponse, Status> {
        if let Some(sandbox) = self.find_sandbox(request.pod_sandbox_id)?.item {
            gone_is_success(self.engine().stop_sandbox(&sandbox.id).await)?;
        }
        Ok(v1::StopPodSandboxResponse {})
    }

    pub(super) async fn remove_sandbox(
        &self,
        request: v1::RemovePodSandboxRequest,
    ) -> Result<v1::RemovePodSandboxResponse, Status> {
        if let Some(sandbox) = self.find_sandbox(request.pod_sandbox_id)?.item {
            gone_is_success(self.engine().remove_sandbox(&sandbox.id).await)?;
        }
        Ok(v1::RemovePodSandboxResponse {})
    }

    pub(super) fn sandbox_status(
        &self,
        request: v1::PodSandboxStatusRequest,
    ) -> Result<v1::PodSandboxStatusResponse, Status> {
        let sandbox = self.find_sandbox(request.pod_sandbox_id)?.or_not_found("sandbox")?;
        let info =
            if request.verbose { convert::sandbox_info(&sandbox) } else { Default::default() };
        // With the time, so that a kubelet that takes events can tell which of two is newer.
        let timestamp = convert::nanos(SystemTime::now());
        let containers = self.engine().containers_of(&sandbox.id);
        let status = |container: &ContainerStatus| {
            let image = self.images().status(&container.image_id);
            convert::container_status(container, image.as_ref(), Some(&sandbox.spec))
        };
        Ok(v1::PodSandboxStatusResponse {
            status: Some(convert::sandbox_status(&sandbox)),
            info,
            containers_statuses: containers.iter().map(status).collect(),
            timestamp,
        })
    }

    pub(super) fn list_sandboxes(
        &self,
        request: v1::ListPodSandboxRequest,
    ) -> v1::ListPodSandboxResponse {
        let filter = SandboxFilter::new(request.filter);
        let all = self.engine().sandboxes();
        let listed = all.iter().filter(|sandbox| sandbox.is_listed() && filter.admits(sandbox));
        v1::ListPodSandboxResponse { items: listed.map(convert::sandbox_item).collect() }
    }
}

impl Cri {
    /// A handler that the configuration does not have is a mistake of the RuntimeClass, not of a provider.
    pub(super) fn check_handler(&self, name: &str) -> Result<(), Refusal> {
        let handlers = self.engine().handlers();
        if handlers.iter().any(|handler| handler.name == name) {
            return Ok(());
        }
        let known: Vec<&str> = handlers.iter().map(|handler| handler.name.as_str()).collect();
        let known =
            known.into_iter().filter(|name| !name.is_empty()).collect::<Vec<_>>().join(", ");
        let problem = if name.is_empty() {
            format!("is empty, and the configuration has no default_handler; handlers: {known}")
        } else {
            format!("the configuration has no handler {name:?}; handlers: {known}")
        };
        Err(Refusal::invalid("runtime_handler", problem))
    }
}

fn gone_is_success(result: Result<(), EngineError>) -> Result<(), Status> {
    match result {
        Err(EngineError::SandboxNotFound(_)) => Ok(()),
        result => result.map_err(convert::from_engine),
    }
}
