//! From an endpoint to an encrypted HTTP/2 connection, and what is wrong where there is none.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::client::TlsStream;
use tonic::transport::Channel;

use super::failure::tls_problem;
use crate::session::SessionError;

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A connection whose handshake is done.
pub(super) type Tls = TlsStream<Socket>;

/// What TLS runs on. Knows whether the peer said anything.
pub(super) struct Socket {
    stream: Pin<Box<dyn Stream>>,
    heard: Arc<AtomicBool>,
    /// Held strongly, as `speaks`, from the peer's first word on.
    speaking: Weak<()>,
    speaks: Option<Arc<()>>,
}

trait Stream: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.stream.as_mut().poll_read(cx, buffer);
        if !buffer.filled().is_empty() && !self.heard.swap(true, Ordering::Relaxed) {
            self.speaks = self.speaking.upgrade();
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Self, SessionError> {
        let invalid = || SessionError::Local {
            problem: format!("{text:?} is no endpoint of an agent"),
            cause: "tcp://HOST:PORT and unix:///PATH are".into(),
        };
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(invalid())
            };
        }
        let address = text.strip_prefix("tcp://").ok_or_else(invalid)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() { Err(invalid()) } else { Ok(Self::Tcp { host: host.into(), port }) }
    }

    /// Connects and shakes hands, once.
    pub(super) async fn dial(
        &self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Tls, SessionError> {
        self.dial_unless_silent(config, name, HANDSHAKE_TIMEOUT, Weak::new()).await
    }

    /// As [`Endpoint::dial`], for a machine that may still boot: tries again for a while. What is refused is asked again
    /// soon; an attempt that hangs is left hanging for a moment while others start, because a forwarder that took a
    /// connection before the guest had a network may need seconds to notice that it has one. Once somebody speaks, no more
    /// attempts keep a slow machine from its answer.
    pub(super) async fn dial_booting(
        &self,
        config: &Arc<ClientConfig>,
        name: &ServerName<'static>,
    ) -> Result<Tls, SessionError> {
        let end = Instant::now() + PATIENCE;
        let mut attempts = FuturesUnordered::new();
        let mut last = self.not_yet(io::ErrorKind::TimedOut.into());
        let speaking = Arc::new(());
        loop {
            if attempts.len() < ATTEMPTS_MAX && Arc::strong_count(&speaking) == 1 {
                let (config, name, weak) =
                    (Arc::clone(config), name.clone(), Arc::downgrade(&speaking));
                attempts.push(self.dial_unless_silent(config, name, SILENCE, weak));
            }
            tokio::select! {
                Some(result) = attempts.next() => match result {
                    Err(error @ SessionError::NotYet { .. }) => last = error,
                    result => return result,
                },
                () = sleep(HEDGE_AFTER) => continue,
                () = sleep_until(end) => return Err(last),
            }
            if Instant::now() >= end {
                return Err(last);
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Gives up on a peer that says nothing at all for `silence`; one that speaks has the whole time for its handshake.
    async fn dial_unless_silent(
        &self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        silence: Duration,
        speaking: Weak<()>,
    ) -> Result<Tls, SessionError> {
        let timed_out = || self.not_yet(io::ErrorKind::TimedOut.into());
        let begun = Instant::now();
        let stream = timeout(silence.min(CONNECT_TIMEOUT), self.connect())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|cause| self.not_yet(cause))?;
        let socket = Socket { stream, heard: Arc::default(), speaking, speaks: None };
        let heard = Arc::clone(&socket.heard);
        let mut handshake = tokio_rustls::TlsConnector::from(config).connect(name, socket);
        let shaken = match timeout_at(begun + silence, &mut handshake).await {
            Ok(shaken) => shaken,
            Err(_) if heard.load(Ordering::Relaxed) => {
                let end = begun + HANDSHAKE_TIMEOUT;
                timeout_at(end, handshake).await.map_err(|_| timed_out())?
            }
            Err(_) => return Err(timed_out()),
        };
        shaken.map_err(|error| self.handshake_failed(error))
    }

    /// Nobody answers.
    pub(super) fn not_yet(&self, cause: io::Error) -> SessionError {
        SessionError::NotYet { endpoint: self.to_string(), cause: Box::new(cause) }
    }

    pub(super) fn untrusted(&self, problem: impl Into<String>) -> SessionError {
        SessionError::Untrusted { endpoint: self.to_string(), problem: problem.into() }
    }

    /// A connection that breaks before TLS is up is what a forwarder of a machine without listener looks like; what fails in
    /// TLS itself is somebody.
    fn handshake_failed(&self, error: io::Error) -> SessionError {
        match tls_problem(&error) {
            Some(problem) => self.untrusted(problem),
            None => self.not_yet(error),
        }
    }

    async fn connect(&self) -> io::Result<Pin<Box<dyn Stream>>> {
        match self {
            Self::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Box::pin(stream))
            }
            Self::Unix(path) => Ok(Box::pin(UnixStream::connect(path).await?)),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// HTTP/2 on this connection and no other: when it breaks, so does the channel.
pub(super) async fn channel(tls: Tls) -> Result<Channel, tonic::transport::Error> {
    let mut once = Some(tls);
    let connector = tower::service_fn(move |_: http::Uri| {
        let tls = once.take().ok_or_else(closed);
        async move { tls.map(TokioIo::new) }
    });
    http2().connect_with_connector(connector).await
}

/// As [`channel`], on a connection that is dialled when the channel is first used.
pub(super) fn channel_later(
    dial: impl Future<Output = Result<Tls, SessionError>> + Send + 'static,
) -> Channel {
    let mut once = Some(dial);
    let connector = tower::service_fn(move |_: http::Uri| {
        let dial = once.take();
        async move {
            let tls = dial.ok_or_else(closed)?.await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(tls))
        }
    });
    http2().connect_with_connector_lazy(connector)
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the connection to the agent is closed")
}

fn http2() -> tonic::transport::Endpoint {
    tonic::transport::Endpoint::from_static("http://agent")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(16 * 1024)
}

/// What waits unread of one stream. 64 streams may have a reader who never reads (`duplex`); that much and a little more is
/// the connection's, so that everything else goes on.
const STREAM_WINDOW: u32 = 256 * 1024;
/// A chunk of output in one frame: each frame has a head, which costs a record of TLS and its packets.
const FRAME_BYTES: u32 = 192 * 1024;
const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW + 2 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An emulated CPU that is shared with others takes its time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one call waits for a booting machine.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// An attempt that hangs usually waits for the machine's network, and is heard as soon as there is one; some are lost.
const HEDGE_AFTER: Duration = Duration::from_millis(200);
/// How long an attempt at a booting machine may hang without a word.
const SILENCE: Duration = Duration::from_secs(1);
const ATTEMPTS_MAX: usize = 8;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        for text in ["tcp://127.0.0.1:7443", "tcp://[fd00::1]:7443", "tcp://vm:1", "unix:///run/a"]
        {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "127.0.0.1:7443", "tcp://:1", "tcp://a", "tcp://a:x", "unix://a"] {
            assert!(matches!(Endpoint::parse(text), Err(SessionError::Local { .. })), "{text}");
        }
    }
}
