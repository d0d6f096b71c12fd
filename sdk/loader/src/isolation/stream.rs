//! Streams over a link: the side that produces sends an item only while the side that reads has room for it.

use std::sync::Arc;
use std::task::Poll;

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{ROption, RResult};
use async_ffi::{ContextExt, FfiContext, FfiPoll};
use infranetes_sdk::bridge::abi::{RawReply, RawStream, RawStream_TO, StreamBox};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::frame::{Frame, Lane, Payload};
use super::link::Link;

/// Where arriving items are put.
pub(super) struct Reading(mpsc::Sender<Option<Payload>>);

/// Where the reader takes them.
pub(super) type Items = mpsc::Receiver<Option<Payload>>;

/// The other side sent more than it was allowed to.
pub(super) struct Flood;

/// A stream that this side reads.
pub(super) fn reading() -> (Reading, Items) {
    // One more for the end.
    let (sender, receiver) = mpsc::channel(WINDOW as usize + 1);
    (Reading(sender), receiver)
}

impl Reading {
    pub(super) fn item(&self, item: Payload) -> Result<(), Flood> {
        // The last place is the end's.
        match self.0.capacity() {
            0 | 1 if !self.0.is_closed() => Err(Flood),
            _ => self.put(Some(item)),
        }
    }

    pub(super) fn end(self) -> Result<(), Flood> {
        self.put(None)
    }

    fn put(&self, item: Option<Payload>) -> Result<(), Flood> {
        match self.0.try_send(item) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(Flood),
            // A reader that went away has said so.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }
}

/// The reader's end of a stream, in the form that crosses to providers.
pub(super) fn read(link: Link, lane: Lane, id: u64, items: Items) -> StreamBox {
    let reader = Reader { link, lane, id, items, taken: 0, ended: false };
    RawStream_TO::from_value(reader, TD_Opaque)
}

struct Reader {
    link: Link,
    lane: Lane,
    id: u64,
    items: Items,
    taken: u32,
    ended: bool,
}

impl RawStream for Reader {
    fn poll_next(&mut self, cx: &mut FfiContext<'_>) -> FfiPoll<ROption<RawReply>> {
        if self.ended {
            return FfiPoll::Ready(ROption::RNone);
        }
        let item = match cx.with_context(|cx| self.items.poll_recv(cx)) {
            Poll::Pending => return FfiPoll::Pending,
            Poll::Ready(Some(item)) => item,
            // No end was said: the connection is gone.
            Poll::Ready(None) => Some(Err(self.link.closed())),
        };
        self.ended = !matches!(item, Some(Ok(_)));
        if !self.ended {
            self.taken += 1;
            if self.taken >= WINDOW / 4 {
                let items = std::mem::take(&mut self.taken);
                let frame = Frame::Credit { lane: self.lane, id: self.id, items };
                self.link.send_now(&frame);
            }
        }
        FfiPoll::Ready(match item {
            None => ROption::RNone,
            Some(Ok(body)) => ROption::RSome(RResult::ROk(body.into())),
            Some(Err(status)) => ROption::RSome(RResult::RErr(status.into())),
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.link.stop_reading(self.lane, self.id);
    }
}

/// A stream that is sent to the other side; it ends when this is dropped.
pub(super) struct Pump {
    task: AbortHandle,
    credit: Arc<Semaphore>,
}

impl Pump {
    /// The reader has room for more.
    pub(super) fn allow(&self, items: u32) {
        // A side that allows too much only allows it to itself, but the counter must not overflow.
        let room = (WINDOW as usize).saturating_sub(self.credit.available_permits());
        self.credit.add_permits(room.min(items as usize));
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends `items` as the reader takes them.
pub(super) fn pump(runtime: &Handle, link: Link, lane: Lane, id: u64, items: StreamBox) -> Pump {
    let credit = Arc::new(Semaphore::new(WINDOW as usize));
    let task = runtime.spawn(copy(link, lane, id, items, credit.clone()));
    Pump { task: task.abort_handle(), credit }
}

async fn copy(link: Link, lane: Lane, id: u64, mut items: StreamBox, credit: Arc<Semaphore>) {
    // An error means that the semaphore is closed, which nobody does.
    while let Ok(permit) = credit.acquire().await {
        permit.forget();
        let next = std::future::poll_fn(|cx| match cx.with_ffi_context(|cx| items.poll_next(cx)) {
            FfiPoll::Pending => Poll::Pending,
            FfiPoll::Ready(item) => Poll::Ready(Ok(item)),
            FfiPoll::Panicked => Poll::Ready(Err(link.panicked())),
        });
        let item = match next.await {
            Ok(ROption::RNone) => {
                link.send(Frame::End { lane, id }).await;
                break;
            }
            Ok(ROption::RSome(RResult::ROk(body))) => {
                link.check_size("an item of a stream", body.len()).map(|()| body.into_vec())
            }
            Ok(ROption::RSome(RResult::RErr(status))) => Err(status.into_vec()),
            Err(status) => Err(status),
        };
        let last = item.is_err();
        link.send(Frame::Item { lane, id, item }).await;
        if last {
            break;
        }
    }
    link.end_pump(lane, id);
}

/// Items that one side may send before the other has taken any; as many wait in a stream within one process.
pub(super) const WINDOW: u32 = 16;
