//! Tells the node how much of a stream's input was taken.
//!
//! The node never has more on its way than may wait here, so that its half of the stream is always ready to be ended, whatever
//! a program does not read: a stream whose sender waits for HTTP/2's window cannot be cancelled by the node.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::ready;
use futures::stream::{once, select};
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::ResponseStream;

/// An input, and how many bytes of it were taken: those of an item count when the next one is asked for.
pub(super) fn counted<S: Stream + Unpin>(
    input: S,
    bytes: fn(&S::Item) -> usize,
) -> (Counted<S>, mpsc::Receiver<u32>) {
    let (told, taken) = mpsc::channel(TOLD);
    (Counted { input, bytes, given: 0, taken: 0, told }, taken)
}

/// See [`counted`].
pub(super) struct Counted<S: Stream> {
    input: S,
    bytes: fn(&S::Item) -> usize,
    /// Of the last item.
    given: usize,
    /// Taken and not told.
    taken: usize,
    told: mpsc::Sender<u32>,
}

impl<S: Stream + Unpin> Stream for Counted<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.taken += std::mem::take(&mut self.given);
        // The rest is told with what is taken later; so little is never what the node waits for.
        if self.taken >= STEP {
            let taken = u32::try_from(self.taken).unwrap_or(u32::MAX);
            if self.told.try_send(taken).is_ok() {
                self.taken = 0;
            }
        }
        let item = self.input.poll_next_unpin(cx);
        if let Poll::Ready(Some(item)) = &item {
            self.given = (self.bytes)(item);
        }
        item
    }
}

/// An answer with what was taken in between; it ends when the output does.
pub(super) fn with_taken<T: Send + 'static>(
    output: impl Stream<Item = Result<T, Status>> + Send + 'static,
    taken: mpsc::Receiver<u32>,
    message: fn(u32) -> T,
) -> ResponseStream<T> {
    let output = output.map(Some).chain(once(ready(None)));
    let taken = ReceiverStream::new(taken).map(move |taken| Some(Ok(message(taken))));
    let both = select(output, taken).take_while(|item| ready(item.is_some()));
    Box::pin(both.filter_map(ready))
}

/// A quarter of what a node has on its way at most.
const STEP: usize = 32 * 1024;
const TOLD: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_taken_is_told_in_steps_and_nothing_is_lost() {
        let input = futures::stream::iter(vec![vec![0_u8; 20_000]; 10]);
        let (mut input, taken) = counted(input, Vec::len);
        let (sender, output) = mpsc::channel(1);
        let mut answer = with_taken(ReceiverStream::new(output), taken, |taken| taken);
        assert!(input.next().await.is_some() && input.next().await.is_some());
        // Two were given; the second is not taken before the third is asked for.
        assert!(input.next().await.is_some());
        assert_eq!(answer.next().await.unwrap().unwrap(), 40_000);
        while input.next().await.is_some() {}
        let mut told = 40_000;
        while told < 200_000 {
            told += answer.next().await.unwrap().unwrap();
        }
        assert_eq!(told, 200_000);
        // The output's end ends the answer, although more could be taken.
        sender.send(Ok(7)).await.unwrap();
        drop(sender);
        assert_eq!(answer.next().await.unwrap().unwrap(), 7);
        assert!(answer.next().await.is_none());
    }
}
