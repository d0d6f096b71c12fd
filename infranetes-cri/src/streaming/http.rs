//! The HTTP side: takes connections, looks links up, agrees on a protocol, and hands the upgraded connection on.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use infranetes_core::engine::Engine;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::links::{Links, Target};
use super::over_spdy::{self, Wanted};
use super::over_websocket::{self, NO_PROTOCOL, PORT_PROTOCOLS, PROGRAM_PROTOCOLS, Protocol};
use super::program::Program;
use super::status::Form;
use super::tunnel;

/// Serves for ever. Dropping it cuts off everything.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    links: Links,
    engine: Engine,
    idle: Duration,
) {
    let server = Arc::new(Server {
        links,
        engine,
        idle,
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        tasks: tokio::sync::Mutex::default(),
    });
    let waiting = Arc::new(Semaphore::new(WAITING_MAX));
    let mut connections = JoinSet::new();
    loop {
        // Those who have not said what they want are few, so that they cannot crowd out the rest.
        let Ok(place) = waiting.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the streaming server cannot take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // What is typed shall not wait for more.
        let _ = stream.set_nodelay(true);
        // What the kernel holds for a client or a program that does not read is memory, too, which else grows to megabytes.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&stream, SOCKET_BUFFER);
        let (server, tls) = (server.clone(), tls.clone());
        connections.spawn(async move {
            let _place = place;
            match tls {
                None => server.connection(stream).await,
                Some(tls) => match timeout(HEAD_LIMIT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => server.connection(stream).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a streaming client's TLS failed"),
                    Err(_) => tracing::debug!("a streaming client's TLS took too long"),
                },
            }
        });
    }
}

struct Server {
    links: Links,
    engine: Engine,
    idle: Duration,
    /// Connections that were upgraded.
    streams: Arc<Semaphore>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

type Answer = Response<Full<Bytes>>;

impl Server {
    /// One request, or a few that are refused; an upgraded connection goes on in a task of its own.
    async fn connection(self: Arc<Self>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let server = self.clone();
        let service = service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a streaming client's request failed");
        }
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Answer {
        match self.agree(&mut request) {
            Ok((job, place, answer)) => {
                let upgrade = hyper::upgrade::on(request);
                let (engine, idle) = (self.engine.clone(), self.idle);
                let mut tasks = self.tasks.lock().await;
                while tasks.try_join_next().is_some() {}
                tasks.spawn(async move {
                    let _place = place;
                    job.run(upgrade, &engine, idle).await;
                });
                answer
            }
            Err(refusal) => {
                tracing::debug!(status = %refusal.status, reason = %refusal.reason, "a streaming request is refused");
                refusal.answer()
            }
        }
    }

    /// What is to be done on the connection once it is upgraded, and the answer that upgrades it.
    fn agree(
        &self,
        request: &mut Request<Incoming>,
    ) -> Result<(Job, OwnedSemaphorePermit, Answer), Refusal> {
        let headers = request.headers();
        let is_websocket = has_token(headers, &UPGRADE, "websocket");
        let is_spdy = has_token(headers, &UPGRADE, "spdy/3.1");
        let is_upgrade = has_token(headers, &CONNECTION, "upgrade") && (is_websocket || is_spdy);
        if !is_upgrade || !matches!(*request.method(), Method::GET | Method::POST) {
            let why = "this is for connections that are upgraded to SPDY/3.1 or WebSocket";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        let busy = |_| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open");
        let place = self.streams.clone().try_acquire_owned().map_err(busy)?;
        let gone = "there is no such link; each works once, and for a minute";
        let target = self.links.take(request.uri().path());
        let target = target.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, gone))?;
        let (wire, answer) =
            if is_websocket { websocket(headers, &target) } else { spdy(headers, &target) }?;
        Ok((Job { target, wire }, place, answer))
    }
}

/// What was agreed on.
enum Wire {
    Spdy(SpdyProtocol),
    WebSocket(Protocol),
    /// SPDY in WebSocket messages.
    Tunnel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SpdyProtocol {
    form: Form,
    has_resize: bool,
}

struct Job {
    target: Target,
    wire: Wire,
}

impl Job {
    async fn run(self, upgrade: OnUpgrade, engine: &Engine, idle: Duration) {
        let io = match timeout(HEAD_LIMIT, upgrade).await {
            Ok(Ok(io)) => TokioIo::new(io),
            Ok(Err(error)) => return tracing::debug!(%error, "a streaming upgrade failed"),
            Err(_) => return tracing::debug!("a streaming upgrade took too long"),
        };
        let socket = async |io| {
            let config = WebSocketConfig::default()
                .max_message_size(Some(MESSAGE_BYTES))
                .max_frame_size(Some(MESSAGE_BYTES))
                .write_buffer_size(0)
                .max_write_buffer_size(2 * MESSAGE_BYTES);
            WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
        };
        let wanted = wanted(&self.target);
        match (self.wire, self.target) {
            (Wire::Spdy(_), Target::PortForward { sandbox, .. }) => {
                over_spdy::ports(io, engine, &sandbox, idle).await;
            }
            (Wire::Spdy(protocol), target) => {
                let Some(program) = program(target) else { return };
                let wanted = Wanted { resize: wanted.resize && protocol.has_resize, ..wanted };
                over_spdy::program(io, engine, program, wanted, protocol.form, idle).await;
            }
            (Wire::Tunnel, Target::PortForward { sandbox, .. }) => {
                let (inner, carried) = tunnel::open(socket(io).await);
                tokio::join!(carried, over_spdy::ports(inner, engine, &sandbox, idle));
            }
            (Wire::WebSocket(protocol), Target::PortForward { sandbox, ports }) => {
                let socket = socket(io).await;
                over_websocket::ports(socket, engine, &sandbox, &ports, protocol, idle).await;
            }
            (Wire::WebSocket(protocol), target) => {
                let Some(program) = program(target) else { return };
                let socket = socket(io).await;
                over_websocket::program(socket, engine, program, wanted, protocol, idle).await;
            }
            (Wire::Tunnel, _) => {}
        }
    }
}

fn program(target: Target) -> Option<Program> {
    match target {
        Target::Exec { start, .. } => Some(Program::Command(start)),
        Target::Attach { container, .. } => Some(Program::Container(container)),
        Target::PortForward { .. } => None,
    }
}

fn wanted(target: &Target) -> Wanted {
    match target {
        Target::Exec { start, outputs } => Wanted {
            stdin: start.stdin,
            stdout: outputs.stdout,
            stderr: outputs.stderr,
            resize: start.tty,
        },
        Target::Attach { stdin, tty, outputs, .. } => {
            Wanted { stdin: *stdin, stdout: outputs.stdout, stderr: outputs.stderr, resize: *tty }
        }
        Target::PortForward { .. } => {
            Wanted { stdin: false, stdout: false, stderr: false, resize: false }
        }
    }
}

/// The first subprotocol of the client's that is known here.
fn spdy(headers: &HeaderMap, target: &Target) -> Result<(Wire, Answer), Refusal> {
    let asked = tokens(headers, &STREAM_PROTOCOL);
    if asked.is_empty() {
        let why = format!("the header {STREAM_PROTOCOL} is missing");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
    }
    let known: &[(&str, SpdyProtocol)] = match target {
        Target::PortForward { .. } => &SPDY_PORTS,
        _ => &SPDY_PROGRAMS,
    };
    let agreed = asked.iter().find_map(|name| known.iter().find(|(known, _)| known == name));
    let Some((name, protocol)) = agreed else {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        return Err(Refusal::no_protocol(&names));
    };
    let answer = switch("SPDY/3.1", STREAM_PROTOCOL, name);
    Ok((Wire::Spdy(*protocol), answer))
}

fn websocket(headers: &HeaderMap, target: &Target) -> Result<(Wire, Answer), Refusal> {
    let bad = |why: &str| Refusal::new(StatusCode::BAD_REQUEST, why);
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| bad("a WebSocket needs a key"))?;
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad("only version 13 of WebSocket is known here"));
    }
    let asked = tokens(headers, &SEC_WEBSOCKET_PROTOCOL);
    let known: &[Protocol] = match target {
        Target::PortForward { .. } => &PORT_PROTOCOLS,
        _ => &PROGRAM_PROTOCOLS,
    };
    let is_ports = matches!(target, Target::PortForward { .. });
    let wire = match asked.iter().find_map(|name| match *name {
        TUNNEL if is_ports => Some(Wire::Tunnel),
        name => known.iter().find(|known| known.name == name).map(|known| Wire::WebSocket(*known)),
    }) {
        Some(wire) => wire,
        None if asked.is_empty() => Wire::WebSocket(NO_PROTOCOL),
        None => {
            let names: Vec<_> = known.iter().map(|known| known.name).collect();
            return Err(Refusal::no_protocol(&names));
        }
    };
    if let (Wire::WebSocket(_), Target::PortForward { ports, .. }) = (&wire, target)
        && ports.is_empty()
    {
        return Err(bad("over WebSocket the ports have to be named in the request for the link"));
    }
    let name = match &wire {
        Wire::WebSocket(protocol) => protocol.name,
        Wire::Tunnel | Wire::Spdy(_) => TUNNEL,
    };
    let mut answer = switch("websocket", SEC_WEBSOCKET_PROTOCOL, name);
    let accept = derive_accept_key(key.as_bytes());
    let accept = HeaderValue::try_from(accept).map_err(|_| bad("the key cannot be answered"))?;
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok((wire, answer))
}

fn switch(upgrade: &'static str, header: HeaderName, protocol: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
    if !protocol.is_empty() {
        headers.insert(header, HeaderValue::from_static(protocol));
    }
    answer
}

/// A request that is not served.
struct Refusal {
    status: StatusCode,
    reason: String,
    accepted: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), accepted: String::new() }
    }

    fn no_protocol(known: &[&str]) -> Self {
        let accepted = known.join(", ");
        let reason =
            format!("none of the protocols that were offered is known here; known: {accepted}");
        Self { status: StatusCode::FORBIDDEN, reason, accepted }
    }

    fn answer(self) -> Answer {
        let mut answer = Response::new(Full::from(self.reason + "\n"));
        *answer.status_mut() = self.status;
        if let (false, Ok(accepted)) = (self.accepted.is_empty(), self.accepted.try_into()) {
            answer.headers_mut().insert(ACCEPTED_PROTOCOLS, accepted);
        }
        answer
    }
}

/// The words of a header that holds a list, over all its lines.
fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Vec<&'h str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    let words = lines.flat_map(|line| line.split(',')).map(str::trim);
    words.filter(|word| !word.is_empty()).collect()
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).iter().any(|word| word.eq_ignore_ascii_case(token))
}

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const SPDY_PROGRAMS: [(&str, SpdyProtocol); 4] = [
    ("v4.channel.k8s.io", SpdyProtocol { form: Form::Json, has_resize: true }),
    ("v3.channel.k8s.io", SpdyProtocol { form: Form::Text, has_resize: true }),
    ("v2.channel.k8s.io", SpdyProtocol { form: Form::Text, has_resize: false }),
    ("channel.k8s.io", SpdyProtocol { form: Form::Text, has_resize: false }),
];
const SPDY_PORTS: [(&str, SpdyProtocol); 1] =
    [("portforward.k8s.io", SpdyProtocol { form: Form::Text, has_resize: false })];

/// The kernel doubles it for what it keeps beside the bytes.
const SOCKET_BUFFER: usize = 256 << 10;
/// Connections that have not been upgraded yet.
const WAITING_MAX: usize = 128;
/// Connections that were.
const STREAMS_MAX: usize = 512;
/// How long each step before the upgrade may take.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
const HEAD_BYTES: usize = 16 << 10;
/// One WebSocket message of a client. It is in memory as a whole.
const MESSAGE_BYTES: usize = 4 << 20;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
