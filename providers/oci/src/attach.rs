//! The container's own streams, for clients that come and go.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use infranetes_sdk::v1::attach_input::Input as Part;
use infranetes_sdk::v1::attach_output::Output;
use infranetes_sdk::v1::logs_input::Input as LogsPart;
use infranetes_sdk::v1::{
    AttachInput, AttachOutput, ContainerState, LogChunk, LogStream, LogsInput,
};
use infranetes_sdk::{BoxStream, ProviderError, Result, stream};
use tokio::io::AsyncWriteExt;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use crate::container::{Container, Input};
use crate::live::Listener;

/// Connects a client: output from now on, and its input if the container has one.
pub(crate) fn attach(
    container: Arc<Container>,
    input: BoxStream<AttachInput>,
) -> Result<BoxStream<AttachOutput>> {
    if container.state() != ContainerState::Running {
        return Err(ProviderError::conflict(format!("container {} does not run", container.id())));
    }
    let (sender, outputs) = stream::channel(OUTPUTS);
    let live = container.live.join();
    tokio::spawn(async move {
        let mut brought_input = false;
        let ended = tokio::select! {
            ended = forward(&container, live, &sender) => ended,
            error = write_input(&container, input, &mut brought_input) => Err(error),
            () = sender.closed() => Ok(()),
        };
        // Before the client hears of its end, which may take as long as it likes.
        if brought_input && is_once(&container) {
            close_input(&mut *container.input.lock().await).await;
        }
        if let Err(error) = ended {
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(outputs)
}

/// Streams a container's output from the spool.
pub(crate) fn logs(
    container: Arc<Container>,
    after: u64,
    mut input: BoxStream<LogsInput>,
) -> BoxStream<LogChunk> {
    let (sender, chunks) = stream::channel(OUTPUTS);
    tokio::spawn(async move {
        let spool = container.spool.clone();
        let mut reader = spool.reader(after);
        let sending = async {
            loop {
                match reader.next().await {
                    Ok(Some(chunk)) => {
                        if sender.send(Ok(chunk)).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                }
            }
        };
        let acknowledging = async {
            while let Some(message) = input.next().await {
                match message.map(|message| message.input) {
                    Ok(Some(LogsPart::Acknowledged(sequence))) => spool.acknowledge(sequence),
                    Ok(_) => return Some(ProviderError::invalid("a log was started twice")),
                    // The reader is gone; so is its stream of chunks, in a moment.
                    Err(_) => break,
                }
            }
            std::future::pending().await
        };
        let refused = tokio::select! {
            () = sending => None,
            refused = acknowledging => refused,
            () = sender.closed() => None,
        };
        if let Some(error) = refused {
            let _ = sender.send(Err(error)).await;
        }
    });
    chunks
}

async fn forward(
    container: &Container,
    mut live: Listener,
    output: &mpsc::Sender<Result<AttachOutput>>,
) -> Result<()> {
    let mut status = container.status.subscribe();
    let ended = status.wait_for(|status| status.state() == ContainerState::Exited);
    tokio::pin!(ended);
    loop {
        let piece = tokio::select! {
            biased;
            piece = live.next() => piece,
            // All that was written before the end is in the channel by then.
            _ = &mut ended => return Ok(()),
        };
        match piece {
            Ok(piece) => {
                let data = piece.data.to_vec();
                let wrapped = match piece.stream {
                    LogStream::Stderr => Output::Stderr(data),
                    _ => Output::Stdout(data),
                };
                if output.send(Ok(AttachOutput { output: Some(wrapped) })).await.is_err() {
                    return Ok(());
                }
            }
            // The container does not wait for those who watch it.
            Err(RecvError::Lagged(_)) => {
                return Err(ProviderError::transient("the attached client fell behind the output"));
            }
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

fn is_once(container: &Container) -> bool {
    container.request.process.as_ref().is_some_and(|process| process.stdin_once)
}

/// Ends a container's input: for a terminal that is control-D.
async fn close_input(input: &mut Input) {
    if let Input::Terminal(console) = input {
        let _ = tokio::time::timeout(CLOSE_LIMIT, console.close_input()).await;
    }
    *input = Input::Closed;
}

/// Passes input on; comes back only with an error. A client that never sends any, not even an empty piece, brings none.
async fn write_input(
    container: &Container,
    mut input: BoxStream<AttachInput>,
    brought_input: &mut bool,
) -> ProviderError {
    while let Some(message) = input.next().await {
        let part = match message {
            Ok(message) => message.input,
            Err(error) => return error,
        };
        *brought_input |= matches!(part, Some(Part::Stdin(_) | Part::StdinClosed(_)));
        let mut target = container.input.lock().await;
        let written = match (part, &mut *target) {
            (Some(Part::Stdin(data)), Input::Closed) if data.is_empty() => Ok(()),
            (Some(Part::Stdin(_)), Input::Closed) => {
                return ProviderError::conflict("the container's input is closed");
            }
            (Some(Part::Stdin(data)), Input::Pipe(pipe)) => pipe.write_all(&data).await,
            (Some(Part::Stdin(data)), Input::Terminal(console)) => console.write_all(&data).await,
            (Some(Part::StdinClosed(_)), input) => {
                // Another client may still want to write, unless the first was to be the last.
                if is_once(container) {
                    close_input(input).await;
                }
                Ok(())
            }
            (Some(Part::Resize(size)), Input::Terminal(console)) => console.resize(&size),
            (Some(Part::Resize(_)), _) if container.process.terminal => Ok(()),
            (Some(Part::Resize(_)), _) => {
                return ProviderError::invalid("only a terminal has a size");
            }
            (Some(Part::Start(_)) | None, _) => {
                return ProviderError::invalid("an attach was started twice");
            }
        };
        if written.is_err() {
            *target = Input::Closed;
        }
    }
    std::future::pending().await
}

const OUTPUTS: usize = 16;
/// A terminal whose program reads nothing takes no control-D either.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
