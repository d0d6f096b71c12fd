//! A container's output for those who are attached to it, from now on.
//!
//! The container and its log come first. Each client may be [`PIECES`] behind; when one is, the output waits for it, but for no
//! longer than [`PATIENCE`] until all have caught up again. So a burst reaches a client that is a little slower, and a client that does
//! not read, or reads steadily too slowly, holds the container back once for a second, and is dropped.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use infranetes_sdk::v1::LogStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, timeout};

/// Everybody who is attached to one container.
pub(crate) struct Audience {
    pieces: broadcast::Sender<Live>,
    taken: Arc<Notify>,
    /// Since when somebody is as far behind as one may be.
    waits_since: Mutex<Option<Instant>>,
}

/// A piece of output, as attached clients get it.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) stream: LogStream,
    pub(crate) data: Arc<[u8]>,
}

/// One who is attached.
pub(crate) struct Listener {
    pieces: broadcast::Receiver<Live>,
    taken: Arc<Notify>,
}

impl Audience {
    pub(crate) fn new() -> Self {
        Self {
            pieces: broadcast::Sender::new(PIECES),
            taken: Arc::default(),
            waits_since: Mutex::default(),
        }
    }

    pub(crate) fn join(&self) -> Listener {
        Listener { pieces: self.pieces.subscribe(), taken: self.taken.clone() }
    }

    /// Shows everybody a piece. Costs nothing when nobody is there.
    pub(crate) async fn show(&self, stream: LogStream, data: &[u8]) {
        if self.pieces.receiver_count() == 0 {
            return;
        }
        loop {
            let taken = self.taken.notified();
            let mut taken = std::pin::pin!(taken);
            taken.as_mut().enable();
            let Some(patience) = self.patience() else { break };
            if timeout(patience, taken).await.is_err() {
                break;
            }
        }
        let _ = self.pieces.send(Live { stream, data: data.into() });
    }

    /// How long to wait before the next piece, if at all.
    fn patience(&self) -> Option<Duration> {
        let behind = self.pieces.len();
        let mut since = self.waits_since.lock().unwrap_or_else(PoisonError::into_inner);
        if behind == 0 {
            *since = None;
        }
        if behind < PIECES {
            return None;
        }
        let since = *since.get_or_insert_with(Instant::now);
        PATIENCE.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }
}

impl Listener {
    /// The next piece; an error when this one fell too far behind. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Live, RecvError> {
        let piece = self.pieces.recv().await;
        self.taken.notify_waiters();
        piece
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.taken.notify_waiters();
    }
}

/// Of at most 32 KiB each.
const PIECES: usize = 64;
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    async fn burst(audience: &Audience, pieces: usize) -> Duration {
        let begin = Instant::now();
        for _ in 0..pieces {
            audience.show(LogStream::Stdout, b"x").await;
        }
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_reads_costs_a_second_once_and_is_dropped() {
        let audience = Audience::new();
        assert_eq!(burst(&audience, 1000).await, Duration::ZERO);
        let mut lazy = audience.join();
        assert_eq!(burst(&audience, 1000).await, PATIENCE);
        assert_eq!(burst(&audience, 1000).await, Duration::ZERO);
        assert!(matches!(lazy.next().await, Err(RecvError::Lagged(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_a_little_slower_gets_the_whole_burst() {
        let audience = Arc::new(Audience::new());
        let mut slow = audience.join();
        let reading = tokio::spawn(async move {
            for _ in 0..500 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                slow.next().await.unwrap();
            }
        });
        assert!(burst(&audience, 500).await < PATIENCE);
        reading.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_steadily_too_slow_is_dropped() {
        let audience = Arc::new(Audience::new());
        let mut slow = audience.join();
        let reading = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if slow.next().await.is_err() {
                    return;
                }
            }
        });
        assert!(burst(&audience, 1000).await <= PATIENCE * 2);
        reading.await.unwrap();
    }
}
