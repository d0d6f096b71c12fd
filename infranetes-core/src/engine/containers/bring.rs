//! The way of a container into its machine: its image, its layers, its creation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Brought;
use crate::engine::container_plan::merge;
use crate::engine::life::LogMark;
use crate::engine::link::bounded;
use crate::engine::node::Node;
use crate::engine::timeouts::{AGENT_CALL, IMPORT};
use crate::error::EngineError;
use crate::ids::ContainerId;
use crate::session::AgentSession;
use crate::spec::{ContainerSpec, SandboxSpec};

/// Brings a container into its machine.
pub(super) struct Bring {
    pub(super) node: Arc<Node>,
    pub(super) session: Arc<dyn AgentSession>,
    pub(super) sandbox: Arc<SandboxSpec>,
    pub(super) id: ContainerId,
    pub(super) spec: Arc<ContainerSpec>,
    pub(super) imports: Arc<Semaphore>,
}

impl Bring {
    pub(super) async fn run(self) -> Result<Brought, EngineError> {
        let images = &self.node.parts.images;
        let resolved = images.resolve(&self.spec.image).await?;
        let plan = merge(&self.sandbox, &self.spec, &resolved)?;
        let agent = |action: &str| {
            let action = action.to_owned();
            move |cause| EngineError::Agent { action, cause }
        };
        {
            let _turn = self.imports.acquire().await.map_err(|_| EngineError::ShuttingDown)?;
            let missing = bounded(AGENT_CALL, self.session.missing_layers(&plan.image))
                .await
                .map_err(agent("say which layers it lacks"))?;
            let mut layers = Vec::new();
            for layer in plan.image.layers.iter().filter(|layer| missing.contains(&layer.digest)) {
                layers.push(images.open_layer(layer).await?);
            }
            if !layers.is_empty() {
                bounded(IMPORT, self.session.import_layers(layers))
                    .await
                    .map_err(agent("take the image"))?;
            }
        }
        let image_ready_at = self.node.now();
        bounded(AGENT_CALL, self.session.create_container(&self.id, &plan))
            .await
            .map_err(agent("create the container"))?;
        let mark = self.first_mark().await?;
        Ok(Brought { image_id: plan.image.id, image_ready_at, mark })
    }

    /// A file of this name may be there already; what is in it stays.
    async fn first_mark(&self) -> Result<LogMark, EngineError> {
        let Some(path) = log_path(&self.sandbox.log_directory, &self.spec) else {
            return Ok(LogMark::default());
        };
        let opened = async { self.node.parts.logs.open(&path, None).await?.flush().await };
        match opened.await {
            Ok(offset) => Ok(LogMark { offset, ..LogMark::default() }),
            Err(cause) => Err(EngineError::Record(Box::new(LogUnusable { path, cause }))),
        }
    }
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
