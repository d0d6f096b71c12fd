//! What is held of one container, and how the machine's word changes it.

use std::time::SystemTime;

use tokio::sync::{mpsc, watch};

use super::{Doing, Held, KILLED, short};
use crate::engine::admission::{ContainerStanding, ContainerWish, at_rest};
use crate::engine::board::Reply;
use crate::engine::life::{ContainerLife, LogMark};
use crate::engine::log_pump::SharedMark;
use crate::error::EngineError;
use crate::session::{ObservedContainer, ObservedState};
use crate::status::ContainerState;

/// When the machine told of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// As it came about.
    AtOnce,
    /// With the list that begins a session: some time ago.
    Later,
}

impl Told {
    /// When it came about by the node's clock. A guest's clock may be wrong by any time, and its word counts only within what
    /// can be, and only where nothing better is known.
    fn moment(self, said: Option<SystemTime>, least: SystemTime, now: SystemTime) -> SystemTime {
        let at = match self {
            Self::AtOnce => now,
            Self::Later => said.unwrap_or(now).min(now),
        };
        at.max(least)
    }
}

impl Held {
    pub(super) fn new(life: ContainerLife, mark: LogMark) -> Self {
        let exited = watch::Sender::new(life.state == ContainerState::Exited);
        Self {
            life,
            mark: SharedMark::new(mark),
            pump: None,
            doing: None,
            exited,
            ending: false,
            updating: None,
            writing_back: false,
        }
    }

    pub(super) fn standing(&self) -> ContainerStanding {
        match &self.doing {
            Some(Doing { wish: ContainerWish::Start, .. }) => ContainerStanding::Starting,
            Some(Doing { wish: ContainerWish::Stop, .. }) => ContainerStanding::Stopping,
            Some(Doing { wish: ContainerWish::Remove, .. }) => ContainerStanding::Removing,
            Some(Doing { wish: ContainerWish::ReopenLog | ContainerWish::Update, .. }) | None => {
                at_rest(self.life.state)
            }
        }
    }

    pub(super) fn take(&mut self, seen: &ObservedContainer, told: Told, now: SystemTime) {
        let life = &mut self.life;
        if let Some(user) = &seen.user {
            life.user = Some(user.clone());
        }
        if life.state == ContainerState::Exited {
            return;
        }
        if seen.started_at.is_some() && life.started_at.is_none() {
            // An end that is told at once says nothing new about a start that was not.
            let told = if seen.state == ObservedState::Exited { Told::Later } else { told };
            life.started_at = Some(told.moment(seen.started_at, life.created_at, now));
        }
        match seen.state {
            // The watch may lag behind the answer to a start.
            ObservedState::Created => {}
            ObservedState::Running => life.state = ContainerState::Running,
            ObservedState::Exited => {
                life.state = ContainerState::Exited;
                let least = life.started_at.unwrap_or(life.created_at);
                life.finished_at = Some(told.moment(seen.finished_at, least, now));
                life.exit_code = seen.exit_code;
                life.reason = short(&seen.reason);
                life.message = short(&seen.message);
                self.exited.send_replace(true);
            }
        }
    }

    pub(super) fn end(&mut self, now: SystemTime, reason: &str, message: &str) {
        let life = &mut self.life;
        life.state = ContainerState::Exited;
        life.finished_at = Some(now);
        life.exit_code = KILLED;
        life.reason = reason.to_owned();
        life.message = message.to_owned();
        self.exited.send_replace(true);
    }

    pub(super) fn reopen(&mut self, reply: Reply<()>) {
        // Without a pump there is no open file: the next one opens whatever the name leads to.
        let Some(pump) = &self.pump else {
            let _ = reply.send(Ok(()));
            return;
        };
        if let Err(error) = pump.reopen.try_send(reply) {
            let (mpsc::error::TrySendError::Full(reply) | mpsc::error::TrySendError::Closed(reply)) =
                error;
            let busy = EngineError::Busy("the log is being reopened or ended".to_owned());
            let _ = reply.send(Err(busy));
        }
    }
}
