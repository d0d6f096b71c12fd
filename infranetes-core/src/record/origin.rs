//! The record of where a sandbox came from, if that is a checkpoint.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::life::Origin;
use crate::ids::{ContainerId, SandboxId};
use crate::record::sandbox::ShapeField;
use crate::session::names::ContainerNames;

#[derive(Serialize, Deserialize)]
pub(crate) struct OriginField {
    machine: String,
    sandbox: SandboxId,
    agent_name: String,
    shape: ShapeField,
    #[serde(default)]
    interfaces: Vec<String>,
    containers: Vec<ContainerId>,
    /// By the node's ids, the machine's. Without it both have the same.
    #[serde(default)]
    names: BTreeMap<ContainerId, ContainerId>,
    volumes: BTreeMap<String, String>,
    done: bool,
}

impl From<&Origin> for OriginField {
    fn from(origin: &Origin) -> Self {
        Self {
            machine: origin.machine.to_string_lossy().into_owned(),
            sandbox: origin.sandbox.clone(),
            agent_name: origin.agent_name.clone(),
            shape: ShapeField::from(&origin.shape),
            interfaces: origin.interfaces.clone(),
            containers: origin.containers.clone(),
            names: origin.names.by_node().clone(),
            volumes: origin.volumes.clone(),
            done: origin.done,
        }
    }
}

impl From<OriginField> for Origin {
    fn from(field: OriginField) -> Self {
        Self {
            machine: field.machine.into(),
            sandbox: field.sandbox,
            agent_name: field.agent_name,
            shape: field.shape.into(),
            interfaces: field.interfaces,
            containers: field.containers,
            names: ContainerNames::new(field.names),
            volumes: field.volumes,
            done: field.done,
        }
    }
}
