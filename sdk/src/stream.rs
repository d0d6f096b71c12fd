//! Streams of the provider traits.

use std::pin::Pin;

use futures::Stream;
use tokio::sync::mpsc;

use crate::error::Result;

/// A stream of items, each of which may be the error that ends it.
///
/// A stream ends at its first error; whatever would follow is dropped. Dropping a stream cancels its producer.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

/// A bounded channel as a stream: the producer waits while the reader is `capacity` items behind, and its `send`
/// fails once the stream is dropped.
///
/// ```
/// use infranetes_sdk::{ProviderError, StreamExt, stream};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # runtime.block_on(async {
/// let (sender, mut chunks) = stream::channel(4);
/// tokio::spawn(async move {
///     for number in 1..=3 {
///         // The reader is gone: there is nothing left to do.
///         if sender.send(Ok(number)).await.is_err() {
///             return;
///         }
///     }
///     let _ = sender.send(Err(ProviderError::transient("cut off"))).await;
/// });
/// assert_eq!(chunks.next().await.unwrap().unwrap(), 1);
/// assert_eq!(chunks.skip(2).next().await.unwrap().unwrap_err().message, "cut off");
/// # });
/// ```
pub fn channel<T: Send + 'static>(capacity: usize) -> (mpsc::Sender<Result<T>>, BoxStream<T>) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (sender, from_receiver(receiver))
}

/// The receiving half of a bounded channel as a stream.
pub fn from_receiver<T: Send + 'static>(receiver: mpsc::Receiver<Result<T>>) -> BoxStream<T> {
    Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    }))
}

/// A stream of items that are all known.
pub fn from_items<T: Send + 'static>(items: impl IntoIterator<Item = T>) -> BoxStream<T> {
    let items: Vec<T> = items.into_iter().collect();
    Box::pin(futures::stream::iter(items.into_iter().map(Ok)))
}
