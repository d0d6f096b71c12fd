//! The life of an agent: listen, serve, and end in order.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::identity::{Identity, IdentityError};
use crate::invitation::Invitation;
use crate::listener::{Listen, ListenError, Listener};
use crate::machine::{Etc, Machine};
use crate::plugins::Containers;
use crate::times::BootTimes;
use crate::volumes::Volumes;

/// What an agent is made of.
pub struct Agent {
    /// Who it may become.
    pub invitation: Invitation,
    /// Where it listens; what the invitation says where this is absent.
    pub listen: Option<Listen>,
    /// Runs the containers.
    pub containers: Containers,
    /// Below it, everything is written.
    pub state: PathBuf,
    /// Whether hostname and kernel parameters are the pod's.
    pub owned: bool,
    /// The network namespace in which it listens, where that is not the pods': the interfaces of the machine are then set up
    /// as the node says when it binds it.
    pub control: Option<OwnedFd>,
    /// When things happened so far.
    pub times: Arc<BootTimes>,
}

/// An agent that listens.
pub struct Running {
    machine: Arc<Machine>,
    listener: Listener,
    shutdowns: mpsc::Receiver<Duration>,
}

impl Agent {
    /// Listens. From now on the node may dial.
    pub async fn listen(mut self) -> Result<Running, RunError> {
        let listen =
            self.listen.or_else(|| self.invitation.listen.take()).unwrap_or(Listen::DEFAULT);
        let identity = Arc::new(Identity::new(self.invitation, Arc::clone(&self.times))?);
        let etc = Etc::prepare(self.state.join("etc")).map_err(RunError::State)?;
        let volumes = Volumes::prepare(self.state.join("volumes")).map_err(RunError::State)?;
        let times = Arc::clone(&self.times);
        let apart = self.control.is_some();
        let (machine, shutdowns) =
            Machine::new(identity, self.containers, times, etc, volumes, self.owned, apart);
        let listener = listen.bind(self.control).await?;
        self.times.listening();
        tracing::info!(address = %listen, "listening");
        Ok(Running { machine, listener, shutdowns })
    }
}

impl Running {
    /// Serves until the node, or a signal, asks for the end; stops all containers then.
    pub async fn serve(self) -> Result<(), RunError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
        self.serve_until(async move {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
            }
            SIGNAL_GRACE
        })
        .await
    }

    /// Serves until the node asks for the end or `end` comes with the grace for containers. When `end` was first, dropping
    /// this future before it is done skips the grace.
    pub async fn serve_until(
        mut self,
        end: impl Future<Output = Duration>,
    ) -> Result<(), RunError> {
        let machine = Arc::clone(&self.machine);
        let mut served = std::pin::pin!(self.listener.serve(Arc::clone(&machine)));
        let grace = tokio::select! {
            result = served.as_mut() => return Ok(result?),
            Some(grace) = self.shutdowns.recv() => grace,
            grace = end => grace,
        };
        tracing::info!(grace_ms = grace.as_millis(), "stopping");
        // Sessions go on meanwhile: the node sees containers end.
        tokio::select! {
            result = served.as_mut() => result?,
            () = crate::server::stop_all(&machine, grace) => machine.volumes.clear(),
        }
        tokio::select! {
            result = served => Ok(result?),
            () = machine.quiet(FAREWELL) => Ok(()),
        }
    }
}

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It has no identity.
    #[error("the agent has no identity")]
    Identity(#[from] IdentityError),
    /// It cannot listen.
    #[error("the agent cannot be reached")]
    Listen(#[from] ListenError),
    /// The state directory cannot be used.
    #[error("the state directory cannot be used")]
    State(#[source] std::io::Error),
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
}

/// What containers get when the agent is asked to end by a signal.
const SIGNAL_GRACE: Duration = Duration::from_secs(10);

/// How long the node may take to read the last answer and hang up.
const FAREWELL: Duration = Duration::from_millis(300);
