//! The first connection to a machine: its agent enrols, and it gets its sandbox. The protocol's `MeetingRequest` says in what words.
//!
//! It comes before everything else that serves, on a CPU that may be emulated and runs each piece of code for the first time: so
//! there is no runtime, no HTTP/2 and no client certificate here, just TLS over sockets that are polled. It ends with an
//! enrolled agent: when it is bound, or the node left, or did not bind it in time. From then on sessions are served.
//!
//! Whoever is not the node gets the end of a TLS handshake, one message, and nothing.

mod conversation;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::ServerConfig;

use crate::identity::IdentityError;
use crate::lines;
use crate::listener::Listener;
use crate::machine::Machine;
use conversation::Conversation;

/// Serves first connections until the agent is enrolled and its node has no more to say on that connection; or until the
/// other end of `stop` is gone.
pub(crate) fn meet(
    machine: &Machine,
    listener: &Listener,
    stop: Option<&UnixStream>,
) -> Result<(), MeetingError> {
    listener.set_nonblocking().map_err(MeetingError::Sockets)?;
    let config = machine.identity.meeting_config()?;
    let held = Instant::now() + HELD;
    let mut room = Room { machine, config, guests: Vec::new(), turn: Turn::Free, deaf_until: None };
    loop {
        let ready = room.wait(listener, stop, held)?;
        if ready.stopped {
            return Ok(());
        }
        if Instant::now() >= held {
            // A machine that nobody comes to has to say how far it got.
            lines::release();
        }
        if ready.caller {
            room.let_in(listener);
        }
        room.listen_to(&ready.guests);
        room.show_out();
        if machine.identity.is_enrolled() && room.guests.iter().all(|guest| !guest.is_enrolled()) {
            return Ok(());
        }
    }
}

/// Everybody who is connected.
struct Room<'a> {
    machine: &'a Machine,
    config: Arc<ServerConfig>,
    guests: Vec<Conversation>,
    turn: Turn,
    /// No caller is let in until then: there were no descriptors left.
    deaf_until: Option<Instant>,
}

/// A node that waits for a boot dials again and again, and whatever carries its connections may hand them over all at once when
/// the machine has a network. Each handshake takes a slow processor long, and all but one are given up as soon as the first is
/// answered. So one is heard and the others wait, though not for ever: the first may be a stranger.
enum Turn {
    Free,
    Held {
        guest: u64,
        until: Instant,
    },
    /// It took too long: all are heard.
    Open,
}

/// Who has something to say.
#[derive(Default)]
struct Ready {
    stopped: bool,
    caller: bool,
    guests: Vec<u64>,
}

impl Room<'_> {
    fn wait(
        &mut self,
        listener: &Listener,
        stop: Option<&UnixStream>,
        held: Instant,
    ) -> Result<Ready, MeetingError> {
        let now = Instant::now();
        self.deaf_until = self.deaf_until.filter(|until| *until > now);
        // Who comes after the enrolment comes for a session, and waits for whoever serves those.
        let hears_callers = self.deaf_until.is_none()
            && self.guests.len() < GUESTS_MAX
            && !self.machine.identity.is_enrolled();
        let heard: Vec<&Conversation> =
            self.guests.iter().filter(|guest| self.turn.is_of(guest.id())).collect();
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = Vec::with_capacity(heard.len() + 2);
        fds.extend(stop.map(|stop| readable(stop.as_fd())));
        fds.extend(hears_callers.then(|| readable(listener.as_fd())));
        fds.extend(heard.iter().map(|guest| guest.poll_fd()));

        let ends = self.guests.iter().map(Conversation::deadline);
        let ends = ends.chain(self.turn.until()).chain(self.deaf_until);
        let end = ends.chain((held > now).then_some(held)).min();
        match poll(&mut fds, timeout(end, now)) {
            Ok(_) | Err(Errno::EINTR) => (),
            Err(error) => return Err(MeetingError::Sockets(error.into())),
        }
        let mut is_ready = fds.iter().map(|fd| fd.any().unwrap_or(false));
        Ok(Ready {
            stopped: stop.is_some() && is_ready.next() == Some(true),
            caller: hears_callers && is_ready.next() == Some(true),
            guests: heard.iter().zip(is_ready).filter(|(_, is)| *is).map(|(g, _)| g.id()).collect(),
        })
    }

    fn let_in(&mut self, listener: &Listener) {
        while self.guests.len() < GUESTS_MAX {
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, or a peer that left: the next one may work.
                    self.machine.refused("caller", &error);
                    self.deaf_until = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            };
            match Conversation::begin(stream, peer, Arc::clone(&self.config)) {
                Ok(guest) => self.guests.push(guest),
                Err(error) => self.machine.refused("caller", &error),
            }
        }
    }

    /// Hears those who are ready, the newest first: it is the one that its node has least likely given up.
    fn listen_to(&mut self, ready: &[u64]) {
        let now = Instant::now();
        if self.turn.until().is_some_and(|until| until <= now) {
            self.turn = Turn::Open;
        }
        if let (Turn::Free, Some(newest)) = (&self.turn, ready.iter().max()) {
            self.turn = Turn::Held { guest: *newest, until: now + TURN };
        }
        for guest in &mut self.guests {
            if ready.contains(&guest.id()) && self.turn.is_of(guest.id()) {
                guest.hear(self.machine);
            }
        }
    }

    /// Ends what is over. Who enrolled the agent is the only one left then.
    fn show_out(&mut self) {
        let now = Instant::now();
        let enrolled = self.machine.identity.is_enrolled();
        self.guests.retain(|guest| {
            if guest.deadline() <= now && !guest.is_over() {
                self.machine.refused(guest.peer(), &"it took too long");
                return false;
            }
            !guest.is_over() && (!enrolled || guest.is_enrolled())
        });
        if let Turn::Held { guest: holder, .. } = self.turn
            && self.guests.iter().all(|guest| guest.id() != holder)
        {
            self.turn = Turn::Free;
        }
        if self.guests.is_empty() {
            self.turn = Turn::Free;
        }
    }
}

impl Turn {
    fn is_of(&self, one: u64) -> bool {
        match self {
            Self::Free | Self::Open => true,
            Self::Held { guest, .. } => *guest == one,
        }
    }

    fn until(&self) -> Option<Instant> {
        match self {
            Self::Held { until, .. } => Some(*until),
            Self::Free | Self::Open => None,
        }
    }
}

fn timeout(end: Option<Instant>, now: Instant) -> PollTimeout {
    let Some(end) = end else { return PollTimeout::NONE };
    // Rounded up: a wait that ends a moment too early begins again at once.
    let left = end.saturating_duration_since(now) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// What connections come through.
pub(crate) trait Stream: std::io::Read + std::io::Write + AsFd + Send {}

impl<S: std::io::Read + std::io::Write + AsFd + Send> Stream for S {}

/// Why nobody can be met.
#[derive(Debug, thiserror::Error)]
pub enum MeetingError {
    /// TLS cannot be set up.
    #[error("the agent has no identity")]
    Identity(#[from] IdentityError),
    /// The sockets cannot be used.
    #[error("the sockets cannot be used")]
    Sockets(#[source] std::io::Error),
}

/// The node needs one, for a moment a few; the rest is room for strangers, who are cut off after a while.
const GUESTS_MAX: usize = 32;
/// How long a connection waits for one that came before it; a node waits longer for an answer.
const TURN: Duration = Duration::from_millis(500);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long the agent's lines may wait for the end of a boot.
const HELD: Duration = Duration::from_secs(1);
