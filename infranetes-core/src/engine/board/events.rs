//! What changed, told to those who asked: each with how its pod is right after.
//!
//! A change is told by comparing what the board had with what it gets, so nothing that is shown is left out. Nobody waits for a
//! reader: one that falls behind loses its stream, and starts over with a list.

use std::sync::Arc;

use futures::stream::{BoxStream, unfold};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::Inner;
use crate::engine::parts::WallClock;
use crate::error::EngineError;
use crate::ids::SandboxId;
use crate::status::{ContainerState, ContainerStatus, Event, EventKind, Phase, SandboxStatus};

/// A stream of changes. It ends with its first error.
pub type Events = BoxStream<'static, Result<Arc<Event>, EngineError>>;

/// Tells changes.
pub(super) struct Teller {
    sender: broadcast::Sender<Arc<Event>>,
    over: watch::Sender<bool>,
    clock: Arc<dyn WallClock>,
}

impl Teller {
    pub(super) fn new(clock: Arc<dyn WallClock>) -> Self {
        Self { sender: broadcast::Sender::new(EVENTS_MAX), over: watch::Sender::new(false), clock }
    }

    /// Everything from now on.
    pub(super) fn subscribe(&self) -> Result<Events, EngineError> {
        if self.sender.receiver_count() >= READERS_MAX {
            return Err(EngineError::Busy(format!("{READERS_MAX} readers of events are there")));
        }
        let state = Some((self.sender.subscribe(), self.over.subscribe()));
        Ok(Box::pin(unfold(state, |state| async move {
            let (mut events, mut over) = state?;
            let next = tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => Err(EngineError::ShuttingDown),
                event = events.recv() => event.map_err(fell_behind),
            };
            let state = next.is_ok().then_some((events, over));
            Some((next, state))
        })))
    }

    /// Ends all streams.
    pub(super) fn end(&self) {
        self.over.send_replace(true);
    }

    /// Tells of a container, with its pod as it is now.
    pub(super) fn container(
        &self,
        inner: &Inner,
        container: &ContainerStatus,
        kinds: &[EventKind],
    ) {
        let sandbox = inner.sandboxes.get(&container.sandbox);
        let status = sandbox.and_then(|posted| posted.status.as_ref());
        self.tell(inner, container.id.as_str(), &container.sandbox, status, kinds);
    }

    /// Tells of a sandbox.
    pub(super) fn sandbox(&self, inner: &Inner, sandbox: &SandboxStatus, kinds: &[EventKind]) {
        self.tell(inner, sandbox.id.as_str(), &sandbox.id, Some(sandbox), kinds);
    }

    fn tell(
        &self,
        inner: &Inner,
        id: &str,
        sandbox_id: &SandboxId,
        sandbox: Option<&SandboxStatus>,
        kinds: &[EventKind],
    ) {
        if kinds.is_empty() || self.sender.receiver_count() == 0 {
            return;
        }
        let own = |one: &&ContainerStatus| one.sandbox == *sandbox_id;
        let containers: Vec<_> = inner.containers.values().filter(own).cloned().collect();
        for kind in kinds {
            // A reader may have gone in this moment.
            let _ = self.sender.send(Arc::new(Event {
                id: id.to_owned(),
                kind: *kind,
                at: self.clock.now(),
                sandbox: sandbox.cloned(),
                containers: containers.clone(),
            }));
        }
    }
}

/// What was told of a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    created: bool,
    started: bool,
    stopped: bool,
}

impl Told {
    /// Takes over how a sandbox is, and says what is new about it.
    pub(super) fn advance(&mut self, status: &SandboxStatus) -> Vec<EventKind> {
        let mut news = Vec::new();
        let mut tell = |told: &mut bool, kind| {
            if !std::mem::replace(told, true) {
                news.push(kind);
            }
        };
        // What boots is not listed, and so nobody knows of it yet.
        if status.is_listed() {
            tell(&mut self.created, EventKind::Created);
        }
        if status.is_ready() {
            tell(&mut self.started, EventKind::Started);
        }
        let ended = match status.phase {
            Phase::Stopped | Phase::Failed => true,
            Phase::Removing => status.machine.is_none(),
            _ => false,
        };
        if ended && self.started {
            tell(&mut self.stopped, EventKind::Stopped);
        }
        news
    }

    /// What is left to tell when it is gone.
    pub(super) fn end(self) -> &'static [EventKind] {
        match self {
            Self { created: false, .. } => &[],
            Self { started: true, stopped: false, .. } => &[EventKind::Stopped, EventKind::Deleted],
            _ => &[EventKind::Deleted],
        }
    }
}

/// What is new about a container.
pub(super) fn news(old: Option<&ContainerStatus>, new: &ContainerStatus) -> Vec<EventKind> {
    let mut news = Vec::new();
    if old.is_none() {
        news.push(EventKind::Created);
    }
    if new.started_at.is_some() && old.is_none_or(|old| old.started_at.is_none()) {
        news.push(EventKind::Started);
    }
    let has_ended = |one: &ContainerStatus| one.state == ContainerState::Exited;
    if has_ended(new) && !old.is_some_and(has_ended) {
        news.push(EventKind::Stopped);
    }
    news
}

/// What is left to tell of a container when it is gone.
pub(super) fn farewell(last: &ContainerStatus) -> &'static [EventKind] {
    if last.started_at.is_some() && last.state != ContainerState::Exited {
        &[EventKind::Stopped, EventKind::Deleted]
    } else {
        &[EventKind::Deleted]
    }
}

fn fell_behind(error: RecvError) -> EngineError {
    match error {
        RecvError::Lagged(count) => EngineError::Busy(format!(
            "the reader of events fell {count} events behind, so that some are lost; list, then subscribe anew"
        )),
        RecvError::Closed => EngineError::ShuttingDown,
    }
}

/// How far a reader may fall behind.
const EVENTS_MAX: usize = 512;
const READERS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use futures::StreamExt;

    use super::*;
    use crate::engine::board::Board;
    use crate::ids::ContainerId;
    use crate::status::Timeline;
    use crate::testing;

    struct Midnight;

    impl WallClock for Midnight {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }
    }

    fn container(number: u16, state: ContainerState) -> ContainerStatus {
        let now = SystemTime::UNIX_EPOCH;
        let [high, low] = number.to_be_bytes();
        let mut id = [0; 32];
        (id[0], id[1]) = (high, low);
        ContainerStatus {
            id: ContainerId::from_random(id),
            sandbox: SandboxId::from_random([9; 32]),
            spec: Arc::new(testing::container_spec("c")),
            image_id: String::new(),
            state,
            wanted_at: None,
            created_at: now,
            started_at: (state != ContainerState::Created).then_some(now),
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image_ready_at: None,
            user: None,
        }
    }

    fn sandbox(phase: Phase) -> SandboxStatus {
        SandboxStatus {
            id: SandboxId::from_random([9; 32]),
            spec: Arc::new(testing::sandbox_spec("p")),
            phase,
            created_at: SystemTime::UNIX_EPOCH,
            ips: Vec::new(),
            machine: None,
            reason: String::new(),
            timeline: Timeline::default(),
        }
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_that_it_fell_behind_and_nobody_waits_for_it() {
        let board = Board::new(Arc::new(Midnight));
        let (mut slow, mut quick) = (board.events().unwrap(), board.events().unwrap());
        let count = u16::try_from(EVENTS_MAX + 1).unwrap();
        for number in 0..count {
            board.post_container(container(number, ContainerState::Created));
            assert!(quick.next().await.unwrap().is_ok());
        }
        let told = slow.next().await.unwrap().unwrap_err();
        assert!(told.to_string().contains("fell 1 events behind"), "{told}");
        assert!(slow.next().await.is_none());
        board.end_events();
        assert!(matches!(quick.next().await, Some(Err(EngineError::ShuttingDown))));
    }

    #[tokio::test]
    async fn readers_are_few() {
        let board = Board::new(Arc::new(Midnight));
        let readers: Vec<_> = (0..READERS_MAX).map(|_| board.events().unwrap()).collect();
        assert!(matches!(board.events().err(), Some(EngineError::Busy(_))));
        drop(readers);
        assert!(board.events().is_ok());
    }

    #[test]
    fn a_sandbox_is_told_when_it_is_listed_ready_and_ended_each_once() {
        use EventKind::{Created, Deleted, Started, Stopped};
        use Phase::{Booted, Failed, Intended, Ready, Removing, Stopping};
        let cases: [(&[Phase], &[EventKind]); 5] = [
            (&[Intended, Booted], &[]),
            (&[Intended, Ready, Ready], &[Created, Started, Stopped, Deleted]),
            (&[Ready, Stopping, Phase::Stopped, Removing], &[Created, Started, Stopped, Deleted]),
            (&[Intended, Failed, Removing], &[Created, Deleted]),
            (&[Failed, Intended, Ready, Failed], &[Created, Started, Stopped, Deleted]),
        ];
        for (phases, expected) in cases {
            let mut told = Told::default();
            let mut all: Vec<_> =
                phases.iter().flat_map(|phase| told.advance(&sandbox(*phase))).collect();
            all.extend(told.end());
            assert_eq!(all, expected, "{phases:?}");
        }
    }

    #[test]
    fn a_container_is_told_step_by_step_even_if_the_node_saw_only_its_end() {
        use ContainerState::{Exited, Running};
        use EventKind::{Created, Deleted, Started, Stopped};
        let made = container(1, ContainerState::Created);
        let (runs, ended) = (container(1, Running), container(1, Exited));
        let mut failed = container(1, Exited);
        failed.started_at = None;
        let cases: [(_, _, &[EventKind]); 6] = [
            (None, &made, &[Created]),
            (Some(&made), &made, &[]),
            (Some(&made), &runs, &[Started]),
            (Some(&made), &ended, &[Started, Stopped]),
            (Some(&made), &failed, &[Stopped]),
            (Some(&runs), &ended, &[Stopped]),
        ];
        for (old, new, expected) in cases {
            assert_eq!(news(old, new), expected, "{old:?} {new:?}");
        }
        assert_eq!(farewell(&runs), [Stopped, Deleted]);
        assert_eq!(farewell(&ended), [Deleted]);
        assert_eq!(farewell(&made), [Deleted]);
    }
}
