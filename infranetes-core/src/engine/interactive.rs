//! What clients do inside of pods: commands, a container's own streams, connections to ports.
//!
//! All of it goes straight to the machine, past the sandbox's task: it changes nothing that is recorded. Streams have the
//! back-pressure of the session, end with an error when the session breaks, and are not waited for by
//! [`Engine::shutdown`]: their clients hold on to this process.
//!
//! A command on streams has no time limit, and lives as long as its client: when that goes away, the command and all that
//! it started are killed. Whoever wants something to outlive its client starts it as a container.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;

use super::Engine;
use crate::engine::timeouts::{AGENT_CALL, CONTAINER_CALL};
use crate::error::EngineError;
use crate::ids::{ContainerId, SandboxId};
use crate::session::duplex::{
    ExecStart, PortInputs, PortOutputs, ProgramInputs, ProgramOutput, ProgramOutputs,
};
use crate::session::{AgentSession, ExecRequest, ExecResult, SessionError};
use crate::status::{ContainerState, ContainerStatus};

impl Engine {
    /// Runs a command in a running container to its end. `timeout` kills it and gives [`EngineError::ExecTimedOut`].
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        args: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecResult, EngineError> {
        let _call = self.call()?;
        let sandbox = self.running_container(id)?.sandbox;
        let session = self.session(&sandbox)?;
        // What the node has is there when the command begins, and what it wrote is on the node when it is answered.
        let shares = self.node.shares.of(&sandbox, id);
        if let Some(shares) = &shares {
            let _ = shares.update(&self.node, &session, id).await;
        }
        let request =
            ExecRequest { container: id.clone(), args, timeout, output_limit: EXEC_OUTPUT_MAX };
        // The agent kills it in time; ours is the backstop for an agent that does not.
        let limit = timeout.map_or(EXEC_MAX, |timeout| timeout.saturating_add(AGENT_CALL));
        let result = match tokio::time::timeout(limit, session.exec_sync(request)).await {
            Ok(answer) => answer.map_err(agent("run a command"))?,
            Err(_) => return Err(EngineError::ExecTimedOut(timeout.unwrap_or(limit))),
        };
        if let Some(shares) = &shares {
            let _ = shares.update(&self.node, &session, id).await;
        }
        match timeout {
            Some(limit) if result.timed_out => Err(EngineError::ExecTimedOut(limit)),
            _ => Ok(result),
        }
    }

    /// Runs a command in a running container, on streams. It is killed when the output is dropped before its exit came.
    pub async fn exec(
        &self,
        start: ExecStart,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, EngineError> {
        let (sandbox, id) =
            (self.running_container(&start.container)?.sandbox, start.container.clone());
        let session = self.open(&sandbox)?;
        let Some(shares) = self.node.shares.of(&sandbox, &id) else {
            return begun("run a command", session.exec(start, input)).await;
        };
        let _ = shares.update(&self.node, &session, &id).await;
        let output = begun("run a command", session.exec(start, input)).await?;
        let node = self.node.clone();
        Ok(Box::pin(output.then(move |part| {
            let (node, shares, session, id) =
                (node.clone(), shares.clone(), session.clone(), id.clone());
            async move {
                if matches!(part, Ok(ProgramOutput::Exit(_))) {
                    let _ = shares.update(&node, &session, &id).await;
                }
                part
            }
        })))
    }

    /// Connects to a running container's own streams: its output from now on, its input if it has one.
    ///
    /// Any number of clients may. The output ends when the container's does; a client that falls far behind it is dropped with
    /// an error, so that the container and its log do not wait for one. An input that was to be there once is
    /// closed when the client who brought input leaves; bringing none is sending none, not even an empty piece.
    pub async fn attach(
        &self,
        id: &ContainerId,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, EngineError> {
        let session = self.open(&self.running_container(id)?.sandbox)?;
        begun("attach", session.attach(id, input)).await
    }

    /// Connects to a TCP port on the loopback of a ready sandbox, as a program in the pod would.
    pub async fn port_forward(
        &self,
        id: &SandboxId,
        port: u16,
        input: PortInputs,
    ) -> Result<PortOutputs, EngineError> {
        self.check_ready(id)?;
        let session = self.open(id)?;
        begun("connect to the port", session.port_forward(port, input)).await
    }

    /// A container in which something can be run, or why not.
    pub fn running_container(&self, id: &ContainerId) -> Result<ContainerStatus, EngineError> {
        let status =
            self.container(id).ok_or_else(|| EngineError::ContainerNotFound(id.clone()))?;
        if status.state == ContainerState::Running {
            return Ok(status);
        }
        Err(EngineError::WrongState {
            subject: format!("container {id}"),
            state: format!("{:?}", status.state).to_lowercase(),
            needed: "it has to run for that".to_owned(),
        })
    }

    /// Says why a sandbox has no ports to connect to, if so.
    pub fn check_ready(&self, id: &SandboxId) -> Result<(), EngineError> {
        let status = self.sandbox(id).ok_or_else(|| EngineError::SandboxNotFound(id.clone()))?;
        if status.is_ready() {
            return Ok(());
        }
        Err(EngineError::WrongState {
            subject: format!("sandbox {id}"),
            state: format!("{:?}", status.phase).to_lowercase(),
            needed: "it has to be ready for that".to_owned(),
        })
    }

    /// The session for something that lasts, and is no call that a shutdown waits for.
    fn open(&self, id: &SandboxId) -> Result<Arc<dyn AgentSession>, EngineError> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(EngineError::ShuttingDown);
        }
        self.session(id)
    }
}

async fn begun<T>(
    action: &str,
    begin: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, EngineError> {
    let begun = tokio::time::timeout(CONTAINER_CALL, begin).await;
    begun.unwrap_or(Err(SessionError::TimedOut(CONTAINER_CALL))).map_err(agent(action))
}

fn agent(action: &str) -> impl FnOnce(SessionError) -> EngineError {
    let action = action.to_owned();
    move |cause| EngineError::Agent { action, cause }
}

/// What one stream of a command's output may be; CRI has the same bound.
const EXEC_OUTPUT_MAX: usize = 16 * 1024 * 1024;
/// A command without a timeout ends with its session at the latest, or with this.
const EXEC_MAX: Duration = Duration::from_secs(24 * 3600);
