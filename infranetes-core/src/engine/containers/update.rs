//! New limits for a container: the machine first, then the record, so that what is shown is what holds.

use std::sync::Arc;

use super::{Containers, Done, denied, guarded, unreachable};
use crate::engine::admission::{Admission, ContainerWish, admit_container};
use crate::engine::board::Reply;
use crate::engine::life::ContainerLife;
use crate::engine::link::bounded;
use crate::engine::timeouts::WORK;
use crate::error::EngineError;
use crate::ids::ContainerId;
use crate::record::{Change, container};
use crate::session::AgentSession;
use crate::spec::ContainerResources;

impl Containers {
    /// Begins an update, one at a time for each container.
    pub(crate) fn update(
        &mut self,
        id: &ContainerId,
        resources: ContainerResources,
        session: Option<&Arc<dyn AgentSession>>,
        reply: Reply<()>,
    ) {
        let refusal = match self.held.get(id) {
            None => Some(EngineError::ContainerNotFound(id.clone())),
            Some(held) => match admit_container(held.standing(), ContainerWish::Update) {
                Admission::Deny(denial) => Some(denied(id, held.life.state, denial)),
                _ if held.updating.is_some() => {
                    Some(EngineError::Busy(format!("container {id} is just getting other limits")))
                }
                _ => None,
            },
        };
        let refusal = refusal.or_else(|| session.is_none().then(|| unreachable(&self.sandbox)));
        let (None, Some(session), Some(held)) = (&refusal, session, self.held.get_mut(id)) else {
            let error = refusal.unwrap_or_else(|| EngineError::ContainerNotFound(id.clone()));
            let _ = reply.send(Err(error));
            return;
        };
        held.updating = Some(reply);
        let (name, session) = (id.clone(), session.clone());
        self.work.spawn(async move {
            let work = async {
                bounded(WORK, session.update_container(&name, &resources)).await.map_err(|cause| {
                    EngineError::Agent { action: "change the container's limits".to_owned(), cause }
                })
            };
            let result = guarded(work).await;
            Done::Updated(name.clone(), Box::new(resources), result)
        });
    }

    /// What is not written down is not shown: the caller asks again, and the machine takes the same limits twice.
    async fn record(&mut self, life: ContainerLife) -> Result<(), EngineError> {
        self.node.commit(vec![Change::Put(container::encode(&life))]).await?;
        self.node.board.post_container(life.status());
        if let Some(held) = self.held.get_mut(&life.id) {
            held.life = life;
        }
        Ok(())
    }

    pub(super) async fn updated(
        &mut self,
        id: &ContainerId,
        resources: &ContainerResources,
        result: Result<(), EngineError>,
    ) {
        let Some(held) = self.held.get_mut(id) else { return };
        let Some(reply) = held.updating.take() else { return };
        let result = match result {
            Ok(()) => {
                let mut life = held.life.clone();
                let spec = Arc::make_mut(&mut life.spec);
                spec.resources = spec.resources.changed_by(resources);
                self.record(life).await
            }
            error => error,
        };
        let _ = reply.send(result);
    }
}
