//! One stream's two halves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::SpdyError;
use super::connection::{Out, PIECE_BYTES, Shared, StreamState};
use super::frame::Control;

/// A stream that goes both ways. Each half ends by itself.
pub struct Stream {
    /// What the peer sends.
    pub reader: Reader,
    /// What the peer gets.
    pub writer: Writer,
}

impl Stream {
    pub(super) fn id(&self) -> u32 {
        self.writer.id
    }
}

/// The peer's half. Dropping it throws away what still comes.
pub struct Reader {
    id: u32,
    pieces: mpsc::UnboundedReceiver<Piece>,
    state: Arc<StreamState>,
    shared: Arc<Shared>,
    /// Taken, and not told to the peer: of the stream, and of the connection.
    taken: [u32; 2],
}

/// Data that came, and the room that it takes.
pub(super) struct Piece {
    pub(super) data: Bytes,
    pub(super) _room: OwnedSemaphorePermit,
}

impl Reader {
    pub(super) fn new(
        id: u32,
        pieces: mpsc::UnboundedReceiver<Piece>,
        state: Arc<StreamState>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { id, pieces, state, shared, taken: [0; 2] }
    }

    /// The next piece; `None` when the peer ended its half. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SpdyError> {
        if let Some(piece) = self.pieces.recv().await {
            self.tell(&piece.data);
            return Ok(Some(piece.data));
        }
        match self.state.fin.load(Ordering::SeqCst) {
            true => Ok(None),
            false => Err(SpdyError::Reset),
        }
    }

    /// Opens the windows of a peer that keeps to them.
    fn tell(&mut self, data: &Bytes) {
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        for (taken, stream) in self.taken.iter_mut().zip([self.id, 0]) {
            *taken = taken.saturating_add(count);
            let update = Control::WindowUpdate { stream, delta: *taken };
            if *taken >= WINDOW_STEP && self.shared.try_send(update) {
                *taken = 0;
            }
        }
    }
}

/// This side's half. Dropping it before its end resets the stream.
pub struct Writer {
    id: u32,
    state: Arc<StreamState>,
    pub(super) shared: Arc<Shared>,
    finished: bool,
}

impl Writer {
    pub(super) fn new(id: u32, state: Arc<StreamState>, shared: Arc<Shared>) -> Self {
        Self { id, state, shared, finished: false }
    }

    /// Sends data; waits for as long as the peer does not take it.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), SpdyError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE_BYTES));
            self.put(Out::Data { stream: self.id, fin: false, data: piece }).await?;
        }
        Ok(())
    }

    /// Ends this half.
    pub async fn finish(mut self) -> Result<(), SpdyError> {
        let last = Out::Data { stream: self.id, fin: true, data: Bytes::new() };
        let sent = self.put(last).await;
        self.finished = true;
        self.shared.finished(self.id);
        sent
    }

    /// Says when the peer reset the stream, or the connection is over.
    pub fn gone(&self) -> CancellationToken {
        self.state.gone.clone()
    }

    /// Nobody shall hear of this half any more.
    pub(super) fn forget(&mut self) {
        self.finished = true;
        self.shared.forget(self.id);
    }

    async fn put(&self, out: Out) -> Result<(), SpdyError> {
        tokio::select! {
            biased;
            () = self.state.gone.cancelled() => Err(SpdyError::Reset),
            sent = self.shared.send(out) => sent,
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.forget(self.id);
            // A queue that is full belongs to a peer that does not listen anyway.
            self.shared.try_send(Control::Reset { stream: self.id, status: CANCEL });
        }
    }
}

/// Half of the window that a stream begins with.
const WINDOW_STEP: u32 = 32 << 10;
const CANCEL: u32 = 5;
