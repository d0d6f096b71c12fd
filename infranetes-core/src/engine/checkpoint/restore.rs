//! A pod that goes on from a checkpoint.
//!
//! The agent in the machine has the key and the certificate that are in the checkpoint. By these it is let in once, into a sandbox that
//! holds that name alone, and takes another name before the sandbox is ready. What the machine calls its containers and volumes stays,
//! and the node maps its own names to them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::files::{self, DescribedContainer, DescribedMount, Description};
use super::no_checkpoints;
use crate::engine::board::{Reply, Request};
use crate::engine::containers::Adopted;
use crate::engine::life::Origin;
use crate::engine::timeouts::CREATE_CONTAINER_CALL;
use crate::engine::{Engine, Network, check_log_path, mounts, network};
use crate::error::EngineError;
use crate::ids::{ContainerId, SandboxId};
use crate::session::names::ContainerNames;
use crate::spec::{ContainerSpec, SandboxSpec};

/// A sandbox that was restored, and its containers by their names.
pub type Restored = (SandboxId, Vec<(String, ContainerId)>);

impl Engine {
    /// Makes a sandbox that goes on from a checkpoint, with these containers, which are exactly those of the checkpoint. They are
    /// created, and each goes on when it is started.
    ///
    /// It may be done again and again, also while the first sandbox and others that came out of the checkpoint are there; not while
    /// another one comes out of it. After a failure, and when the caller leaves, nothing is left of it.
    pub async fn restore_sandbox(
        &self,
        spec: SandboxSpec,
        containers: Vec<ContainerSpec>,
        directory: PathBuf,
    ) -> Result<Restored, EngineError> {
        let _call = self.call()?;
        let (reply, answer) = oneshot::channel();
        let engine = self.clone();
        self.node.spawn(async move { engine.restore(spec, containers, directory, reply).await });
        answer.await.unwrap_or(Err(EngineError::ShuttingDown))
    }

    async fn restore(
        &self,
        spec: SandboxSpec,
        containers: Vec<ContainerSpec>,
        directory: PathBuf,
        mut reply: Reply<Restored>,
    ) {
        let prepared = self.prepare(&spec, containers, directory).await;
        let (origin, network, adopted) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let names = adopted.iter().map(|one| (one.spec.name.clone(), one.id.clone())).collect();
        let id = match self.claim(spec, network, origin).await {
            Ok(id) => id,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let made = tokio::select! {
            made = self.go_on(&id, adopted) => made,
            () = reply.closed() => Err(super::left()),
        };
        let answer = match made {
            Ok(()) => Ok((id.clone(), names)),
            Err(error) => {
                // Durable, and goes on by itself if it has to.
                if let Err(error) = self.remove_sandbox(&id).await {
                    tracing::error!(sandbox = %id, %error, "a sandbox that was not restored could not be removed");
                }
                Err(error)
            }
        };
        if let Err(Ok((id, _))) = reply.send(answer) {
            // Whoever asked left at the last moment, and knows of nothing.
            let _ = self.remove_sandbox(&id).await;
        }
    }

    /// Looks at everything that can be looked at before something is made.
    async fn prepare(
        &self,
        spec: &SandboxSpec,
        containers: Vec<ContainerSpec>,
        directory: PathBuf,
    ) -> Result<(Origin, Network, Vec<Adopted>), EngineError> {
        let node = &self.node;
        let handler = node.handler(&spec.handler)?;
        let calls = node.calls(&spec.handler, &handler.provider)?;
        let network = network(handler.network, spec)?;
        let (description, machine) = files::read(&directory).await?;
        if description.provider != handler.provider {
            let problem = format!(
                "its machine is provider {}'s, and those of handler {:?} are {}'s",
                description.provider, spec.handler, handler.provider
            );
            return Err(unfit(problem));
        }
        if description.interfaces.is_none() != (network == Network::Own) {
            let (then, now) = match network {
                Network::Own => ("is", "are not"),
                _ => ("is not", "are"),
            };
            let problem = format!(
                "its machine {then} in the node's pod network, and those of handler {:?} {now}",
                spec.handler
            );
            return Err(unfit(problem));
        }
        if description.users != super::users(spec) {
            return Err(unfit("its users have other numbers in the machine".to_owned()));
        }
        let able = calls.describe().await.map_err(|cause| EngineError::Provider {
            provider: handler.provider.clone(),
            action: "describe itself".to_owned(),
            cause: Box::new(cause),
        })?;
        if !able.checkpoint {
            return Err(no_checkpoints(&handler.provider));
        }
        let matched = matched(&description, containers)?;
        let (mut volumes, mut names) = (BTreeMap::new(), BTreeMap::new());
        let mut adopted = Vec::new();
        for (described, wanted) in matched {
            check_log_path(&wanted)?;
            let image = node.parts.images.resolve(&wanted.image).await?;
            if image.image.id != described.image_id {
                let name = &described.name;
                return Err(unfit(format!("container {name:?} has another image now")));
            }
            let mut mounts = mounts::plan(node, spec, &wanted.volumes).await?;
            map_volumes(described, &mounts, &mut volumes)?;
            mounts.rename(&volumes);
            let id = node.random_container_id();
            names.insert(id.clone(), described.id.clone());
            adopted.push(Adopted {
                id,
                image_id: image.image.id,
                log_sequence: described.log_sequence,
                new_limits: described.resources != format!("{:?}", wanted.resources),
                spec: Arc::new(wanted),
                mounts,
            });
        }
        let origin = Origin {
            machine,
            sandbox: description.sandbox,
            agent_name: description.agent_name,
            shape: description.shape.into(),
            interfaces: description.interfaces.unwrap_or_default(),
            names: ContainerNames::new(names),
            containers: adopted.iter().map(|one| one.id.clone()).collect(),
            volumes,
            done: false,
        };
        Ok((origin, network, adopted))
    }

    /// Enters the sandbox, if nobody else has what it is going to have.
    async fn claim(
        &self,
        spec: SandboxSpec,
        network: Network,
        origin: Origin,
    ) -> Result<SandboxId, EngineError> {
        let board = &self.node.board;
        let _turn = self.node.restoring.lock().await;
        if board.agent_is_taken(&origin.agent_name) {
            return Err(EngineError::Conflict(
                "another pod is being restored from this checkpoint, or its own has not left its identity yet: two would share one"
                    .to_owned(),
            ));
        }
        let key = (spec.pod.uid.clone(), spec.pod.attempt);
        let agent_name = origin.agent_name.clone();
        let mut begun = false;
        let (id, _) = board.enter(&key, || {
            begun = true;
            self.begin(spec, network, Some(Box::new(origin)))
        });
        if !begun {
            return Err(EngineError::Conflict(format!("the pod has a sandbox already ({id})")));
        }
        board.claim_agent(&id, &agent_name);
        Ok(id)
    }

    async fn go_on(&self, id: &SandboxId, adopted: Vec<Adopted>) -> Result<(), EngineError> {
        let door = self.door(id)?;
        let handler = self.node.board.sandbox(id).map(|status| status.spec.handler.clone());
        let limit =
            self.node.handler(&handler.unwrap_or_default()).map(|one| one.timeouts.run_call);
        let limit = limit.unwrap_or(CREATE_CONTAINER_CALL);
        self.ask(&door, "sandbox", id.as_str(), limit, Request::Run)
            .await?
            .ok_or_else(|| self.still(id, limit))?;
        let request = |reply| Request::Adopt(adopted, reply);
        self.ask(&door, "sandbox", id.as_str(), CREATE_CONTAINER_CALL, request)
            .await?
            .ok_or_else(|| self.still(id, CREATE_CONTAINER_CALL))
    }
}

/// Pairs the containers of a checkpoint with what they are to be now.
fn matched(
    description: &Description,
    wanted: Vec<ContainerSpec>,
) -> Result<Vec<(&DescribedContainer, ContainerSpec)>, EngineError> {
    let names: BTreeSet<&str> = wanted.iter().map(|spec| spec.name.as_str()).collect();
    let there: BTreeSet<&str> =
        description.containers.iter().map(|one| one.name.as_str()).collect();
    if names != there || names.len() != wanted.len() || there.len() != description.containers.len()
    {
        return Err(unfit(format!("it has the containers {there:?}, and {names:?} are wanted")));
    }
    let mut pairs = Vec::new();
    for spec in wanted {
        let found = description.containers.iter().find(|one| one.name == spec.name);
        let Some(described) = found else { continue };
        if let Some(what) = described.process.difference(&(&spec).into()) {
            let name = &described.name;
            return Err(unfit(format!("container {name:?} was started with another {what}")));
        }
        pairs.push((described, spec));
    }
    Ok(pairs)
}

/// What the machine calls the volumes of a container, by the names that the node gives them now.
fn map_volumes(
    described: &DescribedContainer,
    mounts: &mounts::Mounts,
    names: &mut BTreeMap<String, String>,
) -> Result<(), EngineError> {
    let name = &described.name;
    let now: Vec<DescribedMount> = mounts.mounts.iter().map(DescribedMount::from).collect();
    let by_place = |mounts: &[DescribedMount]| -> BTreeMap<String, DescribedMount> {
        mounts.iter().map(|mount| (mount.destination.clone(), mount.clone())).collect()
    };
    let (then, now) = (by_place(&described.mounts), by_place(&now));
    if !then.keys().eq(now.keys()) {
        return Err(unfit(format!("container {name:?} has its mounts at other places")));
    }
    for (destination, then) in then {
        let Some(now) = now.get(&destination) else { continue };
        let same = then.image == now.image
            && then.sub_path == now.sub_path
            && then.read_only == now.read_only
            && then.volume.is_empty() == now.volume.is_empty();
        let known = names.get(&now.volume).is_none_or(|known| *known == then.volume);
        if !same || !known {
            return Err(unfit(format!("container {name:?} has another mount at {destination:?}")));
        }
        if !now.volume.is_empty() {
            names.insert(now.volume.clone(), then.volume);
        }
    }
    Ok(())
}

fn unfit(problem: String) -> EngineError {
    EngineError::Invalid { field: "the checkpoint".to_owned(), problem }
}
