//! Streams: consoles and events.

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use infranetes_sdk::pod::{ConsoleChunk, ConsoleRequest, MachineEvent};
use infranetes_sdk::{BoxStream, ProviderError};
use tokio::sync::{broadcast, watch};
use tokio::time::sleep;

use crate::error::ProcessError;
use crate::machine::{Machine, Phase};

/// A machine's console.
pub(crate) fn console(machine: Arc<Machine>, request: &ConsoleRequest) -> BoxStream<ConsoleChunk> {
    let reader = Reader {
        from: machine.console().end().saturating_sub(request.replay_bytes),
        until: if request.follow { u64::MAX } else { machine.console().end() },
        phases: machine.phases(),
        closing: machine.closing(),
        machine,
        failed: false,
    };
    Box::pin(stream::unfold(reader, |mut reader| async move {
        let item = reader.next().await?;
        Some((item, reader))
    }))
}

/// What happens to machines from now on.
pub(crate) fn events(receiver: broadcast::Receiver<MachineEvent>) -> BoxStream<MachineEvent> {
    Box::pin(stream::unfold(receiver, |mut receiver| async move {
        loop {
            match receiver.recv().await {
                Ok(event) => return Some((Ok(event), receiver)),
                // A reader that is too slow misses events, and polls anyway.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }))
}

struct Reader {
    machine: Arc<Machine>,
    phases: watch::Receiver<Phase>,
    closing: watch::Receiver<bool>,
    from: u64,
    /// Where the replay ends; the greatest number when following.
    until: u64,
    failed: bool,
}

impl Reader {
    /// The next piece, or `None` at the end: after the replay, or once the machine is gone.
    async fn next(&mut self) -> Option<Result<ConsoleChunk, ProviderError>> {
        if self.failed {
            return None;
        }
        loop {
            // Asked before reading: what was printed until then is read below.
            let gone = *self.phases.borrow_and_update() == Phase::Gone;
            match self.machine.console().read(self.from) {
                Ok((mut data, next)) if !data.is_empty() => {
                    let over = usize::try_from(next.saturating_sub(self.until)).unwrap_or(0);
                    data.truncate(data.len().saturating_sub(over));
                    self.from = next;
                    return (!data.is_empty()).then_some(Ok(ConsoleChunk { data }));
                }
                Ok(_) if gone || self.until != u64::MAX => return None,
                Ok(_) => {}
                Err(_) if gone => return None,
                // The directory goes a moment before the machine is gone.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    if self.until != u64::MAX {
                        return None;
                    }
                }
                Err(source) => {
                    self.failed = true;
                    return Some(Err(ProcessError::io(
                        "read the console in",
                        self.machine.dir().path(),
                    )(source)
                    .into()));
                }
            }
            tokio::select! {
                () = sleep(POLL) => {}
                _ = self.phases.changed() => {}
                _ = self.closing.wait_for(|closing| *closing) => return None,
            }
        }
    }
}

/// How often a console is looked at while somebody follows it.
const POLL: Duration = Duration::from_millis(50);
