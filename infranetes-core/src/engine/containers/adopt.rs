//! Containers that come with a machine that was made of a checkpoint.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::bring::first_mark;
use super::volumes::with_image_ids;
use super::{Containers, Held, fingerprint};
use crate::engine::life::{ContainerLife, LogMark};
use crate::engine::link::bounded;
use crate::engine::mounts::Mounts;
use crate::engine::timeouts::WORK;
use crate::error::{Cause, EngineError};
use crate::ids::ContainerId;
use crate::record::{Change, container};
use crate::session::AgentSession;
use crate::spec::{ContainerSpec, SandboxSpec};
use crate::status::ContainerState;

/// A container that its machine has, and the record not yet.
pub(crate) struct Adopted {
    pub(crate) id: ContainerId,
    pub(crate) spec: Arc<ContainerSpec>,
    pub(crate) image_id: String,
    /// What the first pod's log has of its output.
    pub(crate) log_sequence: u64,
    /// Its limits are not those that it had.
    pub(crate) new_limits: bool,
    /// Under the names that the machine has.
    pub(crate) mounts: Mounts,
}

impl Containers {
    /// These come with the machine: they are not strangers in it.
    pub(crate) fn expect(&mut self, ids: BTreeSet<ContainerId>) {
        self.expected = ids;
    }

    /// Takes them over: brings what they have mounted up to date, gives them their limits, and writes them down.
    pub(crate) async fn adopt(
        &mut self,
        session: &Arc<dyn AgentSession>,
        sandbox: &SandboxSpec,
        adopted: Vec<Adopted>,
    ) -> Result<(), EngineError> {
        let mut changes = Vec::new();
        let mut lives = Vec::new();
        let mut revisions = Vec::new();
        for one in adopted {
            let delivered = self.deliveries.bring(session, &one.mounts.volumes).await;
            let agent = |action: &str| {
                let action = action.to_owned();
                move |cause| EngineError::Agent { action, cause }
            };
            for (id, revision) in delivered.map_err(agent("say which volumes it has"))? {
                let destination = one.mounts.destination(&id);
                let revision = revision.map_err(|error| EngineError::Mount {
                    destination,
                    cause: Cause::from(&error),
                })?;
                revisions.push((id, revision));
            }
            if one.new_limits {
                let update = session.update_container(&one.id, &one.spec.resources);
                bounded(WORK, update).await.map_err(agent("give the container its limits"))?;
            }
            let mark = first_mark(&self.node, sandbox, &one.spec).await?;
            let mark = LogMark { sequence: one.log_sequence, ..mark };
            let now = self.node.now();
            let life = ContainerLife {
                id: one.id,
                sandbox: self.sandbox.clone(),
                fingerprint: fingerprint(&one.spec),
                spec: with_image_ids(one.spec, one.mounts.image_ids),
                image_id: one.image_id,
                state: ContainerState::Created,
                wanted_at: Some(now),
                created_at: now,
                started_at: None,
                finished_at: None,
                exit_code: 0,
                reason: String::new(),
                message: String::new(),
                image_ready_at: Some(now),
                user: None,
                kept: one.mounts.kept,
            };
            changes.push(Change::Put(container::encode(&life)));
            changes.push(Change::Put(container::encode_mark(&life.id, &mark)));
            lives.push((life, mark));
        }
        self.node.commit(changes).await?;
        for (life, mark) in lives {
            self.expected.remove(&life.id);
            self.node.board.post_container(life.status());
            self.held.insert(life.id.clone(), Box::new(Held::new(life, mark)));
        }
        self.follow();
        self.keep_shared(Some(session));
        for (volume, revision) in revisions {
            self.node.follower.brought(&self.sandbox, &volume, Some(revision));
        }
        Ok(())
    }
}
