//! Why nothing can be done with a container now.

use crate::engine::admission::Denial;
use crate::error::{Cause, EngineError, FailureKind};
use crate::ids::{ContainerId, SandboxId};
use crate::spec::ContainerSpec;
use crate::status::ContainerState;

pub(crate) fn unreachable(sandbox: &SandboxId) -> EngineError {
    EngineError::MachineUnreachable {
        sandbox: sandbox.clone(),
        cause: Cause::new(FailureKind::Unavailable, "its session broke and is being opened again"),
    }
}

pub(super) fn taken(spec: &ContainerSpec) -> EngineError {
    EngineError::Conflict(format!(
        "the sandbox has another container {:?} with attempt {}",
        spec.name, spec.attempt
    ))
}

pub(super) fn denied(id: &ContainerId, state: ContainerState, denial: Denial) -> EngineError {
    let needed = match denial {
        Denial::HasExited => "it has ended and does not start again",
        Denial::BeingRemoved => "it is being removed",
        Denial::BeingStarted => "it is being started; ask again",
        Denial::NotRunning => "it has to run for that",
        Denial::NotReady | Denial::MachineLost | Denial::StoppedForGood => {
            "its sandbox is not ready"
        }
    };
    EngineError::WrongState {
        subject: format!("container {id}"),
        state: format!("{state:?}").to_lowercase(),
        needed: needed.to_owned(),
    }
}
