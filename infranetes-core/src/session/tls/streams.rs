//! What is longer than one answer: layers in, a command's output, logs, the watch.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::ready;
use futures::stream::{BoxStream, once, unfold};
use futures::{Stream, StreamExt};
use infranetes_agent_protocol::v1::agent_client::AgentClient;
use infranetes_agent_protocol::v1::{
    ExecExit, ExecRequest as ExecMessage, ExecStart, ImportLayersRequest, LogChunk as LogMessage,
    LogsRequest, LogsStart, StatsRequest, WatchRequest, WatchResponse, exec_request, exec_response,
    import_layers_request, logs_request,
};
use tokio::sync::watch;
use tokio_util::io::ReaderStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::convert;
use super::failure::failed;
use crate::ids::ContainerId;
use crate::session::{
    ExecRequest, ExecResult, LayerSource, LogChunk, LogSource, SessionError, WatchEvent,
};
use crate::stats::StatsSample;

/// Streams layers in. The agent's pace is the reader's: nothing is read before it is asked for.
pub(super) async fn import(
    mut client: AgentClient<Channel>,
    layers: Vec<LayerSource>,
) -> Result<(), SessionError> {
    let state = Arc::new(ImportState::default());
    let messages = layer_messages(layers, Arc::clone(&state));
    let mut call = Box::pin(client.import_layers(messages));
    loop {
        let moved = state.moved.load(Ordering::Relaxed);
        match tokio::time::timeout(IMPORT_STALL, call.as_mut()).await {
            Ok(result) => {
                // Our own reader's failure is the reason for whatever the agent says of a stream that ended early.
                let broken = state.broken.lock().unwrap_or_else(PoisonError::into_inner).take();
                return match broken {
                    Some(cause) => Err(SessionError::Local {
                        problem: "a layer could not be read".to_owned(),
                        cause: Box::new(cause),
                    }),
                    None => result.map(drop).map_err(failed),
                };
            }
            Err(_) if state.moved.load(Ordering::Relaxed) == moved => {
                return Err(SessionError::TimedOut(IMPORT_STALL));
            }
            Err(_) => (),
        }
    }
}

#[derive(Default)]
struct ImportState {
    moved: AtomicU64,
    broken: Mutex<Option<std::io::Error>>,
}

/// Each layer, then its bytes. Ends early when a reader fails.
///
/// A type of its own: the compiler cannot prove that a call with a boxed stream in it is `Send`.
struct LayerMessages(BoxStream<'static, ImportLayersRequest>);

impl Stream for LayerMessages {
    type Item = ImportLayersRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

fn layer_messages(layers: Vec<LayerSource>, state: Arc<ImportState>) -> LayerMessages {
    use import_layers_request::Part;
    let message = |part| ImportLayersRequest { part: Some(part) };
    let pieces = futures::stream::iter(layers).flat_map(move |source| {
        let head = Ok(message(Part::Layer(convert::layer(&source.layer))));
        let data = ReaderStream::with_capacity(source.reader, IMPORT_BYTES)
            .map(move |data| data.map(|data| message(Part::Data(data.into()))));
        once(ready(head)).chain(data)
    });
    LayerMessages(Box::pin(pieces.scan(state, |state, piece: std::io::Result<_>| {
        state.moved.fetch_add(1, Ordering::Relaxed);
        ready(match piece {
            Ok(message) => Some(message),
            Err(error) => {
                *state.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                None
            }
        })
    })))
}

/// Runs a command to its end and keeps what fits of its output.
pub(super) async fn exec_sync(
    mut client: AgentClient<Channel>,
    request: ExecRequest,
) -> Result<ExecResult, SessionError> {
    let start = ExecStart {
        container_id: request.container.to_string(),
        args: request.args,
        tty: false,
        stdin: false,
        timeout_ms: request.timeout.map_or(0, |timeout| convert::millis(timeout).max(1)),
    };
    let first = ExecMessage { input: Some(exec_request::Input::Start(start)) };
    let mut output =
        client.exec(futures::stream::iter([first])).await.map_err(failed)?.into_inner();
    let mut result = ExecResult::default();
    while let Some(part) = output.message().await.map_err(failed)? {
        use exec_response::Output;
        match part.output {
            Some(Output::Stdout(data)) => keep(&mut result.stdout, &data, request.output_limit),
            Some(Output::Stderr(data)) => keep(&mut result.stderr, &data, request.output_limit),
            Some(Output::Exit(ExecExit { code, timed_out })) => {
                result.exit_code = code;
                result.timed_out = timed_out;
                return Ok(result);
            }
            // There is no input.
            Some(Output::Taken(_)) => {}
            None => return Err(SessionError::Violation("an empty message of an exec".to_owned())),
        }
    }
    Err(SessionError::Violation("an exec that ended without its exit".to_owned()))
}

fn keep(kept: &mut Vec<u8>, data: &[u8], limit: usize) {
    let room = limit.saturating_sub(kept.len()).min(data.len());
    kept.extend_from_slice(&data[..room]);
}

/// A container's output from a number on.
pub(super) async fn logs(
    mut client: AgentClient<Channel>,
    id: &ContainerId,
    after: u64,
) -> Result<TlsLogs, SessionError> {
    let start = LogsStart { container_id: id.to_string(), after };
    let first = LogsRequest { input: Some(logs_request::Input::Start(start)) };
    // Only the newest acknowledgement counts, so that there is nothing to queue.
    let (acknowledged, changes) = watch::channel(after);
    let later = unfold(changes, |mut changes| async move {
        changes.changed().await.ok()?;
        let sequence = *changes.borrow_and_update();
        let input = Some(logs_request::Input::Acknowledged(sequence));
        Some((LogsRequest { input }, changes))
    });
    let messages = once(async { first }).chain(later);
    let chunks = client.logs(messages).await.map_err(failed)?.into_inner();
    Ok(TlsLogs { chunks, acknowledged, last: after })
}

/// One container's output on its way.
pub(super) struct TlsLogs {
    chunks: Streaming<LogMessage>,
    acknowledged: watch::Sender<u64>,
    last: u64,
}

#[async_trait]
impl LogSource for TlsLogs {
    async fn next(&mut self) -> Result<Option<LogChunk>, SessionError> {
        let Some(message) = self.chunks.message().await.map_err(failed)? else { return Ok(None) };
        let chunk = convert::log_chunk(message)?;
        if chunk.sequence != self.last + 1 {
            return Err(SessionError::Violation(format!(
                "log chunk {} after {}",
                chunk.sequence, self.last
            )));
        }
        self.last = chunk.sequence;
        Ok(Some(chunk))
    }

    async fn acknowledge(&mut self, sequence: u64) -> Result<(), SessionError> {
        // The other end may be gone already; then nobody needs it.
        let _ = self.acknowledged.send(sequence);
        Ok(())
    }
}

/// How all containers are, then every change.
pub(super) async fn watch(
    mut client: AgentClient<Channel>,
) -> Result<BoxStream<'static, Result<WatchEvent, SessionError>>, SessionError> {
    let events = client.watch(WatchRequest {}).await.map_err(failed)?.into_inner();
    let state = Some(Watch { events, last: 0 });
    Ok(Box::pin(unfold(state, |state| async move {
        let mut watch = state?;
        let event = watch.next().await;
        let next = event.is_ok().then_some(watch);
        Some((event, next))
    })))
}

/// What the machine uses, again and again. It ends with the first error.
pub(super) async fn stats(
    client: AgentClient<Channel>,
    period: Duration,
) -> Result<BoxStream<'static, Result<StatsSample, SessionError>>, SessionError> {
    let period_ms = u32::try_from(period.as_millis()).unwrap_or(u32::MAX);
    let mut client = client.max_decoding_message_size(SAMPLE_BYTES_MAX);
    let samples = client.stats(StatsRequest { period_ms }).await.map_err(failed)?.into_inner();
    Ok(Box::pin(unfold(Some(samples), |samples| async move {
        let mut samples = samples?;
        let sample = match samples.message().await {
            Ok(Some(sample)) => convert::stats_sample(sample),
            Ok(None) => Err(SessionError::Broken(
                "the agent ended its samples, which never end by themselves".into(),
            )),
            Err(status) => Err(failed(status)),
        };
        let next = sample.is_ok().then_some(samples);
        Some((sample, next))
    })))
}

struct Watch {
    events: Streaming<WatchResponse>,
    last: u64,
}

impl Watch {
    async fn next(&mut self) -> Result<WatchEvent, SessionError> {
        let message = self.events.message().await.map_err(failed)?.ok_or_else(|| {
            SessionError::Broken("the agent ended its watch, which never ends by itself".into())
        })?;
        if message.sequence != self.last + 1 {
            return Err(SessionError::Violation(format!(
                "event {} after {}",
                message.sequence, self.last
            )));
        }
        self.last = message.sequence;
        let event = convert::watch_event(message.event)?;
        if (self.last == 1) != matches!(event, WatchEvent::Snapshot(_)) {
            return Err(SessionError::Violation("a snapshot in the wrong place".to_owned()));
        }
        Ok(event)
    }
}

/// What one sample may have; an agent leaves out what does not fit.
const SAMPLE_BYTES_MAX: usize = 256 * 1024;
/// What one message of an import carries.
const IMPORT_BYTES: usize = 256 * 1024;
/// An import in which nothing moves for so long is over. Unpacking goes on between the last byte and the answer.
const IMPORT_STALL: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_beyond_the_limit_is_dropped() {
        let mut kept = Vec::new();
        for data in [&b"abc"[..], b"def", b"ghi"] {
            keep(&mut kept, data, 5);
        }
        assert_eq!(kept, b"abcde");
        keep(&mut kept, b"x", 0);
        assert_eq!(kept, b"abcde");
    }
}
