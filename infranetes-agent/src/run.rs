//! The life of an agent: listen, serve, and end in order.

use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::identity::{Identity, IdentityError};
use crate::invitation::Invitation;
use crate::listener::{Listen, ListenError, Listener, ServeError};
use crate::machine::{Etc, Interfaces, Machine};
use crate::meeting::{self, MeetingError};
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
    /// Whether it listens apart from the pods' network: the interfaces of the machine are then set up as the node says when it
    /// binds it.
    pub apart: bool,
    /// The machine's own addresses; none: the kernel is asked when the node wants to know.
    pub addresses: Vec<IpAddr>,
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
    pub fn listen(mut self) -> Result<Running, RunError> {
        let listen =
            self.listen.take().or_else(|| self.invitation.listen.take()).unwrap_or(Listen::DEFAULT);
        let listener = listen.bind(None)?;
        self.listen_on(listener, &listen)
    }

    /// Uses a socket that listens already, at this address.
    pub fn listen_on(self, listener: Listener, address: &Listen) -> Result<Running, RunError> {
        let identity = Arc::new(Identity::new(self.invitation, Arc::clone(&self.times))?);
        let etc = Etc::prepare(self.state.join("etc")).map_err(RunError::State)?;
        let volumes = Volumes::prepare(self.state.join("volumes")).map_err(RunError::State)?;
        let times = Arc::clone(&self.times);
        let interfaces = match self.addresses {
            _ if self.apart => Interfaces::Apart,
            addresses if addresses.is_empty() => Interfaces::Found,
            addresses => Interfaces::Given(addresses),
        };
        let (machine, shutdowns) =
            Machine::new(identity, self.containers, times, etc, volumes, self.owned, interfaces);
        self.times.listening();
        tracing::info!(address = %address, "listening");
        Ok(Running { machine, listener, shutdowns })
    }
}

impl Running {
    /// Waits for the node's first connection and what it has to say on it. Needs no runtime; without this call, serving begins
    /// with it.
    pub fn meet(&self) -> Result<(), RunError> {
        Ok(meeting::meet(&self.machine, &self.listener, None)?)
    }

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
        let mut end = std::pin::pin!(end);
        let listener = tokio::select! {
            listener = met(Arc::clone(&machine), self.listener) => listener?,
            _ = end.as_mut() => {
                tracing::info!("stopping before anybody came");
                return Ok(());
            }
        };
        let mut served = std::pin::pin!(listener.serve(Arc::clone(&machine)));
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

/// The listener of an agent that met its node. The thread that waits for the node ends with this future.
async fn met(machine: Arc<Machine>, listener: Listener) -> Result<Listener, RunError> {
    if machine.identity.is_enrolled() {
        return Ok(listener);
    }
    let (alive, watched) = UnixStream::pair().map_err(MeetingError::Sockets)?;
    let meeting = tokio::task::spawn_blocking(move || {
        meeting::meet(&machine, &listener, Some(&watched)).map(|()| listener)
    });
    let met = meeting.await.map_err(|error| MeetingError::Sockets(io::Error::other(error)))?;
    drop(alive);
    Ok(met?)
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
    /// It cannot meet its node.
    #[error("the agent cannot meet its node")]
    Meeting(#[from] MeetingError),
    /// It cannot serve.
    #[error("the agent cannot serve its node")]
    Serve(#[from] ServeError),
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
