//! Clients that speak SPDY: which streams they have to open, and what the streams' headers mean.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{BoxStream, unfold};
use infranetes_core::engine::Engine;
use infranetes_core::ids::SandboxId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::channels::{Channels, Gone, Output, PortChannels};
use super::ports;
use super::program::{self, Program};
use super::resize::Sizes;
use super::spdy::{Connection, Limits, Offer, Reader, Role, Stream, Writer};
use super::status::Form;

/// Which streams a client that runs a command or attaches has to open, besides that of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) resize: bool,
}

/// Serves a client that runs a command or attaches, to the end of its connection.
pub(super) async fn program<T>(
    io: T,
    engine: &Engine,
    program: Program,
    wanted: Wanted,
    form: Form,
    idle: Duration,
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let limits = Limits { streams: 8, idle, ..Limits::default() };
    let mut connection = Connection::start(io, Role::Server, limits);
    let opened = timeout(STREAMS_LIMIT, collect(&mut connection, wanted)).await;
    let Ok(Some(channels)) = opened else {
        tracing::debug!("a streaming client did not open its streams");
        return connection.close().await;
    };
    let mut channels = Channels { form, ..channels };
    channels.gone = connection.ended();
    // A stream too many is refused, not left without an answer.
    tokio::select! {
        () = program::run(engine, program, channels) => {}
        () = refuse_all(&mut connection) => {}
    }
    if let Some(error) = connection.failure() {
        tracing::debug!(%error, "a SPDY connection failed");
    }
    connection.close().await;
}

/// Waits for the streams; `None` when the client went away.
async fn collect(connection: &mut Connection, wanted: Wanted) -> Option<Channels> {
    let mut missing: Vec<&str> = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("resize", wanted.resize),
    ]
    .into_iter()
    .filter_map(|(kind, wanted)| wanted.then_some(kind))
    .collect();
    let mut opened: HashMap<&str, Stream> = HashMap::new();
    while !missing.is_empty() {
        let offer = connection.accept().await?;
        let kind = offer.headers.get(STREAM_TYPE).unwrap_or_default();
        let Some(at) = missing.iter().position(|missing| *missing == kind) else {
            offer.refuse().await;
            continue;
        };
        let kind = missing.swap_remove(at);
        opened.insert(kind, offer.accept().await.ok()?);
    }
    let mut take = |kind| opened.remove(kind);
    let output = |stream: Stream| -> Box<dyn Output> { Box::new(Outlet(stream.writer)) };
    Some(Channels {
        error: output(take("error")?),
        stdin: take("stdin").map(|stream| bytes(stream.reader, Some(stream.writer))),
        stdout: take("stdout").map(output),
        stderr: take("stderr").map(output),
        resize: take("resize").map(|stream| {
            let pieces = bytes(stream.reader, Some(stream.writer));
            let sizes = pieces.scan(Sizes::default(), |sizes, piece| {
                futures::future::ready(Some(sizes.take(&piece)))
            });
            sizes.filter_map(futures::future::ready).boxed()
        }),
        form: Form::Json,
        gone: connection.ended(),
    })
}

async fn refuse_all(connection: &mut Connection) {
    while let Some(offer) = connection.accept().await {
        offer.refuse().await;
    }
    std::future::pending().await
}

/// Serves a client that connects to ports, to the end of its connection.
pub(super) async fn ports<T>(io: T, engine: &Engine, sandbox: &SandboxId, idle: Duration)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let limits = Limits { idle, ..Limits::default() };
    let mut connection = Connection::start(io, Role::Server, limits);
    let mut pairs = Pairs::default();
    let mut forwards = JoinSet::new();
    loop {
        tokio::select! {
            offer = connection.accept() => {
                let Some(offer) = offer else { break };
                if let Some(channels) = pairs.add(offer).await {
                    let (engine, sandbox) = (engine.clone(), sandbox.clone());
                    forwards.spawn(async move { ports::forward(&engine, &sandbox, channels).await });
                }
            }
            () = pairs.expired() => pairs.expire().await,
            Some(_) = forwards.join_next() => {}
        }
    }
    // The client went away, and with it whatever it was connected to.
    forwards.shutdown().await;
    if let Some(error) = connection.failure() {
        tracing::debug!(%error, "a SPDY connection failed");
    }
    connection.close().await;
}

/// Streams whose other half has not come: data and errors of one connection are two streams with the same request id.
#[derive(Default)]
struct Pairs(HashMap<String, Half>);

struct Half {
    kind: Kind,
    port: u16,
    stream: Stream,
    until: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

impl Pairs {
    /// Takes a stream; the pair, once it is whole.
    async fn add(&mut self, offer: Offer) -> Option<PortChannels> {
        let Some((kind, port, request)) = meaning(&offer) else {
            offer.refuse().await;
            return None;
        };
        match self.0.get(&request) {
            Some(half) if half.kind == kind || half.port != port => {
                offer.refuse().await;
                return None;
            }
            _ => {}
        }
        let stream = offer.accept().await.ok()?;
        let Some(half) = self.0.remove(&request) else {
            let until = Instant::now() + STREAMS_LIMIT;
            self.0.insert(request, Half { kind, port, stream, until });
            return None;
        };
        let (data, error) = match kind {
            Kind::Data => (stream, half.stream),
            Kind::Error => (half.stream, stream),
        };
        Some(PortChannels {
            port,
            gone: data.writer.gone(),
            input: bytes(data.reader, None),
            output: Box::new(Outlet(data.writer)),
            error: Box::new(Outlet(error.writer)),
        })
    }

    /// Waits until a half has waited too long.
    async fn expired(&self) {
        match self.0.values().map(|half| half.until).min() {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    async fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<_> =
            self.0.iter().filter(|(_, half)| half.until <= now).map(|(id, _)| id.clone()).collect();
        for id in late {
            let Some(half) = self.0.remove(&id) else { continue };
            if half.kind == Kind::Error {
                let mut error = Outlet(half.stream.writer);
                let why = "the stream of data did not come in time".as_bytes().to_vec();
                if error.send(why).await.is_ok() {
                    Box::new(error).finish().await;
                }
            }
        }
    }
}

/// Kind, port and request of a stream. Clients without request ids open the stream of data right after that of errors.
fn meaning(offer: &Offer) -> Option<(Kind, u16, String)> {
    let kind = match offer.headers.get(STREAM_TYPE)? {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    let port = offer.headers.get("port")?.parse().ok().filter(|port| *port != 0)?;
    let request = match (offer.headers.get("requestid"), kind) {
        (Some(request), _) => request.to_owned(),
        (None, Kind::Error) => format!("stream {}", offer.id()),
        (None, Kind::Data) => format!("stream {}", offer.id().checked_sub(2)?),
    };
    Some((kind, port, request))
}

/// What a peer sends, to the end of its half. A reset is an end, too: whoever has to know looks at the writer. The writer is
/// kept for as long, where nothing is sent: dropping it would reset the stream.
fn bytes(reader: Reader, writer: Option<Writer>) -> BoxStream<'static, Vec<u8>> {
    unfold((reader, writer), |(mut reader, writer)| async move {
        match reader.next().await {
            Ok(Some(data)) => Some((Vec::from(data), (reader, writer))),
            Ok(None) | Err(_) => None,
        }
    })
    .boxed()
}

struct Outlet(Writer);

#[async_trait]
impl Output for Outlet {
    async fn send(&mut self, data: Vec<u8>) -> Result<(), Gone> {
        self.0.send(Bytes::from(data)).await.map_err(|_| Gone)
    }

    async fn finish(self: Box<Self>) {
        // Who is gone needs no end.
        let _ = self.0.finish().await;
    }
}

const STREAM_TYPE: &str = "streamtype";
/// How long a client may take to open the streams that belong together.
const STREAMS_LIMIT: Duration = Duration::from_secs(30);
