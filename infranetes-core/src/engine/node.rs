//! What all tasks of an engine share.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::engine::board::Board;
use crate::engine::calls::Calls;
use crate::engine::config::{EngineConfig, HandlerConfig};
use crate::engine::follow::Follower;
use crate::engine::parts::EngineParts;
use crate::engine::share::Shares;
use crate::engine::timeouts::COMMIT;
use crate::error::EngineError;
use crate::ids::{ContainerId, SandboxId};
use crate::record::{Change, RecordError};

/// The shared part.
pub(crate) struct Node {
    pub(crate) config: EngineConfig,
    pub(crate) parts: EngineParts,
    /// Bounds the create calls that are on their way.
    pub(crate) creates: Semaphore,
    /// Bounds how many ask at once whether their machines still are.
    pub(crate) looks: Semaphore,
    pub(crate) board: Board,
    pub(crate) follower: Follower,
    pub(crate) shares: Shares,
    /// One restore looks at a time whether somebody else has what it wants.
    pub(crate) restoring: tokio::sync::Mutex<()>,
    tasks: Mutex<JoinSet<()>>,
}

impl Node {
    pub(crate) fn new(config: EngineConfig, parts: EngineParts) -> Self {
        let creates = Semaphore::new(config.concurrent_creates);
        let board = Board::new(parts.clock.clone());
        let follower = Follower::default();
        Self {
            config,
            parts,
            creates,
            looks: Semaphore::new(LOOKS_MAX),
            board,
            follower,
            shares: Shares::default(),
            restoring: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// Begins a task that lives as long as the engine.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Ends all tasks where they stand, and all that they began.
    pub(crate) fn abort(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.parts.clock.now()
    }

    pub(crate) fn handler(&self, name: &str) -> Result<&HandlerConfig, EngineError> {
        self.config.handlers.get(name).ok_or_else(|| EngineError::HandlerUnavailable {
            handler: name.to_owned(),
            problem: "the configuration has no handler of this name".to_owned(),
        })
    }

    /// The provider instance of this name, with a handler's deadline for its calls.
    pub(crate) fn calls(&self, handler: &str, provider: &str) -> Result<Calls, EngineError> {
        let unavailable = |problem: String| EngineError::HandlerUnavailable {
            handler: handler.to_owned(),
            problem,
        };
        let limit = match self.config.handlers.get(handler) {
            Some(handler) => handler.timeouts.provider_call,
            // The handler went out of the configuration while a machine of it lives.
            None => crate::engine::config::PhaseTimeouts::default().provider_call,
        };
        match self.parts.providers.get(provider) {
            Some(Ok(instance)) => Ok(Calls::new(provider, instance.clone(), limit)),
            Some(Err(problem)) => Err(unavailable(problem.clone())),
            None => Err(unavailable(format!("there is no provider {provider:?}"))),
        }
    }

    pub(crate) async fn commit(&self, changes: Vec<Change>) -> Result<(), EngineError> {
        let answer = match timeout(COMMIT, self.parts.records.commit(changes)).await {
            Ok(answer) => answer,
            Err(_) => Err(RecordError::Io(
                std::io::Error::new(
                    std::io::ErrorKind::TimedOut,
                    format!("the disk did not answer within {COMMIT:?}"),
                )
                .into(),
            )),
        };
        answer.map_err(|error| EngineError::Record(Box::new(error)))
    }

    pub(crate) fn random_sandbox_id(&self) -> SandboxId {
        SandboxId::from_random(self.random())
    }

    pub(crate) fn random_container_id(&self) -> ContainerId {
        ContainerId::from_random(self.random())
    }

    fn random(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.parts.entropy.fill(&mut bytes);
        bytes
    }
}

/// One look takes as long as a provider's call; a node has thousands of sandboxes, and a cloud counts calls.
const LOOKS_MAX: usize = 64;

/// Spreads the pauses of sandboxes that fail at the same moment.
pub(crate) fn spread(id: &SandboxId) -> u8 {
    id.as_str().bytes().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
}
