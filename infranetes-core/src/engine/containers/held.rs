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

impl Held {
    pub(super) fn new(life: ContainerLife, mark: LogMark) -> Self {
        let exited = watch::Sender::new(life.state == ContainerState::Exited);
        Self { life, mark: SharedMark::new(mark), pump: None, doing: None, exited }
    }

    pub(super) fn standing(&self) -> ContainerStanding {
        match &self.doing {
            Some(Doing { wish: ContainerWish::Start, .. }) => ContainerStanding::Starting,
            Some(Doing { wish: ContainerWish::Stop, .. }) => ContainerStanding::Stopping,
            Some(Doing { wish: ContainerWish::Remove, .. }) => ContainerStanding::Removing,
            Some(Doing { wish: ContainerWish::ReopenLog, .. }) | None => at_rest(self.life.state),
        }
    }

    pub(super) fn take(&mut self, seen: &ObservedContainer) {
        let life = &mut self.life;
        if life.state == ContainerState::Exited {
            return;
        }
        // The machine's clock may differ from the node's: what was told once stays, and an end is never before a start.
        life.started_at = life.started_at.or(seen.started_at);
        match seen.state {
            // The watch may lag behind the answer to a start.
            ObservedState::Created => {}
            ObservedState::Running => life.state = ContainerState::Running,
            ObservedState::Exited => {
                life.state = ContainerState::Exited;
                life.finished_at = seen.finished_at.max(life.started_at);
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
