//! Clients that speak WebSocket: channels are the first byte of each message.
//!
//! | subprotocol | |
//! |---|---|
//! | `v5.channel.k8s.io` | the client's message 255 with a channel's number ends its half of that channel |
//! | `v4.channel.k8s.io` | how it ended is told as JSON |
//! | `channel.k8s.io`, none | how it ended is told as a sentence |
//! | `…base64.channel.k8s.io` | the number is a digit, the rest base64, in text messages |

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::stream::{BoxStream, SplitSink, SplitStream, unfold};
use futures::{SinkExt, StreamExt};
use infranetes_core::engine::Engine;
use infranetes_core::ids::SandboxId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use super::channels::{Channels, Gone, Output, PortChannels};
use super::over_spdy::Wanted;
use super::ports;
use super::program::{self, Program};
use super::resize::Sizes;
use super::status::Form;

/// A subprotocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protocol {
    pub(super) name: &'static str,
    base64: bool,
    closes: bool,
    pub(super) form: Form,
}

/// What a client may choose of for a command.
pub(super) const PROGRAM_PROTOCOLS: [Protocol; 5] = [
    Protocol { name: "v5.channel.k8s.io", base64: false, closes: true, form: Form::Json },
    Protocol { name: "v4.channel.k8s.io", base64: false, closes: false, form: Form::Json },
    Protocol { name: "v4.base64.channel.k8s.io", base64: true, closes: false, form: Form::Json },
    Protocol { name: "channel.k8s.io", base64: false, closes: false, form: Form::Text },
    Protocol { name: "base64.channel.k8s.io", base64: true, closes: false, form: Form::Text },
];

/// As above, for ports.
pub(super) const PORT_PROTOCOLS: [Protocol; 2] = [PROGRAM_PROTOCOLS[1], PROGRAM_PROTOCOLS[2]];

/// For clients that name none.
pub(super) const NO_PROTOCOL: Protocol =
    Protocol { name: "", base64: false, closes: false, form: Form::Text };

/// Serves a client that runs a command or attaches, to the end of its connection.
pub(super) async fn program<T>(
    socket: WebSocketStream<T>,
    engine: &Engine,
    program: Program,
    wanted: Wanted,
    protocol: Protocol,
    idle: Duration,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut inputs = Inputs::default();
    let stdin = wanted.stdin.then(|| inputs.channel(STDIN));
    let resize = wanted.resize.then(|| inputs.channel(RESIZE));
    let mux = Mux::start(socket, inputs, protocol, idle);
    let output = |channel, is_wanted: bool| is_wanted.then(|| mux.output(channel));
    let channels = Channels {
        stdin,
        resize: resize.map(|pieces| {
            let sizes = pieces.scan(Sizes::default(), |sizes, piece| {
                futures::future::ready(Some(sizes.take(&piece)))
            });
            sizes.filter_map(futures::future::ready).boxed()
        }),
        stdout: output(STDOUT, wanted.stdout),
        stderr: output(STDERR, wanted.stderr),
        error: mux.output(ERROR),
        form: protocol.form,
        gone: mux.ended.clone(),
    };
    // An empty message on the first channel says that the streams are there.
    let first = [(wanted.stdout, STDOUT), (wanted.stderr, STDERR)];
    let first = first.into_iter().find_map(|(is_wanted, channel)| is_wanted.then_some(channel));
    let hello = mux.encode(first.unwrap_or(ERROR), &[]);
    if mux.out.send(hello).await.is_ok() {
        program::run(engine, program, channels).await;
    }
    mux.close().await;
}

/// Serves a client that connects to ports it named beforehand, each once: two channels a port, data and errors.
pub(super) async fn ports<T>(
    socket: WebSocketStream<T>,
    engine: &Engine,
    sandbox: &SandboxId,
    ports: &[u16],
    protocol: Protocol,
    idle: Duration,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut inputs = Inputs::default();
    let numbered: Vec<_> = (0_u8..PORT_CHANNELS).step_by(2).zip(ports.iter().copied()).collect();
    let data: Vec<_> = numbered.iter().map(|(channel, _)| inputs.channel(*channel)).collect();
    let mux = Mux::start(socket, inputs, protocol, idle);
    let mut forwards = JoinSet::new();
    for ((channel, port), input) in numbered.into_iter().zip(data) {
        let (mut output, mut error) = (mux.output(channel), mux.output(channel + 1));
        let hello = port.to_le_bytes().to_vec();
        if output.send(hello.clone()).await.is_err() || error.send(hello).await.is_err() {
            return;
        }
        let channels = PortChannels { port, input, output, error, gone: mux.ended.clone() };
        let (engine, sandbox) = (engine.clone(), sandbox.clone());
        forwards.spawn(async move { ports::forward(&engine, &sandbox, channels).await });
    }
    while forwards.join_next().await.is_some() {}
    mux.close().await;
}

/// Where input of each channel goes.
#[derive(Default)]
struct Inputs(HashMap<u8, mpsc::Sender<Vec<u8>>>);

impl Inputs {
    /// What will come on a channel.
    fn channel(&mut self, number: u8) -> BoxStream<'static, Vec<u8>> {
        let (sender, pieces) = mpsc::channel(PIECES);
        self.0.insert(number, sender);
        unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) }).boxed()
    }
}

/// A socket's channels.
struct Mux {
    out: mpsc::Sender<Message>,
    protocol: Protocol,
    /// The client closed, or its connection broke.
    ended: CancellationToken,
    tasks: JoinSet<()>,
}

impl Mux {
    fn start<T>(
        socket: WebSocketStream<T>,
        inputs: Inputs,
        protocol: Protocol,
        idle: Duration,
    ) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sink, stream) = socket.split();
        let (out, messages) = mpsc::channel(PIECES);
        let ended = CancellationToken::new();
        let moved = Moved::new();
        let mut tasks = JoinSet::new();
        let end = ended.clone().drop_guard();
        let reading = read(stream, inputs, protocol, moved.clone());
        tasks.spawn(async move {
            let _end = end;
            reading.await;
        });
        let end = ended.clone();
        tasks.spawn(async move {
            tokio::select! {
                ended = write(sink, messages, moved.clone()) => {
                    if ended.is_err() {
                        end.cancel();
                    }
                }
                () = moved.idle(idle) => end.cancel(),
            }
        });
        Self { out, protocol, ended, tasks }
    }

    fn output(&self, channel: u8) -> Box<dyn Output> {
        Box::new(Channel { out: self.out.clone(), channel, protocol: self.protocol })
    }

    fn encode(&self, channel: u8, data: &[u8]) -> Message {
        encode(self.protocol, channel, data)
    }

    /// Lets everything arrive that was sent, and the client answer.
    async fn close(mut self) {
        let closing = async {
            self.out.send(normal_close()).await.ok()?;
            // Not sooner: what is in buffers of the kernel would be lost with the connection. The client's answer tells that it
            // took everything.
            self.ended.cancelled().await;
            Some(())
        };
        tokio::select! {
            _ = timeout(CLOSE_LIMIT, closing) => {}
            () = self.ended.cancelled() => {}
        }
        self.tasks.shutdown().await;
    }
}

async fn read<T>(
    mut stream: SplitStream<WebSocketStream<T>>,
    mut inputs: Inputs,
    protocol: Protocol,
    moved: Moved,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = stream.next().await {
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "a WebSocket client's connection failed");
                return;
            }
        };
        if !message.is_ping() && !message.is_pong() {
            moved.now();
        }
        match decode(protocol, message) {
            Some((CLOSE, data)) if protocol.closes => {
                if let [channel] = data[..] {
                    inputs.0.remove(&channel);
                }
            }
            Some((channel, data)) if !data.is_empty() => {
                if let Some(input) = inputs.0.get(&channel)
                    && input.send(data).await.is_err()
                {
                    // Nobody reads it any more.
                    inputs.0.remove(&channel);
                }
            }
            _ => {}
        }
    }
}

async fn write<T>(
    mut sink: SplitSink<WebSocketStream<T>, Message>,
    mut messages: mpsc::Receiver<Message>,
    moved: Moved,
) -> Result<(), tokio_tungstenite::tungstenite::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match timeout(PING_EVERY, messages.recv()).await {
            Ok(Some(message)) => {
                moved.now();
                sink.send(message).await?;
            }
            Ok(None) => return Ok(()),
            // Finds a client that is gone, also while nothing is read.
            Err(_) => sink.send(Message::Ping(Default::default())).await?,
        }
    }
}

/// Clients take any other code, and none, for a failure.
pub(super) fn normal_close() -> Message {
    let reason = Utf8Bytes::default();
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason }))
}

fn encode(protocol: Protocol, channel: u8, data: &[u8]) -> Message {
    if protocol.base64 {
        let digit = char::from(b'0' + channel % 10);
        return Message::text(format!("{digit}{}", BASE64_STANDARD.encode(data)));
    }
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::binary(bytes)
}

/// Channel and data; `None` for what is no message of a channel.
fn decode(protocol: Protocol, message: Message) -> Option<(u8, Vec<u8>)> {
    let data = match message {
        Message::Binary(data) => Vec::from(data),
        Message::Text(text) => text.as_bytes().to_vec(),
        _ => return None,
    };
    let (channel, rest) = data.split_first()?;
    if protocol.base64 {
        Some((channel.checked_sub(b'0')?, BASE64_STANDARD.decode(rest).ok()?))
    } else {
        Some((*channel, rest.to_vec()))
    }
}

struct Channel {
    out: mpsc::Sender<Message>,
    channel: u8,
    protocol: Protocol,
}

#[async_trait]
impl Output for Channel {
    async fn send(&mut self, data: Vec<u8>) -> Result<(), Gone> {
        for piece in data.chunks(PIECE_BYTES) {
            let message = encode(self.protocol, self.channel, piece);
            self.out.send(message).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Only clients can end a channel by itself; for them, all end with the connection.
    async fn finish(self: Box<Self>) {}
}

/// When something moved last.
#[derive(Clone)]
struct Moved(tokio::sync::watch::Sender<()>);

impl Moved {
    fn new() -> Self {
        Self(tokio::sync::watch::channel(()).0)
    }

    fn now(&self) {
        self.0.send_replace(());
    }

    /// Waits until nothing moved for so long.
    async fn idle(&self, limit: Duration) {
        let mut moves = self.0.subscribe();
        while timeout(limit, moves.changed()).await.is_ok() {}
    }
}

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// Two for each port; one digit has to be enough for those with base64, as it is for everybody else.
const PORT_CHANNELS: u8 = 64;
const PIECES: usize = 4;
const PIECE_BYTES: usize = 32 << 10;
const PING_EVERY: Duration = Duration::from_secs(10);
/// A client that takes nothing for so long at the end loses the rest.
const CLOSE_LIMIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_channels_are_bytes_or_digits_and_base64() {
        let [v5, _, base64, ..] = PROGRAM_PROTOCOLS;
        assert_eq!(encode(v5, 1, b"ab"), Message::binary(vec![1, b'a', b'b']));
        assert_eq!(encode(base64, 1, b"ab"), Message::text("1YWI="));
        for protocol in PROGRAM_PROTOCOLS {
            let message = encode(protocol, 2, &[0, 255, 7]);
            assert_eq!(decode(protocol, message), Some((2, vec![0, 255, 7])), "{protocol:?}");
        }
        for message in [Message::binary(vec![]), Message::Ping(Default::default())] {
            assert_eq!(decode(v5, message), None);
        }
        for text in ["0%", "/aaaa"] {
            assert_eq!(decode(base64, Message::text(text)), None);
        }
    }
}
