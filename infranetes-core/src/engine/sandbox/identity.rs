//! Who the agent of a sandbox is, after a checkpoint.
//!
//! Whoever has a checkpoint has the key of the agent that was in it. So both machines leave it: the one that goes on, and each that is
//! made of it. That one is to come is written down before there is a checkpoint; the agent takes it as soon as it can be told to,
//! at the latest when it is bound again.

use super::SandboxTask;
use crate::engine::containers::unreachable;
use crate::engine::link::bounded;
use crate::engine::timeouts::ROTATION;
use crate::error::EngineError;
use crate::session::AgentIdentity;

impl SandboxTask {
    /// Writes down that the agent is to have another name.
    pub(super) async fn leave_name(&mut self) -> Result<(), EngineError> {
        let agent = |cause| EngineError::Agent { action: "have another name".to_owned(), cause };
        let name = self.node.parts.connector.another_name().map_err(agent)?;
        let bound = self.seen.bound;
        let machine = self.life.machine.as_mut().filter(|machine| bound && !machine.doomed);
        let machine = machine.ok_or_else(|| unreachable(&self.life.id))?;
        machine.next_name.get_or_insert(name);
        self.save().await
    }

    /// Gives the agent the name that is written down, and connects to it anew: the keys of the session stand in the checkpoint, too.
    pub(super) async fn take_name(&mut self) -> Result<(), EngineError> {
        let name = self.life.machine.as_ref().and_then(|machine| machine.next_name.clone());
        let Some(name) = name else { return Ok(()) };
        let session = self.link.borrow().clone().ok_or_else(|| unreachable(&self.life.id))?;
        let agent = |cause| EngineError::Agent { action: "take another name".to_owned(), cause };
        bounded(ROTATION, session.rename(&name)).await.map_err(agent)?;
        self.named(name).await;
        self.link_broke();
        Ok(())
    }

    /// The agent has its new name. A record that lags behind has both.
    pub(super) async fn named(&mut self, name: String) {
        tracing::info!(sandbox = %self.life.id, "its agent has a name that is in no checkpoint");
        if let Some(machine) = &mut self.life.machine {
            machine.identity = Some(AgentIdentity { agent_name: name });
            machine.next_name = None;
        }
        self.save_or_later().await;
        self.publish();
    }
}
