//! The way of a container into its machine: its image, its layers, its creation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Brought;
use super::volumes::{Delivered, Deliveries};
use crate::engine::container_plan::merge;
use crate::engine::life::LogMark;
use crate::engine::link::bounded;
use crate::engine::mounts::{self, Mounts};
use crate::engine::node::Node;
use crate::engine::timeouts::{IMPORT, WORK};
use crate::error::{Cause, EngineError, FailureKind};
use crate::ids::ContainerId;
use crate::session::{AgentSession, MachineImage, SessionError};
use crate::spec::{ContainerSpec, SandboxSpec};

/// Brings a container into its machine.
pub(super) struct Bring {
    pub(super) node: Arc<Node>,
    pub(super) session: Arc<dyn AgentSession>,
    pub(super) sandbox: Arc<SandboxSpec>,
    /// What the machine calls volumes, where that is not what the node does.
    pub(super) volume_names: BTreeMap<String, String>,
    pub(super) id: ContainerId,
    pub(super) spec: Arc<ContainerSpec>,
    pub(super) imports: Arc<Semaphore>,
    pub(super) deliveries: Arc<Deliveries>,
}

impl Bring {
    pub(super) async fn run(self) -> Result<Brought, EngineError> {
        let images = &self.node.parts.images;
        let resolved = images.resolve(&self.spec.image).await?;
        let mut plan = merge(&self.sandbox, &self.spec, &resolved)?;
        let mut mounts = mounts::plan(&self.node, &self.sandbox, &self.spec.volumes).await?;
        mounts.rename(&self.volume_names);
        plan.volumes = mounts.mounts.clone();
        self.import(&plan.image).await?;
        for image in &mounts.images {
            self.import(image).await?;
        }
        let image_ready_at = self.node.now();
        let mut revisions = self.bring_volumes(&mounts).await?;
        let create = || bounded(WORK, self.session.create_container(&self.id, &plan));
        let mut created = create().await;
        if created.as_ref().is_err_and(|error| error.kind() == FailureKind::NotFound)
            && !mounts.volumes.is_empty()
        {
            // The last container that had a volume was removed in between, and the volume with it.
            revisions = self.bring_volumes(&mounts).await?;
            created = create().await;
        }
        created.map_err(agent("create the container"))?;
        let mark = first_mark(&self.node, &self.sandbox, &self.spec).await?;
        Ok(Brought {
            image_id: plan.image.id,
            image_ready_at,
            mark,
            kept: mounts.kept,
            image_ids: mounts.image_ids,
            revisions,
        })
    }

    async fn import(&self, image: &MachineImage) -> Result<(), EngineError> {
        let images = &self.node.parts.images;
        let _turn = self.imports.acquire().await.map_err(|_| EngineError::ShuttingDown)?;
        let missing = bounded(WORK, self.session.missing_layers(image))
            .await
            .map_err(agent("say which layers it lacks"))?;
        let mut layers = Vec::new();
        for layer in image.layers.iter().filter(|layer| missing.contains(&layer.digest)) {
            layers.push(images.open_layer(layer).await?);
        }
        if !layers.is_empty() {
            bounded(IMPORT, self.session.import_layers(layers))
                .await
                .map_err(agent("take the image"))?;
        }
        Ok(())
    }

    async fn bring_volumes(&self, mounts: &Mounts) -> Result<Vec<(String, String)>, EngineError> {
        let delivered = self.deliveries.bring(&self.session, &mounts.volumes).await;
        let delivered = delivered.map_err(agent("say which volumes it has"))?;
        let brought = |(id, revision): Delivered| match revision {
            Ok(revision) => Ok((id, revision)),
            // The node's own files are the reason, or what the machine made of them.
            Err(error) => {
                let destination = mounts.destination(&id);
                Err(EngineError::Mount { destination, cause: Cause::from(&error) })
            }
        };
        delivered.into_iter().map(brought).collect()
    }
}

/// A file of this name may be there already; what is in it stays.
pub(super) async fn first_mark(
    node: &Node,
    sandbox: &SandboxSpec,
    spec: &ContainerSpec,
) -> Result<LogMark, EngineError> {
    let Some(path) = log_path(&sandbox.log_directory, spec) else {
        return Ok(LogMark::default());
    };
    let opened = async { node.parts.logs.open(&path, None).await?.flush().await };
    match opened.await {
        Ok(offset) => Ok(LogMark { offset, ..LogMark::default() }),
        Err(cause) => Err(EngineError::Record(Box::new(LogUnusable { path, cause }))),
    }
}

fn agent(action: &str) -> impl FnOnce(SessionError) -> EngineError + use<> {
    let action = action.to_owned();
    move |cause| EngineError::Agent { action, cause }
}

#[derive(Debug, thiserror::Error)]
#[error("the log {path} cannot be opened", path = path.display())]
struct LogUnusable {
    path: PathBuf,
    #[source]
    cause: std::io::Error,
}

/// Where a container's log goes, if it has one.
pub(super) fn log_path(directory: &Path, spec: &ContainerSpec) -> Option<PathBuf> {
    let none = directory.as_os_str().is_empty() || spec.log_path.as_os_str().is_empty();
    (!none).then(|| directory.join(&spec.log_path))
}
