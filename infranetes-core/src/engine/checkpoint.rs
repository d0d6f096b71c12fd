//! A pod as it is at one moment, written to a directory of the node.
//!
//! ```text
//! DIRECTORY/        the caller's
//!   pod.json        whose it is, and what its containers are; written last
//!   machine/        the provider's
//! ```
//!
//! The containers stand still in their machine, then the machine is written as a whole, then all go on: whatever happens meanwhile, the
//! caller that leaves and a session that breaks included; and the agent has another identity from then on, because the one that it had is in
//! what is written. A machine that is made of it wakes up with containers that stand still, and
//! each goes on when it is started. What is written holds the memory of the pod, with all of its secrets.

mod files;
mod restore;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use infranetes_sdk::ProviderError;
pub use restore::Restored;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use self::files::{DescribedContainer, DescribedMount, Description};
use crate::engine::Engine;
use crate::engine::board::{Door, Reply, Request};
use crate::engine::life::{Aspect, Machine};
use crate::engine::link::bounded;
use crate::engine::mounts;
use crate::engine::node::Node;
use crate::engine::timeouts::{AGENT_CALL, CHECKPOINT, CHECKPOINT_END, ROTATION, WORK};
use crate::error::{Cause, EngineError, FailureKind};
use crate::ids::{ContainerId, SandboxId};
use crate::session::{AgentSession, SessionError};
use crate::spec::SandboxSpec;
use crate::status::ContainerState;

impl Engine {
    /// Writes a checkpoint of a ready sandbox into an empty directory. `containers` are all that run in it, and the sandbox runs on
    /// when this answers. After a failure, and when the caller leaves, the directory is empty again.
    pub async fn checkpoint_sandbox(
        &self,
        id: &SandboxId,
        containers: &[ContainerId],
        directory: PathBuf,
    ) -> Result<(), EngineError> {
        let _call = self.call()?;
        let job = Job {
            node: self.node.clone(),
            door: self.door(id)?,
            id: id.clone(),
            containers: containers.to_vec(),
            directory,
        };
        let (reply, answer) = oneshot::channel();
        // It ends what it began, whatever becomes of the caller.
        self.node.spawn(job.run(reply));
        answer.await.unwrap_or(Err(EngineError::ShuttingDown))
    }
}

struct Job {
    node: Arc<Node>,
    door: Door,
    id: SandboxId,
    containers: Vec<ContainerId>,
    directory: PathBuf,
}

impl Job {
    async fn run(self, mut reply: Reply<()>) {
        let began = Instant::now();
        let result = self.make(&mut reply).await;
        match &result {
            Ok(()) => {
                tracing::info!(sandbox = %self.id, millis = began.elapsed().as_millis(), "a checkpoint is written");
            }
            Err(error) => {
                let error = Cause::of(error.kind(), error).chain();
                tracing::warn!(sandbox = %self.id, error, "no checkpoint is written");
            }
        }
        let _ = reply.send(result);
    }

    async fn make(&self, reply: &mut Reply<()>) -> Result<(), EngineError> {
        let aspect = look(&self.door, &self.id).await?;
        let machine = self.check(&aspect)?;
        let calls = self.node.calls(&aspect.life.spec.handler, &machine.provider)?;
        let provider = |cause: ProviderError| EngineError::Provider {
            provider: machine.provider.clone(),
            action: "write a checkpoint of the machine".to_owned(),
            cause: Box::new(cause),
        };
        if !calls.describe().await.map_err(provider)?.checkpoint {
            return Err(no_checkpoints(&machine.provider));
        }
        let description = self.describe(&aspect, &machine).await?;
        let session = self.session()?;
        let place = files::begin(&self.directory).await?;
        // Who the agent is will stand in what is written.
        let left_name = asked(&self.door, &self.id, AGENT_CALL, Request::LeaveName).await;
        if left_name.is_err() {
            files::clear(&self.directory).await;
        }
        left_name?;
        let made = match bounded(WORK, session.begin_checkpoint(&self.containers)).await {
            Err(cause) => {
                // It may have heard it.
                self.end().await;
                Err(EngineError::Agent { action: "let containers stand still".to_owned(), cause })
            }
            Ok(()) => {
                let id = machine.id.as_ref().map(|id| id.0.as_str()).unwrap_or_default();
                let made = tokio::select! {
                    made = calls.checkpoint(id, &place) => made.map_err(provider),
                    () = reply.closed() => Err(left()),
                };
                self.end().await;
                made
            }
        };
        let renamed = self.take_name().await;
        let done = match made.and(renamed) {
            Ok(()) => files::finish(&self.directory, description).await,
            failed => failed,
        };
        if done.is_err() {
            files::clear(&self.directory).await;
        }
        done
    }

    /// Whether a checkpoint can be made, as far as the node knows.
    fn check(&self, aspect: &Aspect) -> Result<Machine, EngineError> {
        let life = &aspect.life;
        let subject = format!("sandbox {}", self.id);
        let machine = life.machine.clone().filter(|machine| !machine.doomed && life.was_ready);
        let machine = machine.ok_or_else(|| EngineError::WrongState {
            subject,
            state: "not ready".to_owned(),
            needed: "it has to run for a checkpoint".to_owned(),
        })?;
        let invalid = |problem: String| {
            Err(EngineError::Invalid { field: "container_ids".to_owned(), problem })
        };
        let asked: BTreeSet<&ContainerId> = self.containers.iter().collect();
        if asked.is_empty() || asked.len() != self.containers.len() {
            return invalid("it is empty or names a container twice".to_owned());
        }
        let running: BTreeSet<&ContainerId> = aspect
            .containers
            .iter()
            .filter(|(life, _)| life.state == ContainerState::Running)
            .map(|(life, _)| &life.id)
            .collect();
        if let Some(other) = asked.difference(&running).next() {
            return invalid(format!("container {other} does not run in sandbox {}", self.id));
        }
        if let Some(other) = running.difference(&asked).next() {
            return invalid(format!(
                "container {other} runs, too, and a machine is written as a whole"
            ));
        }
        Ok(machine)
    }

    async fn describe(
        &self,
        aspect: &Aspect,
        machine: &Machine,
    ) -> Result<Description, EngineError> {
        let life = &aspect.life;
        let mut containers = Vec::new();
        for (container, mark) in &aspect.containers {
            if !self.containers.contains(&container.id) {
                continue;
            }
            let mut mounts = mounts::plan(&self.node, &life.spec, &container.spec.volumes).await?;
            mounts.rename(&life.volume_names());
            containers.push(DescribedContainer {
                id: life.container_names().machines(&container.id),
                name: container.spec.name.clone(),
                image_id: container.image_id.clone(),
                log_sequence: mark.sequence,
                resources: format!("{:?}", container.spec.resources),
                process: (&*container.spec).into(),
                mounts: mounts.mounts.iter().map(DescribedMount::from).collect(),
            });
        }
        Ok(Description {
            sandbox: self.id.clone(),
            provider: machine.provider.clone(),
            agent_name: machine
                .identity
                .as_ref()
                .map_or(&machine.ticket.agent_name, |identity| &identity.agent_name)
                .clone(),
            shape: (&machine.shape).into(),
            users: users(&life.spec),
            interfaces: life.network.attachment().map(|attachment| attachment.layout.names()),
            containers,
        })
    }

    fn session(&self) -> Result<Arc<dyn AgentSession>, EngineError> {
        let session = self.door.link.borrow().clone();
        session.ok_or_else(|| EngineError::MachineUnreachable {
            sandbox: self.id.clone(),
            cause: Cause::new(FailureKind::Unavailable, "no session to its agent is open now"),
        })
    }

    /// Lets the agent be somebody else than who stands in the checkpoint. Where that fails there is no checkpoint, and it is done with
    /// the next session.
    async fn take_name(&self) -> Result<(), EngineError> {
        let limit = ROTATION + AGENT_CALL;
        asked(&self.door, &self.id, limit, Request::TakeName).await?;
        // Whoever asked for the checkpoint may ask for something else at once.
        let mut link = self.door.link.clone();
        let back = link.wait_for(Option::is_some);
        if tokio::time::timeout(AGENT_CALL, back).await.is_err() {
            tracing::warn!(sandbox = %self.id, "no session to its agent is open after its checkpoint");
        }
        Ok(())
    }

    /// Lets the containers go on. A session that broke meanwhile did so by its successor's first words; without any, the machine does it
    /// by itself after some minutes.
    async fn end(&self) {
        let deadline = Instant::now() + CHECKPOINT_END;
        loop {
            let problem = match self.session() {
                Ok(session) => match bounded(AGENT_CALL, session.end_checkpoint()).await {
                    Ok(_) => return,
                    Err(error) => Cause::from(&error).chain(),
                },
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                tracing::error!(sandbox = %self.id, problem, "containers that stand still for a checkpoint could not be told to go on");
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// What a sandbox's task holds of it.
async fn look(door: &Door, id: &SandboxId) -> Result<Box<Aspect>, EngineError> {
    asked(door, id, AGENT_CALL, Request::Look).await
}

async fn asked<T>(
    door: &Door,
    id: &SandboxId,
    limit: Duration,
    request: impl FnOnce(Reply<T>) -> Request,
) -> Result<T, EngineError> {
    let gone = || EngineError::SandboxNotFound(id.clone());
    let (reply, answer) = oneshot::channel();
    let asked = async {
        door.requests.send(Box::new(request(reply))).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    };
    tokio::time::timeout(limit, asked)
        .await
        .unwrap_or_else(|_| Err(EngineError::Busy(format!("sandbox {id} is busy"))))
}

/// Whose numbers the pod's users have in the machine.
fn users(spec: &SandboxSpec) -> String {
    format!("{:?}", spec.users)
}

fn no_checkpoints(provider: &str) -> EngineError {
    EngineError::Unsupported(format!("provider {provider} has no checkpoints of its machines"))
}

fn left() -> EngineError {
    let cause = SessionError::TimedOut(CHECKPOINT);
    EngineError::Agent { action: "wait for its checkpoint: the caller left".to_owned(), cause }
}
