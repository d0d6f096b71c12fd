//! The calls that specs make, each with what goes without saying of its answer.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use infranetes_cri::api::v1::{self as cri, ContainerState};

use super::{Context, Sandbox, Undo, image_spec};
use crate::wait::until;

/// What a command left behind.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Context {
    /// Runs a plain sandbox.
    pub(crate) async fn sandbox(&mut self) -> Result<Sandbox> {
        let config = self.sandbox_config();
        self.sandbox_of(config).await
    }

    /// Runs a plain sandbox with a directory for logs.
    pub(crate) async fn sandbox_with_logs(&mut self) -> Result<Sandbox> {
        let config = self.sandbox_config_with_logs()?;
        self.sandbox_of(config).await
    }

    /// Runs a sandbox with this namespace configuration.
    pub(crate) async fn sandbox_in(&mut self, options: cri::NamespaceOption) -> Result<Sandbox> {
        let mut config = self.sandbox_config_with_logs()?;
        let security = cri::LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        };
        config.linux.get_or_insert_default().security_context = Some(security);
        self.sandbox_of(config).await
    }

    /// Runs a sandbox.
    pub(crate) async fn sandbox_of(&mut self, config: cri::PodSandboxConfig) -> Result<Sandbox> {
        let id = self.try_sandbox(config.clone()).await;
        Ok(Sandbox { id: id.context("RunPodSandbox failed")?, config })
    }

    /// Asks for a sandbox.
    pub(crate) async fn try_sandbox(
        &mut self,
        config: cri::PodSandboxConfig,
    ) -> Result<String, tonic::Status> {
        let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let answer = self.client.runtime.run_pod_sandbox(request).await?.into_inner();
        Ok(answer.pod_sandbox_id)
    }

    /// Creates and starts a container that lasts, and waits until it runs.
    pub(crate) async fn running(&mut self, sandbox: &Sandbox) -> Result<String> {
        let config = self.container_config(&[]);
        self.running_of(sandbox, config).await
    }

    /// Creates and starts a container, and waits until it runs.
    pub(crate) async fn running_of(
        &mut self,
        sandbox: &Sandbox,
        config: cri::ContainerConfig,
    ) -> Result<String> {
        let id = self.create(sandbox, config).await?;
        self.start(&id).await?;
        self.reaches(&id, ContainerState::ContainerRunning).await?;
        Ok(id)
    }

    /// Creates and starts a container, and waits until it ended.
    pub(crate) async fn ended_of(
        &mut self,
        sandbox: &Sandbox,
        config: cri::ContainerConfig,
    ) -> Result<cri::ContainerStatus> {
        let id = self.create(sandbox, config).await?;
        self.start(&id).await?;
        self.reaches(&id, ContainerState::ContainerExited).await
    }

    /// Creates a container; pulls its image if the node lacks it.
    pub(crate) async fn create(
        &mut self,
        sandbox: &Sandbox,
        config: cri::ContainerConfig,
    ) -> Result<String> {
        self.bring_image(&config).await?;
        self.try_create(sandbox, config).await.context("CreateContainer failed")
    }

    /// Pulls a container's image if the node lacks it.
    pub(crate) async fn bring_image(&mut self, config: &cri::ContainerConfig) -> Result<()> {
        let image = config.image.clone().unwrap_or_default().image;
        if self.image(&image).await?.is_none() {
            self.client.pull(&image).await.with_context(|| format!("{image} is not pulled"))?;
        }
        Ok(())
    }

    /// Asks for a container whose image is there.
    pub(crate) async fn try_create(
        &mut self,
        sandbox: &Sandbox,
        config: cri::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        Ok(self.client.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// Starts a container.
    pub(crate) async fn start(&mut self, id: &str) -> Result<()> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        self.client.runtime.start_container(request).await.context("StartContainer failed")?;
        Ok(())
    }

    /// Stops a container and waits until it is told to have ended.
    pub(crate) async fn stop(&mut self, id: &str) -> Result<()> {
        self.client.stop_container(id, STOP_SECONDS).await.context("StopContainer failed")?;
        self.reaches(id, ContainerState::ContainerExited).await.map(drop)
    }

    /// Removes a container.
    pub(crate) async fn remove(&mut self, id: &str) -> Result<()> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        self.client.runtime.remove_container(request).await.context("RemoveContainer failed")?;
        Ok(())
    }

    /// Waits until a container is in a state.
    pub(crate) async fn reaches(
        &mut self,
        id: &str,
        state: ContainerState,
    ) -> Result<cri::ContainerStatus> {
        let limit = self.suite.state_limit;
        self.client.wait_container(id, state, limit).await
    }

    /// What the default handler says it can.
    pub(crate) async fn handler_features(&mut self) -> Result<cri::RuntimeHandlerFeatures> {
        let answer = self.client.runtime.status(cri::StatusRequest::default()).await?.into_inner();
        let handlers = answer.runtime_handlers.into_iter();
        let default = handlers.filter(|handler| handler.name.is_empty());
        Ok(default.filter_map(|handler| handler.features).next().unwrap_or_default())
    }

    /// A container's status.
    pub(crate) async fn status(&mut self, id: &str) -> Result<cri::ContainerStatus> {
        let status = self.client.container(id).await.context("ContainerStatus failed")?.status;
        status.context("ContainerStatus answered without a status")
    }

    /// Containers in the list with this id.
    pub(crate) async fn listed(&mut self, id: &str) -> Result<Vec<cri::Container>> {
        let filter = cri::ContainerFilter { id: id.to_owned(), ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        Ok(self.client.runtime.list_containers(request).await?.into_inner().containers)
    }

    /// Sandboxes in the list.
    pub(crate) async fn list_sandboxes(
        &mut self,
        filter: cri::PodSandboxFilter,
    ) -> Result<Vec<cri::PodSandbox>> {
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.client.runtime.list_pod_sandbox(request).await?.into_inner().items)
    }

    /// A sandbox's status.
    pub(crate) async fn sandbox_status(&mut self, id: &str) -> Result<cri::PodSandboxStatus> {
        let status = self.client.sandbox(id).await.context("PodSandboxStatus failed")?.status;
        status.context("PodSandboxStatus answered without a status")
    }

    /// Executes a command, whatever comes of it.
    pub(crate) async fn try_exec(&mut self, id: &str, command: &[&str]) -> Result<Output> {
        let result = self.client.exec(id, command).await;
        let result = result.with_context(|| format!("ExecSync of {command:?} failed"))?;
        Ok(Output {
            code: result.exit_code,
            stdout: String::from_utf8_lossy(&result.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&result.stderr).into_owned(),
        })
    }

    /// Executes a command that has to succeed and to say nothing on standard error; its output.
    pub(crate) async fn exec(&mut self, id: &str, command: &[&str]) -> Result<String> {
        let output = self.try_exec(id, command).await?;
        ensure!(output.code == 0 && output.stderr.is_empty(), "{command:?} came to {output:?}");
        Ok(output.stdout)
    }

    /// Executes a command that must not succeed.
    pub(crate) async fn exec_fails(&mut self, id: &str, command: &[&str]) -> Result<Output> {
        let output = self.try_exec(id, command).await?;
        ensure!(output.code != 0, "{command:?} was possible: {output:?}");
        Ok(output)
    }

    /// An image of the node.
    pub(crate) async fn image(&mut self, name: &str) -> Result<Option<cri::Image>> {
        let request =
            cri::ImageStatusRequest { image: Some(image_spec(name)), ..Default::default() };
        let answer = self.client.images.image_status(request).await;
        Ok(answer.context("ImageStatus failed")?.into_inner().image)
    }

    /// All images of the node.
    pub(crate) async fn images(&mut self) -> Result<Vec<cri::Image>> {
        let answer = self.client.images.list_images(cri::ListImagesRequest::default()).await;
        Ok(answer.context("ListImages failed")?.into_inner().images)
    }

    /// Pulls an image, which goes when the spec has ended; what PullImage answered.
    pub(crate) async fn pull(&mut self, name: &str) -> Result<String> {
        self.undo.push(Undo::Image(name.to_owned()));
        self.client.pull(name).await.with_context(|| format!("{name} is not pulled"))
    }

    /// Removes an image by its id, if it is there.
    pub(crate) async fn remove_image(&mut self, name: &str) -> Result<()> {
        if let Some(image) = self.image(name).await? {
            let request = cri::RemoveImageRequest { image: Some(image_spec(&image.id)) };
            self.client.images.remove_image(request).await.context("RemoveImage failed")?;
        }
        Ok(())
    }

    /// Waits until something holds.
    pub(crate) async fn eventually(
        &mut self,
        what: &str,
        mut holds: impl AsyncFnMut(&mut Context) -> Result<bool>,
    ) -> Result<()> {
        let limit = self.suite.state_limit;
        until(limit, what, async || holds(self).await).await
    }

    /// Checks for some time that something goes on to hold.
    pub(crate) async fn stays(
        &mut self,
        time: Duration,
        what: &str,
        mut holds: impl AsyncFnMut(&mut Context) -> Result<bool>,
    ) -> Result<()> {
        let end = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < end {
            if !holds(self).await? {
                bail!("not any more: {what}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// As long as the public suite gives a container to end by itself.
const STOP_SECONDS: i64 = 60;
