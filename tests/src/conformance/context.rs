//! What a spec has: the way to the runtime, a name space for its pods, and a list of what has to be undone.

mod calls;
mod node;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1 as cri;

use super::images;
use crate::client::Client;
use crate::node::Programs;
pub(super) use calls::Output;

/// The world of one spec.
pub struct Context {
    /// The way to the runtime.
    pub client: Client,
    /// What its pods' namespace is called; nobody else's is.
    namespace: String,
    /// Scratch on the node.
    dir: tempfile::TempDir,
    /// What all specs have.
    pub(super) suite: Suite,
    undo: Vec<Undo>,
    counter: u32,
}

/// What is the same for all specs.
#[derive(Clone, Debug)]
pub struct Suite {
    /// The provider behind the default handler.
    pub provider: String,
    /// The manifest's digest of `test-image-digest`.
    pub digest: String,
    /// How long a state may take to be reached.
    pub state_limit: Duration,
    /// The programs under test.
    pub programs: Programs,
}

/// Done when the spec has ended, the last first.
enum Undo {
    Image(String),
    Unmount(PathBuf),
    SharedMemory(String),
}

/// A sandbox with what it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) config: cri::PodSandboxConfig,
}

impl Context {
    pub(super) fn new(client: Client, suite: Suite, number: usize) -> Result<Context> {
        Ok(Context {
            client,
            namespace: format!("conformance-{number}"),
            dir: crate::world::dir("spec")?,
            suite,
            undo: Vec::new(),
            counter: 0,
        })
    }

    /// A name that no other pod or container of this run has.
    pub(super) fn name(&mut self, prefix: &str) -> String {
        self.counter += 1;
        format!("{prefix}-{}-{}", self.namespace, self.counter)
    }

    /// What a plain sandbox is asked for with.
    pub(super) fn sandbox_config(&mut self) -> cri::PodSandboxConfig {
        let name = self.name("pod");
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                uid: format!("uid-{name}"),
                name,
                namespace: self.namespace.clone(),
                attempt: ATTEMPT,
            }),
            linux: Some(cri::LinuxPodSandboxConfig::default()),
            ..Default::default()
        }
    }

    /// Likewise, with a directory for the logs of its containers.
    pub(super) fn sandbox_config_with_logs(&mut self) -> Result<cri::PodSandboxConfig> {
        let mut config = self.sandbox_config();
        let name = self.name("logs");
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir)?;
        config.log_directory = dir.display().to_string();
        Ok(config)
    }

    /// What a container is asked for with that runs a command of busybox; without one, something that lasts.
    pub(super) fn container_config(&mut self, command: &[&str]) -> cri::ContainerConfig {
        let name = self.name("container");
        let command = if command.is_empty() { &["sleep", "3600"] } else { command };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.clone(), attempt: ATTEMPT }),
            image: Some(image_spec(images::BUSYBOX)),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        }
    }

    /// Removes all that the spec made, whatever became of it.
    pub(super) async fn clean_up(mut self) -> Result<()> {
        let pods = self.remove_pods().await;
        let mut problems: Vec<String> = pods.err().map(|e| format!("{e:#}")).into_iter().collect();
        for undo in std::mem::take(&mut self.undo).into_iter().rev() {
            if let Err(error) = self.undo_one(undo).await {
                problems.push(format!("{error:#}"));
            }
        }
        ensure!(problems.is_empty(), "cleaning up failed: {}", problems.join("; "));
        self.dir.close().context("the scratch directory could not be removed")
    }

    async fn remove_pods(&mut self) -> Result<()> {
        for item in self.list_sandboxes(cri::PodSandboxFilter::default()).await? {
            let namespace = item.metadata.unwrap_or_default().namespace;
            if namespace == self.namespace {
                self.client.remove_pod(&item.id).await.context("a pod could not be removed")?;
            }
        }
        Ok(())
    }

    async fn undo_one(&mut self, undo: Undo) -> Result<()> {
        match undo {
            Undo::Image(name) => self.remove_image(&name).await,
            Undo::Unmount(path) => node::run("umount", &["-l", &path.display().to_string()]),
            Undo::SharedMemory(id) => node::run("ipcrm", &["-m", &id]),
        }
    }
}

pub(super) fn image_spec(name: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: name.to_owned(), ..Default::default() }
}

/// Any but 0, so that it is seen whether it is kept.
pub(super) const ATTEMPT: u32 = 2;
