//! What the machine says of its containers, and what its end means for them.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::timeout;

use super::held::Told;
use super::{Containers, Done};
use crate::engine::admission::ContainerWish;
use crate::engine::timeouts::LOG_REST;
use crate::ids::ContainerId;
use crate::record::{Change, container};
use crate::session::{AgentSession, ObservedContainer, ObservedState, WatchEvent};
use crate::status::ContainerState;

impl Containers {
    /// Applies what the machine tells by itself.
    pub(crate) async fn observe(&mut self, event: WatchEvent, session: &Arc<dyn AgentSession>) {
        match event {
            WatchEvent::Snapshot(seen) => {
                let known: Vec<ContainerId> = self.held.keys().cloned().collect();
                for id in known.iter().filter(|id| !seen.iter().any(|one| one.id == **id)) {
                    self.vanished(id).await;
                }
                for one in seen {
                    if self.held.contains_key(&one.id) {
                        self.changed(one, Told::Later, session).await;
                    } else if !self.coming.contains_key(&one.id) && !self.expected.contains(&one.id)
                    {
                        self.discard(one.id, Some(session));
                    }
                }
                self.follow();
                self.refresh(Some(session));
                self.keep_shared(Some(session));
            }
            WatchEvent::Changed(seen) => self.changed(seen, Told::AtOnce, session).await,
            WatchEvent::Removed(id) => self.vanished(&id).await,
        }
    }

    pub(super) async fn changed(
        &mut self,
        seen: ObservedContainer,
        told: Told,
        session: &Arc<dyn AgentSession>,
    ) {
        let now = self.node.now();
        let exits = seen.state == ObservedState::Exited;
        if exits && self.begin_write_back(&seen, told, now, session) {
            self.pump(&seen.id, Some(session));
        } else {
            self.told(&seen, told, now, Some(session)).await;
        }
    }

    /// Takes what the machine said of a container whose files are on the node.
    pub(super) async fn told(
        &mut self,
        seen: &ObservedContainer,
        told: Told,
        now: SystemTime,
        session: Option<&Arc<dyn AgentSession>>,
    ) {
        let exits = seen.state == ObservedState::Exited;
        if exits && session.is_some_and(|session| self.awaits_output(seen, told, now, session)) {
            return;
        }
        self.ended(seen, told, now, session).await;
    }

    /// Whoever is told that a container ended reads its log next, so the rest of that comes first. `false` where there is
    /// nothing to wait for.
    fn awaits_output(
        &mut self,
        seen: &ObservedContainer,
        told: Told,
        now: SystemTime,
        session: &Arc<dyn AgentSession>,
    ) -> bool {
        let Some(held) = self.held.get_mut(&seen.id) else { return false };
        if held.ending {
            return true;
        }
        if held.life.state == ContainerState::Exited || held.mark.get().finished {
            return false;
        }
        held.ending = true;
        self.pump(&seen.id, Some(session));
        let pump = self.held.get(&seen.id).and_then(|held| held.pump.as_ref());
        let Some(mut drained) = pump.map(|pump| pump.drained.clone()) else { return false };
        let seen = Box::new(seen.clone());
        self.work.spawn(async move {
            // A pump that breaks off, or is as slow as that, is no reason to tell it later still.
            let _ = timeout(LOG_REST, drained.wait_for(|drained| *drained)).await;
            Done::Drained(seen, told, now)
        });
        true
    }

    pub(super) async fn ended(
        &mut self,
        seen: &ObservedContainer,
        told: Told,
        now: SystemTime,
        session: Option<&Arc<dyn AgentSession>>,
    ) {
        self.took(seen, told, now).await;
        self.pump(&seen.id, session);
    }

    async fn took(&mut self, seen: &ObservedContainer, told: Told, now: SystemTime) {
        let Some(held) = self.held.get_mut(&seen.id) else { return };
        let before = held.life.clone();
        held.ending = false;
        held.take(seen, told, now);
        if held.life != before {
            let exited = held.life.state == ContainerState::Exited;
            self.keep(&seen.id).await;
            if exited {
                self.follow();
            }
        }
    }

    /// The machine does not know it any more, and we did not ask for that.
    pub(super) async fn vanished(&mut self, id: &ContainerId) {
        let now = self.node.now();
        let Some(held) = self.held.get_mut(id) else { return };
        let removal = held.doing.as_ref().is_some_and(|doing| doing.wish == ContainerWish::Remove);
        if !removal && held.life.state != ContainerState::Exited {
            held.end(now, "Error", "its machine does not know it any more");
            self.keep(id).await;
        }
    }

    /// The machine is gone, or is about to be: what has not ended has ended now.
    pub(crate) async fn machine_gone(&mut self, reason: &str, message: &str) {
        self.abandon_coming();
        let now = self.node.now();
        let mut changes = Vec::new();
        for held in self.held.values_mut() {
            if let Some(pump) = held.pump.take() {
                pump.abort.abort();
            }
            if held.life.state != ContainerState::Exited {
                held.end(now, reason, message);
                changes.push(Change::Put(container::encode(&held.life)));
                self.node.board.post_container(held.life.status());
            }
        }
        self.follow();
        if !changes.is_empty()
            && let Err(error) = self.node.commit(changes).await
        {
            tracing::warn!(sandbox = %self.sandbox, error = %error, "the end of containers could not be recorded");
        }
    }
}
