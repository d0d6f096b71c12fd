//! Where the node reaches the agent: a listening socket, and sessions on it: TLS on every connection, HTTP/2 in it.
//!
//! A handshake that fails gets nothing but its TLS alert. What comes before the first session is the meeting's.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use infranetes_agent_protocol::MAX_MESSAGE_BYTES;
use infranetes_agent_protocol::v1::agent_server::AgentServer;
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::IdentityError;
use crate::lines::Pace;
use crate::machine::Machine;
use crate::meeting::Stream;
use crate::renewal;
use crate::server::Session;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `tcp://ADDRESS:PORT`
    Tcp(SocketAddr),
    /// `unix:///ABSOLUTE/PATH`
    Unix(PathBuf),
}

/// A socket that listens, for whoever needs no runtime to use it.
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

    /// Whether it can be listened on before the machine has its addresses.
    pub fn needs_no_address(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_unspecified(),
            Self::Unix(_) => true,
        }
    }

    /// Listens, in a network namespace if one is given. A unix socket is for its owner alone; a socket that a dead agent left
    /// behind is replaced.
    pub fn bind(&self, namespace: Option<OwnedFd>) -> Result<Listener, ListenError> {
        let failed = |cause| ListenError::NotBound { address: self.to_string(), cause };
        match self {
            Self::Tcp(address) => match namespace {
                None => TcpListener::bind(address),
                Some(namespace) => bind_in(namespace, *address),
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
    /// Takes a connection; neither it nor the socket waits for anything.
    pub(crate) fn accept(&self) -> io::Result<(Box<dyn Stream>, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nonblocking(true)?;
                // Small messages go back and forth; waiting for more of them only delays.
                stream.set_nodelay(true)?;
                Ok((Box::new(stream), peer.to_string()))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Box::new(stream), UNIX_PEER.to_owned()))
            }
        }
    }

    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    /// Serves sessions of an enrolled agent until the future is dropped.
    pub(crate) async fn serve(self, machine: Arc<Machine>) -> Result<(), ServeError> {
        let acceptor = TlsAcceptor::from(machine.identity.session_config()?);
        let listener = Accepting::new(self)?;
        let mut pace = Pace::default();
        loop {
            let accepted = match &listener {
                Accepting::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                    // As above.
                    let _ = stream.set_nodelay(true);
                    serve_connection(&machine, &acceptor, stream, peer.to_string());
                }),
                Accepting::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    serve_connection(&machine, &acceptor, stream, UNIX_PEER.to_owned());
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
fn bind_in(namespace: OwnedFd, address: SocketAddr) -> io::Result<TcpListener> {
    let bound = std::thread::Builder::new().spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        TcpListener::bind(address)
    })?;
    bound.join().map_err(|_| io::Error::other("the thread that listens died"))?
}

/// A socket in a runtime.
enum Accepting {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Accepting {
    fn new(listener: Listener) -> io::Result<Self> {
        listener.set_nonblocking()?;
        match listener {
            Listener::Tcp(listener) => tokio::net::TcpListener::from_std(listener).map(Self::Tcp),
            Listener::Unix(listener) => {
                tokio::net::UnixListener::from_std(listener).map(Self::Unix)
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
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
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(place) = Arc::clone(&machine.places).try_acquire_owned() else {
        machine.refused(&peer, &"too many connections");
        return;
    };
    let machine = Arc::clone(machine);
    let acceptor = acceptor.clone();
    tokio::spawn(async move {
        let _until_the_end = place;
        if machine.held.is_holding() && machine.owned {
            // This may be what was made of a checkpoint: without random numbers of its own it has no business with anybody.
            let renewed = tokio::task::spawn_blocking(renewal::renew).await;
            if let Err(error) = renewed.map_err(io::Error::other).flatten() {
                return machine.refused(&peer, &format!("no random numbers of its own: {error}"));
            }
        }
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(tls)) => serve_tls(machine, tls).await,
            // A node that waited for the machine to boot dialled more than once.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                tracing::debug!(peer, "a connection was given up by its peer");
            }
            Ok(Err(error)) => machine.refused(&peer, &error),
            Err(_) => machine.refused(&peer, &"no handshake in time"),
        }
    });
}

async fn serve_tls<S>(machine: Arc<Machine>, tls: TlsStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = AgentServer::new(Session::new(machine))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let connection =
        http2_settings().serve_connection(TokioIo::new(tls), TowerToHyperService::new(service));
    ended(connection.await);
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

/// Why no sessions are served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// TLS cannot be set up.
    #[error("the agent has no identity")]
    Identity(#[from] IdentityError),
    /// The socket cannot be used.
    #[error("the socket cannot be used")]
    Socket(#[from] io::Error),
}

const UNIX_PEER: &str = "unix";
/// Execs, log streams and calls of one pod at once.
const STREAMS_MAX: u32 = 256;
const STREAM_WINDOW: u32 = 256 * 1024;
/// A node has at most 64 streams open whose input a program may leave unread, 128 KiB of each; that much and a little more is
/// the connection's, so that everything else goes on.
const CONNECTION_WINDOW: u32 = 64 * 128 * 1024 + 1024 * 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
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
        let first = listen.bind(None).unwrap();
        assert!(matches!(listen.bind(None), Err(ListenError::NotBound { .. })));
        drop(first);
        listen.bind(None).unwrap();
        let mode = std::fs::metadata(dir.path().join("agent.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
