//! One connection: a task that reads frames, one that writes them, one that watches over both.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::frame::{self, Control, Head};
use super::headers::{Deflater, Headers, Inflater};
use super::stream::{Piece, Reader, Stream, Writer};
use super::{Limits, Role, SpdyError};

/// An open connection. Dropping it cuts it off; [`Connection::close`] lets everything arrive before.
pub struct Connection {
    shared: Arc<Shared>,
    offers: mpsc::Receiver<Offer>,
    /// The id of the next stream that is opened here. Ids have to go out in their order.
    next: tokio::sync::Mutex<u32>,
    /// The id of the ping that comes after everything else.
    last_ping: u32,
    tasks: JoinSet<()>,
}

/// A stream that the peer wants to open.
pub struct Offer {
    /// What it says of it.
    pub headers: Headers,
    stream: Stream,
}

impl Offer {
    /// The stream's number: odd for those of a client.
    pub fn id(&self) -> u32 {
        self.stream.id()
    }

    /// Opens it.
    pub async fn accept(self) -> Result<Stream, SpdyError> {
        let reply =
            Control::SynReply { stream: self.stream.id(), fin: false, headers: Headers::default() };
        self.stream.writer.shared.send(Out::Control(reply)).await?;
        Ok(self.stream)
    }

    /// Refuses it.
    pub async fn refuse(mut self) {
        let reset = Control::Reset { stream: self.stream.id(), status: REFUSED_STREAM };
        self.stream.writer.forget();
        let _ = self.stream.writer.shared.send(Out::Control(reset)).await;
    }
}

impl Connection {
    /// Begins to speak SPDY.
    pub fn start<T>(io: T, role: Role, limits: Limits) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (out, outgoing) = mpsc::channel(OUTGOING);
        let (offer, offers) = mpsc::channel(limits.streams.max(1));
        let shared = Arc::new(Shared {
            streams: Mutex::default(),
            out,
            ended: CancellationToken::new(),
            why: OnceLock::new(),
            begun: Instant::now(),
            moved_ms: AtomicU64::new(0),
            read_ms: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(limits.unread_bytes)),
            answered: watch::Sender::new(0),
        });
        let (read, write) = tokio::io::split(io);
        let mut tasks = JoinSet::new();
        let receiving = Receiving {
            shared: shared.clone(),
            io: BufReader::with_capacity(READ_AHEAD, read),
            inflater: Inflater::new(limits.header_bytes),
            offer,
            parity: if role == Role::Server { 1 } else { 0 },
            last: 0,
            limits,
        };
        tasks.spawn(receiving.run());
        tasks.spawn(write_all(shared.clone(), outgoing, write));
        tasks.spawn(watch_over(shared.clone(), role, limits.idle));
        let next = tokio::sync::Mutex::new(if role == Role::Server { 2 } else { 1 });
        let last_ping = if role == Role::Server { u32::MAX - 1 } else { u32::MAX };
        Self { shared, offers, next, last_ping, tasks }
    }

    /// The next stream that the peer wants to open; `None` once the connection is over. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Offer> {
        tokio::select! {
            biased;
            offer = self.offers.recv() => offer,
            () = self.shared.ended.cancelled() => None,
        }
    }

    /// Opens a stream; answers when the peer did.
    pub async fn open(&self, headers: Headers) -> Result<Stream, SpdyError> {
        let (opened, reply) = oneshot::channel();
        let stream = {
            let mut next = self.next.lock().await;
            let id = *next;
            *next += 2;
            let stream = self.shared.enter(id, Some(opened));
            let syn = Control::SynStream { stream: id, fin: false, unidirectional: false, headers };
            self.shared.send(Out::Control(syn)).await?;
            stream
        };
        match reply.await {
            Ok(()) => Ok(stream),
            Err(_) if self.shared.ended.is_cancelled() => Err(SpdyError::Closed),
            Err(_) => Err(SpdyError::Reset),
        }
    }

    /// Says when the connection is over, by itself or by a failure.
    pub fn ended(&self) -> CancellationToken {
        self.shared.ended.clone()
    }

    /// Why it ended; `None` while it lasts, and when the peer just closed it.
    pub fn failure(&self) -> Option<&SpdyError> {
        self.shared.why.get().filter(|why| !matches!(why, SpdyError::Closed))
    }

    /// Ends it: what was sent arrives first, as long as the peer takes it, and the peer may close before this side does. What
    /// still comes from the peer is thrown away, so that it does not turn what it has not read yet into a reset.
    pub async fn close(mut self) {
        self.finish().await;
        if self.shared.ended.is_cancelled() {
            // What the peer is told of its mistake goes out before.
            let rest = async { while self.tasks.join_next().await.is_some() {} };
            let _ = timeout(LAST_WORD, rest).await;
        }
    }

    async fn finish(&self) {
        let (flushed, done) = oneshot::channel();
        let flush = async {
            self.shared.send(Out::Flush(flushed)).await.ok()?;
            done.await.ok()
        };
        if timeout(FLUSH_LIMIT, flush).await.ok().flatten().is_none() {
            return;
        }
        let _ = timeout(TAKE_LIMIT, self.taken()).await;
        if timeout(LINGER, self.shared.ended.cancelled()).await.is_err() {
            let last = self.shared.send(Out::Last { status: 0 });
            let _ = timeout(LAST_WORD, last).await;
            let _ = timeout(LAST_WORD, self.shared.ended.cancelled()).await;
        }
    }
}

impl Connection {
    /// Waits until the peer took what was sent, for as long as anything comes from it. What was sent may still be in buffers of
    /// the kernel, and would be lost with them when this side closed: a peer answers a ping after it took what came before.
    async fn taken(&self) {
        let mut answered = self.shared.answered.subscribe();
        let sent = self.shared.now_ms();
        if self.shared.send(Out::Control(Control::Ping(self.last_ping))).await.is_err() {
            return;
        }
        let answered = answered.wait_for(|id| *id == self.last_ping);
        let silence = async {
            loop {
                let heard = self.shared.read_ms.load(Ordering::Relaxed).max(sent);
                let silent = Duration::from_millis(self.shared.now_ms().saturating_sub(heard));
                let Some(left) = FLUSH_LIMIT.checked_sub(silent) else { return };
                sleep(left.max(Duration::from_millis(1))).await;
            }
        };
        tokio::select! {
            _ = answered => {}
            () = silence => {}
            () = self.shared.ended.cancelled() => {}
        }
    }
}

/// What the tasks and the streams have in common.
pub(super) struct Shared {
    streams: Mutex<HashMap<u32, Entry>>,
    out: mpsc::Sender<Out>,
    ended: CancellationToken,
    why: OnceLock<SpdyError>,
    begun: Instant,
    /// When anything but a ping moved last, in milliseconds since the beginning.
    moved_ms: AtomicU64,
    /// When anything was read last.
    read_ms: AtomicU64,
    /// Bytes that may come and wait.
    room: Arc<Semaphore>,
    /// The highest ping of ours that the peer answered.
    answered: watch::Sender<u32>,
}

/// A stream that is not closed on both sides.
struct Entry {
    /// `None` once the peer ended its half.
    input: Option<mpsc::UnboundedSender<Piece>>,
    state: Arc<StreamState>,
    /// This side ended its half.
    finished: bool,
    reply: Option<oneshot::Sender<()>>,
}

/// What a stream's halves see of its end.
#[derive(Default)]
pub(super) struct StreamState {
    /// The peer ended its half.
    pub(super) fin: AtomicBool,
    /// Reset, or gone with the connection.
    pub(super) gone: CancellationToken,
}

/// What is to be written.
pub(super) enum Out {
    Control(Control),
    Data {
        stream: u32,
        fin: bool,
        data: Bytes,
    },
    /// Tells when everything before it is on its way.
    Flush(oneshot::Sender<()>),
    /// GOAWAY, and the end of what is written.
    Last {
        status: u32,
    },
}

impl Shared {
    pub(super) async fn send(&self, out: Out) -> Result<(), SpdyError> {
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(SpdyError::Closed),
            sent = self.out.send(out) => sent.map_err(|_| SpdyError::Closed),
        }
    }

    /// As [`Shared::send`], for what is not worth waiting for.
    pub(super) fn try_send(&self, control: Control) -> bool {
        self.out.try_send(Out::Control(control)).is_ok()
    }

    /// This side ended its half of a stream.
    pub(super) fn finished(&self, id: u32) {
        let mut streams = self.streams();
        if let Some(entry) = streams.get_mut(&id) {
            entry.finished = true;
            if entry.input.is_none() {
                streams.remove(&id);
            }
        }
    }

    pub(super) fn forget(&self, id: u32) {
        self.streams().remove(&id);
    }

    fn enter(self: &Arc<Self>, id: u32, reply: Option<oneshot::Sender<()>>) -> Stream {
        let (input, pieces) = mpsc::unbounded_channel();
        let state = Arc::<StreamState>::default();
        let entry = Entry { input: Some(input), state: state.clone(), finished: false, reply };
        self.streams().insert(id, entry);
        // One that came too late for the end must not wait for it.
        if self.ended.is_cancelled() {
            self.forget(id);
            state.gone.cancel();
        }
        let reader = Reader::new(id, pieces, state.clone(), self.clone());
        Stream { reader, writer: Writer::new(id, state, self.clone()) }
    }

    /// The peer ended its half of a stream.
    fn peer_finished(&self, id: u32) {
        let mut streams = self.streams();
        if let Some(entry) = streams.get_mut(&id) {
            entry.state.fin.store(true, Ordering::SeqCst);
            entry.input = None;
            if entry.finished {
                streams.remove(&id);
            }
        }
    }

    fn end(&self, why: SpdyError) {
        let _ = self.why.set(why);
        self.ended.cancel();
        for (_, entry) in self.streams().drain() {
            entry.state.gone.cancel();
        }
    }

    fn moved(&self) {
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn since(&self, then_ms: &AtomicU64) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(then_ms.load(Ordering::Relaxed)))
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that reads.
struct Receiving<R> {
    shared: Arc<Shared>,
    io: BufReader<R>,
    inflater: Inflater,
    offer: mpsc::Sender<Offer>,
    /// Of the ids of streams that the peer opens.
    parity: u32,
    /// The last one.
    last: u32,
    limits: Limits,
}

impl<R: AsyncRead + Unpin> Receiving<R> {
    async fn run(mut self) {
        let shared = self.shared.clone();
        let ended = tokio::select! {
            ended = self.read() => ended,
            () = shared.ended.cancelled() => return,
        };
        let why = ended.err().unwrap_or(SpdyError::Closed);
        if matches!(why, SpdyError::Protocol(_) | SpdyError::Limit(_)) {
            let _ = timeout(LAST_WORD, shared.send(Out::Last { status: PROTOCOL_ERROR })).await;
        }
        shared.end(why);
    }

    async fn read(&mut self) -> Result<(), SpdyError> {
        while let Some(head) = self.head().await? {
            self.shared.read_ms.store(self.shared.now_ms(), Ordering::Relaxed);
            match head {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    if length > self.limits.control_bytes {
                        return Err(SpdyError::Limit("bytes in a control frame"));
                    }
                    let mut payload = vec![0; length];
                    self.io.read_exact(&mut payload).await?;
                    let control = Control::parse(kind, flags, &payload, &mut self.inflater)?;
                    self.control(control).await?;
                }
            }
        }
        Ok(())
    }

    /// `None` when the peer closed the connection between two frames.
    async fn head(&mut self) -> Result<Option<Head>, SpdyError> {
        let mut bytes = [0; Head::BYTES];
        if self.io.read(&mut bytes[..1]).await? == 0 {
            return Ok(None);
        }
        self.io.read_exact(&mut bytes[1..]).await?;
        Head::parse(bytes).map(Some)
    }

    /// Hands a stream its data as it comes: no frame is ever whole in memory.
    async fn data(&mut self, stream: u32, fin: bool, length: usize) -> Result<(), SpdyError> {
        let mut left = length;
        while left > 0 {
            let mut piece = BytesMut::with_capacity(left.min(PIECE_BYTES));
            let count = (&mut self.io).take(left as u64).read_buf(&mut piece).await?;
            if count == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            left -= count;
            self.shared.moved();
            let input = self.shared.streams().get(&stream).and_then(|entry| entry.input.clone());
            if let Some(input) = input.filter(|input| !input.is_closed()) {
                let bytes = u32::try_from(count).unwrap_or(u32::MAX);
                let room = self.shared.room.clone().acquire_many_owned(bytes).await;
                let room = room.map_err(|_| SpdyError::Closed)?;
                // Whoever dropped the reader does not want it.
                let _ = input.send(Piece { data: piece.freeze(), _room: room });
            }
        }
        if fin {
            self.shared.peer_finished(stream);
        }
        Ok(())
    }

    async fn control(&mut self, control: Control) -> Result<(), SpdyError> {
        match control {
            Control::Ping(id) => {
                // One with our parity is the answer to ours.
                if id % 2 == self.parity {
                    self.shared.send(Out::Control(Control::Ping(id))).await?;
                } else {
                    self.shared.answered.send_modify(|last| *last = id.max(*last));
                }
                return Ok(());
            }
            Control::SynStream { stream, fin, unidirectional, headers } => {
                self.opened(stream, fin, unidirectional, headers).await?;
            }
            Control::SynReply { stream, fin, .. } => {
                let entry = |shared: &Shared| shared.streams().get_mut(&stream)?.reply.take();
                if let Some(reply) = entry(&self.shared) {
                    let _ = reply.send(());
                }
                if fin {
                    self.shared.peer_finished(stream);
                }
            }
            Control::Headers { stream, fin: true } => self.shared.peer_finished(stream),
            Control::Reset { stream, .. } => {
                let entry = self.shared.streams().remove(&stream);
                if let Some(entry) = entry {
                    entry.state.gone.cancel();
                }
            }
            // The peer closes the connection when its streams are done.
            Control::GoAway { .. } => {}
            Control::Headers { .. }
            | Control::Settings
            | Control::WindowUpdate { .. }
            | Control::Unknown => {}
        }
        self.shared.moved();
        Ok(())
    }

    async fn opened(
        &mut self,
        id: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    ) -> Result<(), SpdyError> {
        if id % 2 != self.parity || id <= self.last {
            return Err(SpdyError::Protocol("a stream id out of turn"));
        }
        self.last = id;
        let is_full = self.shared.streams().len() >= self.limits.streams;
        let place = self.offer.try_reserve().ok().filter(|_| !is_full && !unidirectional);
        let Some(place) = place else {
            let refusal = Control::Reset { stream: id, status: REFUSED_STREAM };
            return self.shared.send(Out::Control(refusal)).await;
        };
        place.send(Offer { headers, stream: self.shared.enter(id, None) });
        if fin {
            self.shared.peer_finished(id);
        }
        Ok(())
    }
}

/// The task that writes. Blocks of headers are compressed here: their order is that on the wire.
async fn write_all(
    shared: Arc<Shared>,
    mut outgoing: mpsc::Receiver<Out>,
    mut io: impl AsyncWrite + Unpin,
) {
    let work = async {
        let mut deflater = Deflater::new()?;
        loop {
            // What is queued at the end is written, if the peer takes it.
            let out = tokio::select! {
                biased;
                out = outgoing.recv() => out,
                () = shared.ended.cancelled() => None,
            };
            let Some(out) = out else { return Ok(()) };
            let bytes = match out {
                Out::Control(control) => control.encode(&mut deflater)?,
                Out::Data { stream, fin, data } => {
                    shared.moved();
                    frame::data(stream, fin, &data)?
                }
                Out::Flush(flushed) => {
                    io.flush().await?;
                    let _ = flushed.send(());
                    continue;
                }
                Out::Last { status } => {
                    let last = Control::GoAway { last: 0, status };
                    io.write_all(&last.encode(&mut deflater)?).await?;
                    io.shutdown().await?;
                    return Ok(());
                }
            };
            io.write_all(&bytes).await?;
            // Nothing waits: what is written shall not either.
            if outgoing.is_empty() {
                io.flush().await?;
            }
        }
    };
    let cut = async {
        shared.ended.cancelled().await;
        sleep(LAST_WORD).await;
    };
    let ended: Result<(), SpdyError> = tokio::select! {
        ended = work => ended,
        () = cut => return,
    };
    if let Err(error) = ended {
        shared.end(error);
    }
}

/// The task that ends what is dead: a peer whose machine is gone answers a ping by a reset, which the writer sees even while
/// nothing is read; and what does not move for long is over.
async fn watch_over(shared: Arc<Shared>, role: Role, idle: Duration) {
    let mut ticks = interval(PING_EVERY.min(idle.max(Duration::from_millis(1))));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut id = if role == Role::Server { 2_u32 } else { 1 };
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.ended.cancelled() => return,
        }
        if shared.since(&shared.moved_ms) >= idle {
            let _ = timeout(LAST_WORD, shared.send(Out::Last { status: 0 })).await;
            return shared.end(SpdyError::Idle(idle));
        }
        if shared.since(&shared.read_ms) >= PING_EVERY && shared.try_send(Control::Ping(id)) {
            id = id.wrapping_add(2);
        }
    }
}

/// Small enough that many streams share a connection fairly.
pub(super) const PIECE_BYTES: usize = 32 << 10;
const OUTGOING: usize = 4;
const READ_AHEAD: usize = 16 << 10;
const PING_EVERY: Duration = Duration::from_secs(10);
/// A peer that takes nothing and says nothing for so long at the end loses the rest.
const FLUSH_LIMIT: Duration = Duration::from_secs(60);
/// And so may one that takes it as slowly as that.
const TAKE_LIMIT: Duration = Duration::from_secs(600);
/// How long the peer may take to close first, once it has everything.
const LINGER: Duration = Duration::from_secs(5);
const LAST_WORD: Duration = Duration::from_secs(1);
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;
