//! Exec, attach and port-forward: a link for each, once it is sure that there is something to connect to.

use tonic::Status;

use super::Cri;
use crate::api::v1;
use crate::convert;
use crate::streaming::Target;

impl Cri {
    pub(super) fn exec(&self, request: v1::ExecRequest) -> Result<v1::ExecResponse, Status> {
        let container =
            self.find_container(request.container_id.clone())?.or_not_found("container")?;
        let target = convert::exec_target(request, container.id.clone());
        let target = target.map_err(convert::from_refusal)?;
        self.engine().running_container(&container.id).map_err(convert::from_engine)?;
        Ok(v1::ExecResponse { url: self.link(target)? })
    }

    pub(super) fn attach(&self, request: v1::AttachRequest) -> Result<v1::AttachResponse, Status> {
        let container =
            self.find_container(request.container_id.clone())?.or_not_found("container")?;
        let target = convert::attach_target(&request, container.id.clone());
        let target = target.map_err(convert::from_refusal)?;
        self.engine().running_container(&container.id).map_err(convert::from_engine)?;
        Ok(v1::AttachResponse { url: self.link(target)? })
    }

    pub(super) fn port_forward(
        &self,
        request: v1::PortForwardRequest,
    ) -> Result<v1::PortForwardResponse, Status> {
        let sandbox = self.find_sandbox(request.pod_sandbox_id.clone())?.or_not_found("sandbox")?;
        let target = convert::port_forward_target(&request, sandbox.id.clone());
        let target = target.map_err(convert::from_refusal)?;
        self.engine().check_ready(&sandbox.id).map_err(convert::from_engine)?;
        Ok(v1::PortForwardResponse { url: self.link(target)? })
    }

    fn link(&self, target: Target) -> Result<String, Status> {
        let links = &self.0.links;
        links.make(target).map_err(|error| Status::resource_exhausted(error.to_string()))
    }
}
