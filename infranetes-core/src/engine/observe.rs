//! What the node can tell of its pods without asking a machine: figures and changes. And the limits that can be changed.

use std::sync::Arc;

use infranetes_sdk::pod::ResizeRequest;

use super::{Engine, Events};
use crate::engine::board::Request;
use crate::engine::boot::size;
use crate::engine::timeouts::CONTAINER_CALL;
use crate::error::EngineError;
use crate::ids::{ContainerId, SandboxId};
use crate::spec::{ContainerResources, SandboxResources};
use crate::stats::{ContainerStats, Counted, MachineStats};
use crate::status::ContainerStatus;

impl Engine {
    /// The last figures of a container. They are kept after its end, until it is removed. `None` for one that ran before
    /// this process did, until its machine told again.
    pub fn container_stats(&self, id: &ContainerId) -> Option<Arc<Counted<ContainerStats>>> {
        self.node.board.container_stats(id)
    }

    /// The last figures of a sandbox's machine, also after its end. `None` until there are some.
    pub fn machine_stats(&self, id: &SandboxId) -> Option<Arc<Counted<MachineStats>>> {
        self.node.board.machine_stats(id)
    }

    /// CPU time of a sandbox's containers that were removed since this process began.
    pub fn removed_cpu_ns(&self, id: &SandboxId) -> u64 {
        self.node.board.removed_cpu_ns(id)
    }

    /// The containers of one sandbox, from what the node holds.
    pub fn containers_of(&self, id: &SandboxId) -> Vec<ContainerStatus> {
        self.node.board.containers_of(id)
    }

    /// Every change of a sandbox or container from now on. A reader that falls behind gets an error, and then nothing more:
    /// it lists, and subscribes anew. Readers are few.
    pub fn events(&self) -> Result<Events, EngineError> {
        self.node.board.events()
    }

    /// Gives a container other limits, at once and for good; what is 0 or empty stays. A refusal changes nothing.
    pub async fn update_container(
        &self,
        id: &ContainerId,
        resources: ContainerResources,
    ) -> Result<(), EngineError> {
        let _call = self.call()?;
        let missing = || EngineError::ContainerNotFound(id.clone());
        let status = self.container(id).ok_or_else(missing)?;
        let door = self.node.board.door(&status.sandbox).ok_or_else(missing)?;
        let request = |reply| Request::UpdateContainer(id.clone(), Box::new(resources), reply);
        self.ask(&door, "container", id.as_str(), CONTAINER_CALL, request).await?.ok_or_else(|| {
            EngineError::StillRunning {
                subject: format!("container {id}"),
                doing: "getting other limits".to_owned(),
                waited_secs: CONTAINER_CALL.as_secs(),
            }
        })
    }

    /// Records what a pod asks for now, and gives its machine that size where its provider can resize machines; `false`
    /// where it cannot, and the machine stays as large as it is.
    pub async fn resize_sandbox(
        &self,
        id: &SandboxId,
        resources: Option<SandboxResources>,
        overhead: Option<SandboxResources>,
    ) -> Result<bool, EngineError> {
        let _call = self.call()?;
        let door = self.door(id)?;
        let request = |reply| Request::Resize(resources, overhead, reply);
        self.ask(&door, "sandbox", id.as_str(), CONTAINER_CALL, request)
            .await?
            .ok_or_else(|| self.still(id, CONTAINER_CALL))?;
        let status = self.sandbox(id).ok_or_else(|| EngineError::SandboxNotFound(id.clone()))?;
        let Some(machine) = status.machine else { return Ok(false) };
        let handler = self.node.handler(&status.spec.handler)?;
        let calls = self.node.calls(&status.spec.handler, &machine.provider)?;
        let failed = |cause| EngineError::Provider {
            provider: machine.provider.clone(),
            action: "resize the machine".to_owned(),
            cause: Box::new(cause),
        };
        if !calls.describe().await.map_err(failed)?.resize {
            return Ok(false);
        }
        let (cpu_millis, memory_bytes) = size(&status.spec, handler);
        let request = ResizeRequest { id: machine.id.0.clone(), cpu_millis, memory_bytes };
        calls.resize(request).await.map_err(failed)?;
        Ok(true)
    }
}
