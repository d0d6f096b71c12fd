//! Volumes of an agent: what was brought, and what containers left in the files among them.

use std::collections::BTreeMap;

use futures::StreamExt;
use infranetes_core::mounts::Part;
use infranetes_core::session::{
    ContainerPlan, ObservedState, SessionError, VolumeKind, VolumeMountSource, VolumeSource,
};

use super::{Agent, SimSession};

#[derive(Clone, Debug)]
pub(super) struct Volume {
    revision: String,
    content: Vec<u8>,
}

/// What containers leave in every file that they may write to.
pub const LAST_WORDS: &[u8] = b"it is done";

impl Agent {
    /// All that was brought into the machine.
    pub(super) fn contents(&self) -> Vec<Vec<u8>> {
        self.volumes.values().map(|volume| volume.content.clone()).collect()
    }

    pub(super) fn has_all_of(&self, plan: &ContainerPlan) -> bool {
        plan.volumes.iter().all(|mount| match &mount.source {
            VolumeMountSource::Volume(id) => self.volumes.contains_key(id),
            VolumeMountSource::Image(_) => true,
        })
    }
}

/// Ids of the volumes that a container has mounted.
pub(super) fn ids(plan: &ContainerPlan) -> Vec<String> {
    let id = |source: &VolumeMountSource| match source {
        VolumeMountSource::Volume(id) => Some(id.clone()),
        VolumeMountSource::Image(_) => None,
    };
    plan.volumes.iter().filter_map(|mount| id(&mount.source)).collect()
}

impl SimSession {
    pub(super) async fn put(&self, mut source: VolumeSource) -> Result<(), SessionError> {
        let mut content = Vec::new();
        while let Some(part) = source.parts.next().await {
            if let Part::Data(data) = part.map_err(SessionError::Files)? {
                content.extend_from_slice(&data);
            }
        }
        debug_assert!(!matches!(source.kind, VolumeKind::Empty { .. }));
        self.0
            .call("put volume", move |agent| {
                let volume = Volume { revision: source.revision, content };
                agent.volumes.insert(source.id, volume);
                Ok(())
            })
            .await
    }

    pub(super) async fn list(&self) -> Result<BTreeMap<String, String>, SessionError> {
        self.0
            .call("volumes", |agent| {
                let volumes = agent.volumes.iter();
                Ok(volumes.map(|(id, volume)| (id.clone(), volume.revision.clone())).collect())
            })
            .await
    }

    pub(super) async fn read(&self, id: &str) -> Result<Option<Vec<u8>>, SessionError> {
        self.0
            .call("read volume", |agent| {
                let ended = agent.containers.values().any(|one| {
                    one.state == ObservedState::Exited && one.volumes.iter().any(|own| own == id)
                });
                Ok(ended.then(|| LAST_WORDS.to_vec()))
            })
            .await
    }
}
