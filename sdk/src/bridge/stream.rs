//! Streams through the boundary. The producing side pumps items into a bounded queue on its own runtime, so that the
//! reading side never runs the producer's code.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::ROption;
use async_ffi::{ContextExt, FfiContext, FfiPoll};
use futures::{FutureExt, Stream, StreamExt};
use infranetes_abi::{RawReply, RawStream, RawStream_TO, StreamBox};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::remote::MESSAGE_BYTES_MAX;
use super::task::panicked;
use super::wire::{decode_reply, encode_reply};
use crate::error::{ProviderError, Result};
use crate::stream::BoxStream;

/// Offers a stream to the other side.
pub(super) fn outgoing(runtime: &Handle, label: String, items: BoxStream<Vec<u8>>) -> StreamBox {
    let (sender, receiver) = mpsc::channel(QUEUE_ITEMS);
    let pump = runtime.spawn(pump(label, items, sender)).abort_handle();
    RawStream_TO::from_value(Outgoing { items: receiver, pump }, TD_Opaque)
}

/// Reads a stream of the other side.
pub(super) fn incoming(method: &'static str, raw: StreamBox) -> BoxStream<Vec<u8>> {
    Box::pin(Incoming { method, raw: Some(raw) })
}

struct Outgoing {
    items: mpsc::Receiver<Result<Vec<u8>>>,
    pump: AbortHandle,
}

impl RawStream for Outgoing {
    fn poll_next(&mut self, cx: &mut FfiContext<'_>) -> FfiPoll<ROption<RawReply>> {
        match cx.with_context(|cx| self.items.poll_recv(cx)) {
            Poll::Pending => FfiPoll::Pending,
            Poll::Ready(item) => FfiPoll::Ready(item.map(encode_reply).into()),
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

async fn pump(label: String, items: BoxStream<Vec<u8>>, sender: mpsc::Sender<Result<Vec<u8>>>) {
    let copied = AssertUnwindSafe(copy(items, &sender)).catch_unwind().await;
    if let Err(payload) = copied {
        // A reader that went away does not need to know.
        let _ = sender.send(Err(panicked(&label, payload.as_ref()))).await;
    }
}

async fn copy(mut items: BoxStream<Vec<u8>>, sender: &mpsc::Sender<Result<Vec<u8>>>) {
    while let Some(item) = items.next().await {
        let last = item.is_err();
        if sender.send(item).await.is_err() || last {
            return;
        }
    }
}

struct Incoming {
    method: &'static str,
    raw: Option<StreamBox>,
}

// The box is only a pointer: moving this moves nothing that the other side sees.
impl Unpin for Incoming {}

impl Stream for Incoming {
    type Item = Result<Vec<u8>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let method = self.method;
        let Some(raw) = self.raw.as_mut() else { return Poll::Ready(None) };
        let item = match cx.with_ffi_context(|cx| raw.poll_next(cx)) {
            FfiPoll::Pending => return Poll::Pending,
            FfiPoll::Ready(item) => item
                .into_option()
                .map(|reply| decode_reply(method, reply).and_then(|body| bounded(method, body))),
            FfiPoll::Panicked => {
                Some(Err(ProviderError::internal(format!("the stream of {method} panicked"))))
            }
        };
        if !matches!(item, Some(Ok(_))) {
            self.raw = None;
        }
        Poll::Ready(item)
    }
}

fn bounded(method: &str, body: Vec<u8>) -> Result<Vec<u8>> {
    match body.len() {
        bytes if bytes > MESSAGE_BYTES_MAX => Err(ProviderError::internal(format!(
            "an item of the stream of {method} has {bytes} bytes, more than the {MESSAGE_BYTES_MAX} of a message"
        ))),
        _ => Ok(body),
    }
}

/// Items that wait for a slow reader; then the producer waits.
const QUEUE_ITEMS: usize = 16;
