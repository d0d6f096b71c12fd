//! What the checks of containers share.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use infranetes_sdk::container::{
    ContainerCapabilities, ContainerRef, ContainerState, ContainerStatus, CreateContainerRequest,
    DescribeContainerRequest, EnvVar, ListContainersRequest, LogChunk, LogsInput, LogsInputPart,
    LogsStart, Process,
};
use infranetes_sdk::{CallContext, ContainerProvider, stream};

use super::ContainerSubject;
use crate::check::{Limits, Outcome, Stop, context, eventually, ok, require};
use crate::run::Run;

pub(super) struct Stage {
    pub(super) provider: Arc<dyn ContainerProvider>,
    pub(super) subject: ContainerSubject,
    run: Run,
}

impl Stage {
    pub(super) fn new(provider: Arc<dyn ContainerProvider>, subject: ContainerSubject) -> Self {
        Self { provider, subject, run: Run::new() }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.subject.limits
    }

    pub(super) fn ctx(&self) -> CallContext {
        context(self.limits())
    }

    pub(super) async fn capabilities(&self) -> Outcome<ContainerCapabilities> {
        ok("describe", self.provider.describe(self.ctx(), DescribeContainerRequest {}).await)
    }

    /// The container that runs while checks use it.
    pub(super) fn main_id(&self) -> String {
        format!("{}main", self.run.prefix())
    }

    /// A container that runs a shell script, with an id of its own.
    pub(super) fn request(&self, script: &str) -> CreateContainerRequest {
        let path = EnvVar { name: "PATH".into(), value: self.subject.path.clone().into() };
        CreateContainerRequest {
            id: self.run.label().name,
            image: Some(self.subject.image.clone()),
            process: Some(Process {
                args: self.shell(script),
                env: vec![path],
                cwd: "/".into(),
                ..Process::default()
            }),
            ..CreateContainerRequest::default()
        }
    }

    pub(super) fn main_request(&self) -> CreateContainerRequest {
        CreateContainerRequest { id: self.main_id(), ..self.request(ENDLESS) }
    }

    pub(super) fn shell(&self, script: &str) -> Vec<String> {
        vec![self.subject.shell.clone(), "-c".into(), script.into()]
    }

    /// Makes and starts a container.
    pub(super) async fn run(&self, request: CreateContainerRequest) -> Outcome<String> {
        let id = request.id.clone();
        ok("create", self.provider.create(self.ctx(), request).await)?;
        ok("start", self.provider.start(self.ctx(), reference(&id)).await)?;
        Ok(id)
    }

    /// Runs a script to its end, gives its status, and leaves the container.
    pub(super) async fn run_to_end(
        &self,
        request: CreateContainerRequest,
    ) -> Outcome<ContainerStatus> {
        let id = self.run(request).await?;
        self.wait_for_exit(&id).await
    }

    pub(super) async fn status(&self, id: &str) -> Outcome<ContainerStatus> {
        ok("status", self.provider.status(self.ctx(), reference(id)).await)
    }

    pub(super) async fn wait_for_exit(&self, id: &str) -> Outcome<ContainerStatus> {
        eventually("an exited container", self.limits().start, || async {
            match self.provider.status(self.ctx(), reference(id)).await {
                Ok(status) if status.state() == ContainerState::Exited => Ok(status),
                other => Err(format!("status answers {other:?}")),
            }
        })
        .await
    }

    pub(super) async fn remove(&self, id: &str) -> Outcome {
        ok("remove", self.provider.remove(self.ctx(), reference(id)).await).map(drop)
    }

    /// Removes the containers of this run.
    pub(super) async fn remove_all(&self) -> Outcome {
        for container in self.list().await? {
            self.remove(&container.id).await?;
        }
        Ok(())
    }

    /// The containers of this run.
    pub(super) async fn list(&self) -> Outcome<Vec<ContainerStatus>> {
        let listed = self.provider.list(self.ctx(), ListContainersRequest {}).await;
        let mut containers = ok("list", listed)?.containers;
        let prefix = self.run.prefix();
        containers.retain(|container| container.id.starts_with(&prefix));
        Ok(containers)
    }

    /// The checks of `exec` and others need the main container to run.
    pub(super) async fn require_main(&self) -> Outcome<String> {
        let id = self.main_id();
        let status = self.provider.status(self.ctx(), reference(&id)).await;
        let runs = status.is_ok_and(|status| status.state() == ContainerState::Running);
        require(runs, "there is no running container, because an earlier check failed")?;
        Ok(id)
    }

    /// All chunks of output after a number, until the output ends; each is acknowledged.
    pub(super) async fn logs(&self, id: &str, after: u64) -> Outcome<Vec<LogChunk>> {
        let (sender, input) = stream::channel(4);
        let start = LogsStart { id: id.into(), after };
        send(&sender, LogsInputPart::Start(start)).await;
        let mut chunks = ok("logs", self.provider.logs(self.ctx(), input).await)?;
        let mut all = Vec::new();
        self.patiently("the end of the logs", async {
            while let Some(chunk) = chunks.next().await {
                let chunk = ok("logs", chunk)?;
                send(&sender, LogsInputPart::Acknowledged(chunk.sequence)).await;
                all.push(chunk);
            }
            Ok(())
        })
        .await?;
        Ok(all)
    }

    /// `work`, within the limit of a call.
    pub(super) async fn patiently<T>(
        &self,
        what: &str,
        work: impl Future<Output = Outcome<T>>,
    ) -> Outcome<T> {
        let limit = self.limits().call;
        tokio::time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(Stop::Broken(format!("{what}: not within {limit:?}"))))
    }
}

pub(super) fn reference(id: &str) -> ContainerRef {
    ContainerRef { id: id.into() }
}

async fn send(
    sender: &tokio::sync::mpsc::Sender<infranetes_sdk::Result<LogsInput>>,
    part: LogsInputPart,
) {
    // A provider that has said all may have stopped listening.
    let _ = sender.send(Ok(LogsInput { input: Some(part) })).await;
}

/// Runs until it is told to end, and then ends at once.
pub(super) const ENDLESS: &str = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";
