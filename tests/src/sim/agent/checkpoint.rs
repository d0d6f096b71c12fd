//! Agents whose machine is written down, and those that wake up out of that.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use infranetes_core::error::FailureKind;
use infranetes_core::ids::ContainerId;
use infranetes_core::session::{ObservedState, SessionError};
use tokio::time::Instant;

use super::{Agent, Fleet, SimSession, refused};

impl Fleet {
    /// Writes an agent down as it is.
    pub fn write_down(&self, machine: &str, directory: &str) {
        let agent = self.with(machine, |agent| agent.clone());
        if !agent.holding {
            self.promises.broken("a machine was written down whose containers run");
        }
        let mut written = self.written_down.lock().unwrap_or_else(PoisonError::into_inner);
        written.insert(directory.to_owned(), agent);
    }

    /// A machine was made of what was written to a directory; the same again changes nothing.
    pub fn wake_up(&self, machine: &str, directory: &str) {
        let written = self.written_down.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(agent) = written.get(directory).cloned() else {
            return self.promises.broken("a machine was made of a checkpoint that nobody wrote");
        };
        drop(written);
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.entry(machine.to_owned()).or_insert(agent);
    }

    /// Whether containers of a machine stand still.
    pub fn stands_still(&self, machine: &str) -> bool {
        self.with(machine, |agent| agent.holding || !agent.held.is_empty())
    }

    /// By which name the agent of a machine is known.
    pub fn name_of(&self, machine: &str) -> Option<String> {
        self.with(machine, |agent| agent.enrolled_as.clone())
    }

    /// The name that stands in a checkpoint.
    pub fn written_name(&self, directory: &str) -> Option<String> {
        let written = self.written_down.lock().unwrap_or_else(PoisonError::into_inner);
        written.get(directory).and_then(|agent| agent.enrolled_as.clone())
    }
}

impl Agent {
    /// The same sandbox means that the node knows of no checkpoint; another one, that this is what was made of it.
    pub(super) fn is_bound_to(&mut self, sandbox: &str) {
        if !self.holding {
            return;
        }
        self.holding = false;
        if self.sandbox == sandbox {
            self.held.clear();
        } else {
            self.sandbox = sandbox.to_owned();
        }
    }

    pub(super) fn shown(&self, id: &ContainerId, state: ObservedState) -> ObservedState {
        match state {
            ObservedState::Running if self.held.contains(id) => ObservedState::Created,
            state => state,
        }
    }
}

impl SimSession {
    pub(super) async fn take_name(&self, name: &str) -> Result<(), SessionError> {
        let until = Instant::now() + self.0.fleet.certificate_life;
        let take = |agent: &mut Agent| {
            agent.enrolled_as = Some(name.to_owned());
            agent.trusted_until = Some(until);
            Ok(())
        };
        self.0.call("rename", take).await
    }

    pub(super) async fn stand_still(&self, containers: &[ContainerId]) -> Result<(), SessionError> {
        let ids: BTreeSet<ContainerId> = containers.iter().cloned().collect();
        let hold = |agent: &mut Agent| {
            if agent.holding || !agent.held.is_empty() {
                return Err(refused(FailureKind::WrongState, "containers stand still already"));
            }
            agent.holding = true;
            agent.held = ids;
            Ok(())
        };
        self.0.call("begin checkpoint", hold).await
    }

    pub(super) async fn go_on(&self) -> Result<bool, SessionError> {
        let end = |agent: &mut Agent| {
            let held = std::mem::take(&mut agent.holding);
            if held {
                agent.held.clear();
            }
            Ok(held)
        };
        self.0.call("end checkpoint", end).await
    }
}
