//! One end of the socket: calls, streams and notices of both sides at once, over one connection.
//!
//! What a side may make the other hold is bounded: bytes that wait to be written ([`QUEUED_BYTES_MAX`]), calls that run
//! ([`CALLS_MAX`]), items of a stream that nobody has read ([`WINDOW`](super::stream::WINDOW)), the size of a message. A side that
//! goes beyond ends the connection, with the reason.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi_stable::std_types::{RResult, RString};
use futures::FutureExt as _;
use infranetes_sdk::ProviderError;
use infranetes_sdk::bridge::abi::{EndpointBox, RawReply, RawRequest, StreamBox};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use super::encode_status;
use super::frame::{self, Frame, FrameError, Lane, MESSAGE_BYTES_MAX, Payload};
use super::stream::{self, Pump, Reading};

/// One end. Cheap to clone; all clones are one end.
#[derive(Clone)]
pub(crate) struct Link(Arc<Shared>);

struct Shared {
    /// The plugin's instance, for errors.
    name: String,
    runtime: Handle,
    frames: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
    next: AtomicU64,
    table: Mutex<Table>,
}

/// A frame that waits to be written, and the room that it takes.
struct Queued {
    bytes: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
}

/// Everything that goes on.
#[derive(Default)]
struct Table {
    /// Why nothing goes on any more, as an encoded `Status`.
    closed: Option<Vec<u8>>,
    /// Calls of this side.
    replies: HashMap<u64, oneshot::Sender<Payload>>,
    /// Streams that this side opens.
    openings: HashMap<u64, oneshot::Sender<Result<(), Vec<u8>>>>,
    /// Calls of the other side.
    running: HashMap<u64, AbortHandle>,
    /// Streams that this side reads.
    readings: HashMap<(Lane, u64), Reading>,
    /// Streams that the other side reads.
    pumps: HashMap<(Lane, u64), Pump>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkEnd {
    /// The other side closed it.
    #[error("the other side closed the connection")]
    Closed,
    /// It broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// The other side sent what is no frame.
    #[error("the other side does not keep to the protocol")]
    Frame(#[source] FrameError),
    /// The other side sent more than it was allowed to.
    #[error("the other side sent more of a stream than it was allowed to")]
    Flood,
}

impl Link {
    /// An end over a socket for the plugin `name`, and what [`Link::serve`] reads. Writes in the background.
    pub(crate) fn new(name: &str, socket: tokio::net::UnixStream) -> (Link, OwnedReadHalf) {
        let (reader, writer) = socket.into_split();
        let (frames, queue) = mpsc::unbounded_channel();
        let runtime = Handle::current();
        runtime.spawn(write(writer, queue));
        let shared = Shared {
            name: name.to_owned(),
            runtime,
            frames,
            room: Arc::new(Semaphore::new(QUEUED_BYTES_MAX)),
            next: AtomicU64::new(1),
            table: Mutex::default(),
        };
        (Link(Arc::new(shared)), reader)
    }

    /// Reads what the other side sends until the connection ends; its calls go to `local`.
    pub(crate) async fn serve(&self, reader: OwnedReadHalf, local: &EndpointBox) -> LinkEnd {
        let mut reader = BufReader::with_capacity(READ_BYTES, reader);
        loop {
            let frame = match read(&mut reader).await {
                Ok(frame) => frame,
                Err(end) => return end,
            };
            if let Err(end) = self.take(frame, local) {
                return end;
            }
        }
    }

    /// Ends everything that goes on; `status` is the answer to all of it, and to all that comes.
    pub(crate) fn close(&self, status: Vec<u8>) {
        let ended = {
            let mut table = self.table();
            let closed = table.closed.take().unwrap_or(status);
            std::mem::replace(&mut *table, Table { closed: Some(closed), ..Table::default() })
        };
        ended.running.values().for_each(AbortHandle::abort);
        // The rest ends by being dropped, outside of the lock.
    }

    /// Writes what waits, and then nothing more: the other side sees the end.
    pub(crate) fn finish(&self) {
        self.queue(Vec::new(), None);
    }

    /// Tells the other side something, unless it reads too slowly.
    pub(crate) fn notify(&self, method: &str, body: &[u8]) {
        if body.len() > MESSAGE_BYTES_MAX {
            return;
        }
        let bytes = Frame::Notify { method: method.to_owned(), body: body.to_owned() }.encode();
        if let Ok(room) = self.0.room.clone().try_acquire_many_owned(size(&bytes)) {
            self.queue(bytes, Some(room));
        }
    }

    /// Asks the other side.
    pub(crate) async fn call(&self, request: RawRequest) -> Payload {
        let (answer, reply) = oneshot::channel();
        let mut asked = self.register(|table, id| table.replies.insert(id, answer).is_none())?;
        let RawRequest { method, header, body } = request;
        let (method, id) = (method.into_string(), asked.id);
        self.check_size(&method, body.len())?;
        let (header, body) = (header.into_vec(), body.into_vec());
        self.send(Frame::Call { id, method, header, body }).await;
        asked.sent = true;
        reply.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Opens a stream at the other side.
    pub(crate) async fn open(
        &self,
        request: RawRequest,
        input: Option<StreamBox>,
    ) -> Result<StreamBox, Vec<u8>> {
        let (answer, opened) = oneshot::channel();
        let (reading, items) = stream::reading();
        let mut asked = self.register(|table, id| {
            table.readings.insert((Lane::Output, id), reading);
            table.openings.insert(id, answer).is_none()
        })?;
        let RawRequest { method, header, body } = request;
        let (method, id) = (method.into_string(), asked.id);
        self.check_size(&method, body.len())?;
        let (header, body) = (header.into_vec(), body.into_vec());
        self.send(Frame::Open { id, method, header, body, input: input.is_some() }).await;
        asked.sent = true;
        if let Some(input) = input {
            self.pump(Lane::Input, id, input);
        }
        opened.await.unwrap_or_else(|_| Err(self.closed()))?;
        asked.settled = true;
        Ok(stream::read(self.clone(), Lane::Output, id, items))
    }

    /// Why nothing goes on any more.
    pub(super) fn closed(&self) -> Vec<u8> {
        self.table().closed.clone().unwrap_or_else(|| {
            encode_status(&ProviderError::transient("the connection to the other side is closing"))
        })
    }

    /// Sends a frame once there is room for it.
    pub(super) async fn send(&self, frame: Frame) {
        let bytes = frame.encode();
        // An error means that the semaphore is closed, which nobody does.
        let room = self.0.room.clone().acquire_many_owned(size(&bytes)).await.ok();
        self.queue(bytes, room);
    }

    /// Sends a frame that has to arrive and is small. Each call and each item brings a few of these at most, so that
    /// the bounds of those are the bounds of these.
    pub(super) fn send_now(&self, frame: &Frame) {
        self.queue(frame.encode(), None);
    }

    /// The reader of a stream went away.
    pub(super) fn stop_reading(&self, lane: Lane, id: u64) {
        if self.table().readings.remove(&(lane, id)).is_some() {
            self.send_now(&Frame::Close { lane, id });
        }
    }

    /// A stream came to its end by itself.
    pub(super) fn end_pump(&self, lane: Lane, id: u64) {
        let pump = self.table().pumps.remove(&(lane, id));
        drop(pump);
    }

    fn queue(&self, bytes: Vec<u8>, room: Option<OwnedSemaphorePermit>) {
        // The writer ends with the connection; whoever waits hears of that by `close`.
        let _ = self.0.frames.send(Queued { bytes, _room: room });
    }

    fn pump(&self, lane: Lane, id: u64, items: StreamBox) {
        let mut table = self.table();
        if table.closed.is_none() {
            let pump = stream::pump(&self.0.runtime, self.clone(), lane, id, items);
            table.pumps.insert((lane, id), pump);
        }
    }

    fn register(&self, insert: impl FnOnce(&mut Table, u64) -> bool) -> Result<Asked, Vec<u8>> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let mut table = self.table();
        if let Some(status) = &table.closed {
            return Err(status.clone());
        }
        insert(&mut table, id);
        Ok(Asked { link: self.clone(), id, sent: false, settled: false })
    }

    fn take(&self, frame: Frame, local: &EndpointBox) -> Result<(), LinkEnd> {
        match frame {
            Frame::Notify { method, body } => local.notify(method.as_str().into(), (&*body).into()),
            Frame::Call { id, method, header, body } => {
                let request = raw(method, header, body);
                let busy = |reply| Frame::Reply { id, reply: Err(reply) };
                self.run(id, busy, || Work::Call(local.call(request)));
            }
            Frame::Open { id, method, header, body, input } => {
                let input = input.then(|| self.start_reading(id));
                let request = raw(method, header, body);
                let busy = |status| Frame::Opened { id, refused: Some(status) };
                self.run(id, busy, || Work::Open(local.open(request, input.into())));
            }
            Frame::Cancel { id } => self.cancelled(id),
            Frame::Reply { id, reply } => {
                let waiter = self.table().replies.remove(&id);
                if let Some(waiter) = waiter {
                    // Whoever asked may be gone.
                    let _ = waiter.send(reply);
                }
            }
            Frame::Opened { id, refused } => self.opened(id, refused),
            Frame::Item { lane, id, item } => return self.item(lane, id, item),
            Frame::End { lane, id } => {
                let reading = self.table().readings.remove(&(lane, id));
                return reading.map_or(Ok(()), |reading| reading.end()).map_err(|_| LinkEnd::Flood);
            }
            Frame::Credit { lane, id, items } => {
                if let Some(pump) = self.table().pumps.get(&(lane, id)) {
                    pump.allow(items);
                }
            }
            Frame::Close { lane, id } => self.end_pump(lane, id),
        }
        Ok(())
    }

    fn start_reading(&self, id: u64) -> StreamBox {
        let (reading, items) = stream::reading();
        self.table().readings.insert((Lane::Input, id), reading);
        stream::read(self.clone(), Lane::Input, id, items)
    }

    /// Runs a call of the other side, if there are not too many.
    fn run(&self, id: u64, busy: impl FnOnce(Vec<u8>) -> Frame, work: impl FnOnce() -> Work) {
        if self.table().running.len() >= CALLS_MAX {
            let error = ProviderError::throttled(format!("{CALLS_MAX} calls run already"));
            return self.send_now(&busy(encode_status(&error)));
        }
        let (link, work) = (self.clone(), work());
        let mut table = self.table();
        // Spawned under the lock, so that its end cannot come before its entry.
        let task = self.0.runtime.spawn(async move {
            match work {
                Work::Call(work) => {
                    let answer = std::panic::AssertUnwindSafe(work).catch_unwind().await;
                    let reply = link.reply(answer);
                    link.send(Frame::Reply { id, reply }).await;
                }
                Work::Open(work) => {
                    let opened = std::panic::AssertUnwindSafe(work).catch_unwind().await;
                    link.answer_open(id, opened).await;
                }
            }
            link.table().running.remove(&id);
        });
        table.running.insert(id, task.abort_handle());
    }

    async fn answer_open(&self, id: u64, opened: Result<RResult<StreamBox, AbiBytes>, Unwound>) {
        let refused = match opened {
            Ok(RResult::ROk(items)) => {
                self.send(Frame::Opened { id, refused: None }).await;
                return self.pump(Lane::Output, id, items);
            }
            Ok(RResult::RErr(status)) => status.into_vec(),
            Err(_) => self.panicked(),
        };
        self.send(Frame::Opened { id, refused: Some(refused) }).await;
    }

    /// The other side wants no answer any more, and nothing of a stream that may have been opened meanwhile.
    fn cancelled(&self, id: u64) {
        let (running, output) = {
            let mut table = self.table();
            (table.running.remove(&id), table.pumps.remove(&(Lane::Output, id)))
        };
        if let Some(running) = running {
            running.abort();
        }
        drop(output);
    }

    fn opened(&self, id: u64, refused: Option<Vec<u8>>) {
        let (waiter, reading) = {
            let mut table = self.table();
            let reading =
                refused.is_some().then(|| table.readings.remove(&(Lane::Output, id))).flatten();
            (table.openings.remove(&id), reading)
        };
        drop(reading);
        if let Some(waiter) = waiter {
            // Whoever asked may be gone.
            let _ = waiter.send(refused.map_or(Ok(()), Err));
        }
    }

    fn item(&self, lane: Lane, id: u64, item: Payload) -> Result<(), LinkEnd> {
        let mut table = self.table();
        let Some(reading) = table.readings.get(&(lane, id)) else { return Ok(()) };
        let last = item.is_err();
        reading.item(item).map_err(|_| LinkEnd::Flood)?;
        if last {
            table.readings.remove(&(lane, id));
        }
        Ok(())
    }

    fn reply(&self, answer: Result<RawReply, Unwound>) -> Payload {
        match answer {
            Ok(RResult::ROk(body)) => {
                self.check_size("an answer", body.len())?;
                Ok(body.into_vec())
            }
            Ok(RResult::RErr(status)) => {
                self.check_size("an error", status.len())?;
                Err(status.into_vec())
            }
            Err(_) => Err(self.panicked()),
        }
    }

    pub(super) fn check_size(&self, what: &str, bytes: usize) -> Result<(), Vec<u8>> {
        if bytes <= MESSAGE_BYTES_MAX {
            return Ok(());
        }
        let name = &self.0.name;
        let limit = MESSAGE_BYTES_MAX;
        let error =
            format!("{what} of {name} has {bytes} bytes, more than the {limit} of a message");
        Err(encode_status(&ProviderError::internal(error)))
    }

    pub(super) fn panicked(&self) -> Vec<u8> {
        let error = format!("{} panicked where it never may", self.0.name);
        encode_status(&ProviderError::internal(error))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work for the other side.
enum Work {
    Call(infranetes_sdk::bridge::abi::async_ffi::FfiFuture<RawReply>),
    Open(infranetes_sdk::bridge::abi::OpenFuture),
}

type AbiBytes = abi_stable::std_types::RVec<u8>;
type Unwound = Box<dyn std::any::Any + Send>;

/// A call of this side that waits for its answer. Dropped before, it is cancelled at the other side.
struct Asked {
    link: Link,
    id: u64,
    sent: bool,
    settled: bool,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let (left, pump) = {
            let mut table = self.link.table();
            let reply = table.replies.remove(&self.id).is_some();
            let opening = table.openings.remove(&self.id).is_some();
            table.readings.remove(&(Lane::Output, self.id));
            (reply || opening, table.pumps.remove(&(Lane::Input, self.id)))
        };
        drop(pump);
        if left && self.sent {
            self.link.send_now(&Frame::Cancel { id: self.id });
        }
    }
}

fn raw(method: String, header: Vec<u8>, body: Vec<u8>) -> RawRequest {
    RawRequest { method: RString::from(method), header: header.into(), body: body.into() }
}

async fn read(reader: &mut BufReader<OwnedReadHalf>) -> Result<Frame, LinkEnd> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => LinkEnd::Closed,
        _ => LinkEnd::Broken(error),
    };
    let mut prefix = [0; 4];
    reader.read_exact(&mut prefix).await.map_err(broken)?;
    let length = frame::length(prefix).map_err(LinkEnd::Frame)?;
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).await.map_err(broken)?;
    Frame::decode(&bytes).map_err(LinkEnd::Frame)
}

/// Writes what waits, many frames at a time. Ends with the connection, or with the last clone of the link.
async fn write(mut writer: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Queued>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, BATCH_FRAMES).await > 0 {
        let bytes = match waiting.as_slice() {
            [one] => &one.bytes,
            several => &several.iter().flat_map(|frame| &frame.bytes).copied().collect::<Vec<u8>>(),
        };
        if writer.write_all(bytes).await.is_err() || waiting.iter().any(|it| it.bytes.is_empty()) {
            return;
        }
        waiting.clear();
    }
}

/// A frame takes at most all the room there is, so that a large one can be sent at all.
fn size(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len().min(QUEUED_BYTES_MAX)).unwrap_or(u32::MAX)
}

/// Bytes of calls, answers and items that wait to be written, in one direction.
const QUEUED_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;
/// Calls of the other side that run at once. A host has a few for each pod.
const CALLS_MAX: usize = 4096;
const READ_BYTES: usize = 64 * 1024;
const BATCH_FRAMES: usize = 32;
