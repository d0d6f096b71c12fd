//! Where the node reaches the agent: a listening socket, TLS on every connection, HTTP/2 in it.
//!
//! What a connection may say is decided when its handshake ends: an agent without certificate serves `Enrolment` on it, an
//! enrolled one `Agent`. A handshake that fails gets nothing but its TLS alert.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use infranetes_agent_protocol::v1::agent_server::AgentServer;
use infranetes_agent_protocol::v1::enrolment_server::EnrolmentServer;
use infranetes_agent_protocol::{ENROLMENT_EXPORTER_LABEL, MAX_MESSAGE_BYTES};
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::{Channel, IdentityError};
use crate::lines::Pace;
use crate::machine::Machine;
use crate::server::{EnrolmentSession, Session};

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `tcp://ADDRESS:PORT`
    Tcp(SocketAddr),
    /// `unix:///ABSOLUTE/PATH`
    Unix(PathBuf),
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

impl Listen {
    /// The address of an agent that was not told another one.
    pub const DEFAULT: Self =
        Self::Tcp(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 7443));

    /// Parses an address.
    pub fn parse(text: &str) -> Result<Self, ListenError> {
        let invalid = || ListenError::NoAddress(text.to_owned());
        if let Some(address) = text.strip_prefix("tcp://") {
            return address.parse().map(Self::Tcp).map_err(|_| invalid());
        }
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            _ => Err(invalid()),
        }
    }

    /// Listens, in a network namespace if one is given. A unix socket is for its owner alone; a socket that a dead agent left
    /// behind is replaced.
    pub async fn bind(&self, namespace: Option<OwnedFd>) -> Result<Listener, ListenError> {
        let failed = |cause| ListenError::NotBound { address: self.to_string(), cause };
        match self {
            Self::Tcp(address) => match namespace {
                None => TcpListener::bind(address).await,
                Some(namespace) => bind_in(namespace, *address).and_then(TcpListener::from_std),
            }
            .map(Listener::Tcp)
            .map_err(failed),
            Self::Unix(path) => bind_unix(path).map(Listener::Unix).map_err(failed),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Listener {
    /// Serves connections until the future is dropped.
    pub async fn serve(self, machine: Arc<Machine>) -> Result<(), IdentityError> {
        let acceptor = TlsAcceptor::from(machine.identity.tls_config()?);
        let mut pace = Pace::default();
        loop {
            let accepted = match &self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                    // Small messages go back and forth; waiting for more of them only delays.
                    let _ = stream.set_nodelay(true);
                    serve_connection(&machine, &acceptor, stream, peer.to_string());
                }),
                Self::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    serve_connection(&machine, &acceptor, stream, "unix".to_owned());
                }),
            };
            if let Err(error) = accepted {
                // Out of descriptors, or a peer that left: the next accept may work.
                if pace.permits() {
                    tracing::warn!(%error, "a connection could not be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A socket belongs for ever to the namespace in which it was made; a thread can be in another one than its process.
fn bind_in(namespace: OwnedFd, address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let bound = std::thread::Builder::new().spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })?;
    bound.join().map_err(|_| std::io::Error::other("the thread that listens died"))?
}

fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(std::io::ErrorKind::AddrInUse.into());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn serve_connection<S>(machine: &Arc<Machine>, acceptor: &TlsAcceptor, stream: S, peer: String)
where
    S: Peer,
{
    let Ok(place) = Arc::clone(&machine.places).try_acquire_owned() else {
        machine.refused(&peer, &"too many connections");
        return;
    };
    let machine = Arc::clone(machine);
    let acceptor = acceptor.clone();
    tokio::spawn(async move {
        let _until_the_end = place;
        let handshake = async {
            let turn = its_turn(&machine, &stream).await;
            let left = stream.has_left().await;
            (turn, if left { None } else { Some(acceptor.accept(stream).await) })
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok((_turn, Some(Ok(tls)))) => serve_tls(machine, tls).await,
            Ok((_, Some(Err(error)))) => machine.refused(&peer, &error),
            Ok((_, None)) => tracing::debug!(peer, "a connection was given up by its peer"),
            Err(_) => machine.refused(&peer, &"no handshake in time"),
        }
    });
}

/// A node that waits for a boot dials again and again, and whatever carries its connections may hand them over all at once
/// when the machine has a network. Each would cost a handshake, which takes a slow processor long, and all but one are given up
/// as soon as the first is answered. So before the enrolment, one goes on and the others wait, though not for ever: the first may
/// be a stranger.
async fn its_turn(machine: &Machine, stream: &impl Peer) -> Option<OwnedSemaphorePermit> {
    stream.has_left().await;
    if machine.identity.is_enrolled() {
        return None;
    }
    let turn = Arc::clone(&machine.turn).acquire_owned();
    tokio::time::timeout(TURN_TIMEOUT, turn).await.ok()?.ok()
}

/// What connections come through.
trait Peer: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static {
    /// Waits for the peer's first bytes, and says whether it will send no more than what is there already.
    fn has_left(&self) -> impl Future<Output = bool> + Send;
}

impl Peer for TcpStream {
    async fn has_left(&self) -> bool {
        self.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed())
    }
}

impl Peer for UnixStream {
    async fn has_left(&self) -> bool {
        self.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed())
    }
}

async fn serve_tls<S>(machine: Arc<Machine>, tls: TlsStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if machine.identity.is_enrolled() {
        let service = AgentServer::new(Session::new(machine))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let connection =
            http2_settings().serve_connection(TokioIo::new(tls), TowerToHyperService::new(service));
        ended(connection.await);
        return;
    }
    let Ok(channel) =
        tls.get_ref().1.export_keying_material(Channel::default(), ENROLMENT_EXPORTER_LABEL, None)
    else {
        return;
    };
    let session = EnrolmentSession::new(machine, channel);
    let over = session.over();
    let service =
        EnrolmentServer::new(session).max_decoding_message_size(ENROLMENT_MESSAGE_BYTES_MAX);
    let connection =
        http2_settings().serve_connection(TokioIo::new(tls), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let life = tokio::time::timeout(ENROLMENT_TIMEOUT, async {
        tokio::select! {
            result = connection.as_mut() => return ended(result),
            () = over.notified() => connection.as_mut().graceful_shutdown(),
        }
        ended(connection.await);
    });
    if life.await.is_err() {
        tracing::debug!("an enrolment took too long");
    }
}

fn ended(result: Result<(), hyper::Error>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Bounds of one connection. Windows of streams are small: a guest has little memory, and the node is near.
fn http2_settings() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(128 * 1024)
        .max_header_list_size(16 * 1024)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Not an address.
    #[error("{0:?} is no address: tcp://ADDRESS:PORT or unix:///ABSOLUTE/PATH")]
    NoAddress(String),
    /// The address cannot be used.
    #[error("cannot listen on {address}")]
    NotBound {
        /// Which.
        address: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// Execs, log streams and calls of one pod at once.
const STREAMS_MAX: u32 = 256;
const STREAM_WINDOW: u32 = 256 * 1024;
/// A node has at most 64 streams open whose input a program may leave unread, 128 KiB of each; that much and a little more is
/// the connection's, so that everything else goes on.
const CONNECTION_WINDOW: u32 = 64 * 128 * 1024 + 1024 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for one that came before it; a node waits longer for an answer.
const TURN_TIMEOUT: Duration = Duration::from_millis(500);
const ENROLMENT_TIMEOUT: Duration = Duration::from_secs(30);
const ENROLMENT_MESSAGE_BYTES_MAX: usize = 32 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["tcp://0.0.0.0:7443", "tcp://[::1]:1", "unix:///run/x.sock"] {
            assert_eq!(Listen::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "tcp://", "tcp://host:1", "unix://relative", "http://1.2.3.4:5"] {
            assert!(matches!(Listen::parse(text), Err(ListenError::NoAddress(_))), "{text}");
        }
        assert_eq!(Listen::DEFAULT.to_string(), "tcp://0.0.0.0:7443");
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_agent_is_replaced_and_that_of_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(dir.path().join("agent.sock"));
        let first = listen.bind(None).await.unwrap();
        assert!(matches!(listen.bind(None).await, Err(ListenError::NotBound { .. })));
        drop(first);
        listen.bind(None).await.unwrap();
        let mode = std::fs::metadata(dir.path().join("agent.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
