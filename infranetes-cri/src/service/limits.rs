//! Limits that change while a pod runs.

use tonic::Status;

use super::Cri;
use crate::api::v1;
use crate::convert::{self, Refusal};

impl Cri {
    /// At once, and for good. Annotations are for runtimes that take orders by them; there are none here.
    pub(super) async fn update_container(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse, Status> {
        if request.windows.is_some() {
            let refusal = Refusal::unsupported("windows", "only Linux containers can be run");
            return Err(convert::from_refusal(refusal));
        }
        let resources = convert::changed_resources(request.linux).map_err(convert::from_refusal)?;
        let container = self.find_container(request.container_id)?.or_not_found("container")?;
        let updated = self.engine().update_container(&container.id, resources).await;
        updated.map_err(convert::from_engine)?;
        Ok(v1::UpdateContainerResourcesResponse {})
    }

    /// The kubelet calls this besides the containers' own updates, and fails the pod's whole resize if it fails. So a machine
    /// that cannot be resized is success: containers have their new limits, within the machine that there is.
    pub(super) async fn update_sandbox(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<v1::UpdatePodSandboxResourcesResponse, Status> {
        let (resources, overhead) = convert::changed_size(request.resources, request.overhead)
            .map_err(convert::from_refusal)?;
        let sandbox = self.find_sandbox(request.pod_sandbox_id)?.or_not_found("sandbox")?;
        let resized = self.engine().resize_sandbox(&sandbox.id, resources, overhead).await;
        if !resized.map_err(convert::from_engine)? {
            tracing::info!(sandbox = %sandbox.id, "the pod asks for another size; its machine cannot be resized and stays as it is");
        }
        Ok(v1::UpdatePodSandboxResourcesResponse {})
    }
}
