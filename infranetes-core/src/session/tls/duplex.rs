//! Streams that go both ways, each an HTTP/2 stream of its own: its windows are the back-pressure.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::{BoxStream, once, unfold};
use futures::{Stream, StreamExt};
use infranetes_agent_protocol::v1::agent_client::AgentClient;
use infranetes_agent_protocol::v1::{
    self, AttachRequest, AttachStart, ExecRequest, PortForwardRequest, PortForwardStart,
    attach_request, exec_request, port_forward_request, port_forward_response,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tonic::Streaming;
use tonic::transport::Channel;

use super::convert;
use super::failure::failed;
use crate::error::FailureKind;
use crate::ids::ContainerId;
use crate::session::SessionError;
use crate::session::duplex::{
    ExecStart, PortInputs, PortOutput, PortOutputs, ProgramInput, ProgramInputs, ProgramOutputs,
};

/// Places for streams whose other end may be slow. All of them together cannot fill the connection's window (`dial`, and
/// the agent's listener): calls, logs and the watch always get through.
pub(super) struct Places(Arc<Semaphore>);

impl Places {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(DUPLEX_MAX)))
    }

    fn take(&self) -> Result<OwnedSemaphorePermit, SessionError> {
        self.0.clone().try_acquire_owned().map_err(|_| SessionError::Refused {
            kind: FailureKind::Exhausted,
            message: format!("{DUPLEX_MAX} streams to this pod are open already"),
        })
    }
}

/// Runs a command.
pub(super) async fn exec(
    mut client: AgentClient<Channel>,
    places: &Places,
    start: ExecStart,
    input: ProgramInputs,
) -> Result<ProgramOutputs, SessionError> {
    use exec_request::Input;
    let place = places.take()?;
    let start = v1::ExecStart {
        container_id: start.container.to_string(),
        args: start.args,
        tty: start.tty,
        stdin: start.stdin,
        timeout_ms: start.timeout.map_or(0, |timeout| convert::millis(timeout).max(1)),
    };
    let credit = Credit::new();
    let (input, open) = until_dropped(pieces(input, credit.clone()).map(|input| match input {
        ProgramInput::Data(data) => Input::Stdin(data),
        ProgramInput::Closed => Input::StdinClosed(true),
        ProgramInput::Resize(size) => Input::Resize(convert::terminal_size(size)),
    }));
    let messages = once(async { Input::Start(start) }).chain(input);
    let messages = messages.map(|input| ExecRequest { input: Some(input) });
    let output = client.exec(messages).await.map_err(failed)?.into_inner();
    Ok(outputs(output, credit, (open, place), |response: v1::ExecResponse| match response.output {
        Some(v1::exec_response::Output::Taken(count)) => Ok(Said::Taken(count)),
        output => convert::exec_output(output).map(Said::Item),
    }))
}

/// Attaches to a container.
pub(super) async fn attach(
    mut client: AgentClient<Channel>,
    places: &Places,
    id: &ContainerId,
    input: ProgramInputs,
) -> Result<ProgramOutputs, SessionError> {
    use attach_request::Input;
    let place = places.take()?;
    let start = AttachStart { container_id: id.to_string() };
    let credit = Credit::new();
    let (input, open) = until_dropped(pieces(input, credit.clone()).map(|input| match input {
        ProgramInput::Data(data) => Input::Stdin(data),
        ProgramInput::Closed => Input::StdinClosed(true),
        ProgramInput::Resize(size) => Input::Resize(convert::terminal_size(size)),
    }));
    let messages = once(async { Input::Start(start) }).chain(input);
    let messages = messages.map(|input| AttachRequest { input: Some(input) });
    let output = client.attach(messages).await.map_err(failed)?.into_inner();
    Ok(outputs(output, credit, (open, place), |response: v1::AttachResponse| {
        match response.output {
            Some(v1::attach_response::Output::Taken(count)) => Ok(Said::Taken(count)),
            output => convert::attach_output(output).map(Said::Item),
        }
    }))
}

/// Connects to a port of the machine; answers once it is connected.
pub(super) async fn port_forward(
    mut client: AgentClient<Channel>,
    places: &Places,
    port: u16,
    input: PortInputs,
) -> Result<PortOutputs, SessionError> {
    use port_forward_request::Input;
    use port_forward_response::Output;
    let place = places.take()?;
    let start = Input::Start(PortForwardStart { port: port.into() });
    let credit = Credit::new();
    let data = input.map(ProgramInput::Data).boxed();
    let data = pieces(data, credit.clone()).map(|input| match input {
        ProgramInput::Data(data) => Input::Data(data),
        ProgramInput::Closed | ProgramInput::Resize(_) => Input::Closed(true),
    });
    let closed = once(async { Input::Closed(true) });
    let (input, open) = until_dropped(data.chain(closed));
    let messages = once(async { start }).chain(input);
    let messages = messages.map(|input| PortForwardRequest { input: Some(input) });
    let mut output = client.port_forward(messages).await.map_err(failed)?.into_inner();
    let first = output.message().await.map_err(failed)?.and_then(|first| first.output);
    let Some(Output::Connected(_)) = first else {
        return Err(SessionError::Violation("a port-forward that is not connected".to_owned()));
    };
    Ok(outputs(output, credit, (open, place), |response: v1::PortForwardResponse| {
        Ok(Said::Item(match response.output {
            Some(Output::Data(data)) => PortOutput::Data(convert::piece(data)?),
            Some(Output::Closed(_)) => PortOutput::Closed,
            Some(Output::Taken(count)) => return Ok(Said::Taken(count)),
            Some(Output::Connected(_)) | None => {
                let problem = "a message of a port-forward out of turn".to_owned();
                return Err(SessionError::Violation(problem));
            }
        }))
    }))
}

/// How many bytes may be on their way that the agent has not taken.
///
/// HTTP/2's windows alone are not enough: a body that waits for a window is not asked for its end, so that a stream whose
/// input is stuck could not be cancelled.
#[derive(Clone)]
struct Credit(Arc<Semaphore>);

impl Credit {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(CREDIT_BYTES)))
    }

    /// Waits until so many bytes may go.
    async fn spend(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Ok(spent) = self.0.acquire_many(bytes).await {
            spent.forget();
        }
    }

    fn earn(&self, bytes: u32) -> Result<(), SessionError> {
        let bytes = bytes as usize;
        if bytes > CREDIT_BYTES.saturating_sub(self.0.available_permits()) {
            return Err(SessionError::Violation("more input taken than was sent".to_owned()));
        }
        self.0.add_permits(bytes);
        Ok(())
    }
}

/// Input in pieces of a bounded size, each as soon as there is credit for it.
fn pieces(input: ProgramInputs, credit: Credit) -> impl Stream<Item = ProgramInput> + Send {
    let pieces = input.flat_map(|input| {
        futures::stream::iter(match input {
            ProgramInput::Data(data) => split(data),
            other => vec![other],
        })
    });
    pieces.then(move |piece| {
        let credit = credit.clone();
        async move {
            if let ProgramInput::Data(data) = &piece {
                credit.spend(data.len()).await;
            }
            piece
        }
    })
}

fn split(data: Vec<u8>) -> Vec<ProgramInput> {
    if data.len() <= PIECE_BYTES {
        return vec![ProgramInput::Data(data)];
    }
    data.chunks(PIECE_BYTES).map(|piece| ProgramInput::Data(piece.to_vec())).collect()
}

/// What one message of an answer says.
enum Said<T> {
    Item(T),
    Taken(u32),
}

/// Output as it comes; holds `kept` for as long as the output is held.
fn outputs<M: Send + 'static, T: Send + 'static>(
    output: Streaming<M>,
    credit: Credit,
    kept: impl Send + 'static,
    convert: fn(M) -> Result<Said<T>, SessionError>,
) -> BoxStream<'static, Result<T, SessionError>> {
    Box::pin(unfold(Some((output, credit, kept)), move |state| async move {
        let (mut output, credit, kept) = state?;
        let item = loop {
            let message = output.message().await.map_err(failed).transpose()?;
            match message.and_then(convert) {
                Ok(Said::Taken(bytes)) => match credit.earn(bytes) {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
                Ok(Said::Item(item)) => break Ok(item),
                Err(error) => break Err(error),
            }
        };
        let rest = item.is_ok().then_some((output, credit, kept));
        Some((item, rest))
    }))
}

/// The input ends when what comes with it is dropped: only a call without either half is cancelled.
fn until_dropped<S>(input: S) -> (Input<S::Item>, oneshot::Sender<()>)
where
    S: Stream + Send + 'static,
{
    let (open, dropped) = oneshot::channel::<()>();
    (Input(Box::pin(input.take_until(dropped))), open)
}

/// A type of its own: the compiler cannot prove that a call with a boxed stream in it is `Send`.
struct Input<T>(BoxStream<'static, T>);

impl<T> Stream for Input<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_next_unpin(cx)
    }
}

/// What one message carries: small beside the windows, so that many streams share a connection fairly.
const PIECE_BYTES: usize = 32 * 1024;
/// As the definition of the protocol says. An agent tells what it took in steps of a quarter.
const CREDIT_BYTES: usize = 128 * 1024;
/// Windows of these streams together stay below that of the connection, on both sides.
const DUPLEX_MAX: usize = 64;
