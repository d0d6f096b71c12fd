//! A pod with the directory that a kubelet would have made for it, on the real daemon.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use infranetes_cri::api::v1::{self as cri, ContainerState};

use super::PodDir;
use crate::case::Case;
use crate::client::{Client, Pod, container};

/// A pod of a kubelet whose root is in the node's directory.
pub struct World {
    /// The way to the daemon.
    pub client: Client,
    /// The pod.
    pub pod: Pod,
    /// Its directory.
    pub dir: PodDir,
    /// Its sandbox.
    pub sandbox: String,
    /// Its users, where they are others in the machine.
    pub users: Option<cri::UserNamespace>,
}

impl World {
    /// Runs a pod. `keys` go into the daemon's table `[mounts]`.
    pub async fn new(case: &mut Case, name: &str, keys: &str) -> Result<World> {
        Self::with_users(case, name, keys, None).await
    }

    /// Runs a pod that has users of its own.
    pub async fn with_users(
        case: &mut Case,
        name: &str,
        keys: &str,
        users: Option<cri::UserNamespace>,
    ) -> Result<World> {
        let kubelet_dir = case.node.path("kubelet");
        fs::create_dir_all(&kubelet_dir)?;
        let mounts = format!("[mounts]\nkubelet_dir = \"{}\"\n{keys}", kubelet_dir.display());
        case.configure(&mounts).await?;
        let mut client = case.client();
        client.pull(&case.image).await?;
        let pod = case.pod(name);
        let mut config = pod.config();
        let uid = config.metadata.clone().unwrap_or_default().uid;
        if users.is_some() {
            config.linux.get_or_insert_default().security_context =
                Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(&users)),
                    ..Default::default()
                });
        }
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: pod.handler.clone(),
        };
        let sandbox = client.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(World { client, dir: PodDir::new(&kubelet_dir, &uid)?, pod, sandbox, users })
    }

    /// Runs a script in a container.
    pub async fn run(
        &mut self,
        name: &str,
        image: &str,
        script: &str,
        mounts: Vec<cri::Mount>,
    ) -> Result<String, tonic::Status> {
        let mut config =
            cri::ContainerConfig { mounts, ..container(name, image, &["sh", "-c", script]) };
        if self.users.is_some() {
            let linux = config.linux.get_or_insert_default();
            linux.security_context.get_or_insert_default().namespace_options =
                Some(namespaces(&self.users));
            // As the kubelet does with all mounts of such a pod.
            for mount in &mut config.mounts {
                let users = self.users.clone().unwrap_or_default();
                (mount.uid_mappings, mount.gid_mappings) = (users.uids, users.gids);
            }
        }
        self.client.run_container(&self.sandbox, &self.pod, config).await
    }

    /// What a command in a container prints.
    pub async fn sh(&mut self, container: &str, script: &str) -> Result<String> {
        let result = self.client.exec(container, &["sh", "-c", script]).await?;
        let text =
            [result.stdout, result.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        ensure!(result.exit_code == 0, "{script}: {text:?}");
        Ok(text[0].trim().to_owned())
    }

    /// Waits until a container exited.
    pub async fn exited(&mut self, id: &str) -> Result<cri::ContainerStatus> {
        self.client
            .wait_container(id, ContainerState::ContainerExited, Duration::from_secs(60))
            .await
    }
}

fn namespaces(users: &Option<cri::UserNamespace>) -> cri::NamespaceOption {
    let pid = cri::NamespaceMode::Container as i32;
    cri::NamespaceOption { pid, userns_options: users.clone(), ..Default::default() }
}
