//! Carries one container's output from its machine into its file: every chunk once, over cuts and restarts.
//!
//! A mark (the last chunk in the file, and the file's length with it) becomes durable first; then the agent may forget.
//! Whoever continues asks for what follows the mark, and passes by what of that is in the file. Output goes on while a mark becomes durable, and
//! much output is marked often: a machine keeps only so much that nobody acknowledged, and then its container waits.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::engine::board::Reply;
use crate::engine::life::LogMark;
use crate::engine::node::Node;
use crate::engine::timeouts::{AGENT_CALL, LOG_MARK};
use crate::error::EngineError;
use crate::ids::ContainerId;
use crate::logs::LogFile;
use crate::record::{Change, container};
use crate::session::{AgentSession, LogChunk, LogSource, SessionError};

/// What a pump works on.
pub(crate) struct Pump {
    pub(crate) node: Arc<Node>,
    pub(crate) session: Arc<dyn AgentSession>,
    pub(crate) id: ContainerId,
    /// `None` drops the output, so that the machine need not keep it.
    pub(crate) path: Option<PathBuf>,
    pub(crate) mark: SharedMark,
    pub(crate) reopen: mpsc::Receiver<Reply<()>>,
    /// Becomes true when all of the output is in the file.
    pub(crate) drained: watch::Sender<bool>,
}

/// The durable mark, as this process knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedMark(Arc<Mark>);

#[derive(Debug, Default)]
struct Mark {
    durable: Mutex<LogMark>,
    /// Held while another one is on its way to the record, also when the pump that sent it is gone.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl SharedMark {
    pub(crate) fn new(mark: LogMark) -> Self {
        Self(Arc::new(Mark { durable: Mutex::new(mark), writing: Arc::default() }))
    }

    pub(crate) fn get(&self) -> LogMark {
        *self.0.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`SharedMark::get`], once none is on its way any more.
    async fn settled(&self) -> LogMark {
        let _writing = self.0.writing.lock().await;
        self.get()
    }

    /// Makes another mark durable, whether or not anybody waits for that.
    async fn write(&self, node: &Arc<Node>, id: &ContainerId, mark: LogMark) -> Marking {
        let writing = Arc::clone(&self.0.writing).lock_owned().await;
        let (ended, marking) = oneshot::channel();
        let (shared, entry) = (self.clone(), container::encode_mark(id, &mark));
        let own = Arc::clone(node);
        node.spawn(async move {
            let result = own.commit(vec![Change::Put(entry)]).await;
            if result.is_ok() {
                *shared.0.durable.lock().unwrap_or_else(PoisonError::into_inner) = mark;
            }
            drop(writing);
            // A pump that was cut off does not want to know.
            let _ = ended.send(result.map(|()| mark.sequence).map_err(PumpError::Record));
        });
        Marking(marking)
    }
}

/// A mark on its way to the record; what comes out is the number of its chunk.
struct Marking(oneshot::Receiver<Result<u64, PumpError>>);

impl Marking {
    async fn ended(&mut self) -> Result<u64, PumpError> {
        let gone = || Err(PumpError::Record(EngineError::ShuttingDown));
        (&mut self.0).await.unwrap_or_else(|_| gone())
    }
}

/// Why a pump stopped before the output ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PumpError {
    #[error("the log file could not be written")]
    File(#[source] std::io::Error),
    #[error("the mark of the log could not be recorded")]
    Record(#[source] EngineError),
    #[error("the output could not be read")]
    Session(#[source] SessionError),
}

impl Pump {
    /// Runs until the output ended and all of it is durable, or something fails; then another pump continues.
    pub(crate) async fn run(mut self) -> Result<(), PumpError> {
        let mark = self.mark.settled().await;
        let mut file = self.open(Some(mark.offset)).await?;
        let opened = timeout(AGENT_CALL, self.session.logs(&self.id, mark.sequence)).await;
        let mut source = opened
            .unwrap_or(Err(SessionError::TimedOut(AGENT_CALL)))
            .map(Chunks::new)
            .map_err(PumpError::Session)?;
        let mut written = mark.sequence;
        let mut unmarked = Unmarked::default();
        let mut marking: Option<Marking> = None;
        loop {
            let wake = unmarked.due.unwrap_or_else(Instant::now);
            let is_marking = marking.is_some();
            tokio::select! {
                biased;
                Some(reply) = self.reopen.recv() => {
                    if let Some(mut marking) = marking.take() {
                        marking.ended().await?;
                    }
                    self.mark(&mut file, written, false).await?;
                    source.acknowledge(written).await?;
                    // The old name may lead to a new file now, to none, or still to this one, which has one writer at a time.
                    drop(file.take());
                    file = self.open(None).await?;
                    self.mark(&mut file, written, false).await?;
                    unmarked = Unmarked::default();
                    let _ = reply.send(Ok(()));
                }
                marked = ended(&mut marking), if is_marking => {
                    marking = None;
                    source.acknowledge(marked?).await?;
                }
                () = sleep_until(wake), if unmarked.due.is_some() && !is_marking => {
                    marking = Some(self.begin_mark(&mut file, written, false).await?);
                    unmarked = Unmarked::default();
                }
                chunks = source.next() => {
                    let mut chunks = chunks?;
                    let Some(last) = chunks.last().map(|chunk| chunk.sequence) else { break };
                    // A chunk that comes twice is in the file already.
                    chunks.retain(|chunk| chunk.sequence > written);
                    unmarked.add(&chunks);
                    written = written.max(last);
                    append(&mut file, chunks).await?;
                }
            }
        }
        if let Some(mut marking) = marking {
            marking.ended().await?;
        }
        self.mark(&mut file, written, true).await?;
        // The agent may keep what it already sent; nobody will ask again.
        let _ = source.acknowledge(written).await;
        self.drained.send_replace(true);
        Ok(())
    }

    async fn open(&self, from: Option<u64>) -> Result<Option<Box<dyn LogFile>>, PumpError> {
        match &self.path {
            None => Ok(None),
            Some(path) => {
                self.node.parts.logs.open(path, from).await.map(Some).map_err(PumpError::File)
            }
        }
    }

    /// Makes durable what was written; then the agent may forget it.
    async fn mark(
        &self,
        file: &mut Option<Box<dyn LogFile>>,
        sequence: u64,
        finished: bool,
    ) -> Result<(), PumpError> {
        self.begin_mark(file, sequence, finished).await?.ended().await.map(drop)
    }

    /// Begins to.
    async fn begin_mark(
        &self,
        file: &mut Option<Box<dyn LogFile>>,
        sequence: u64,
        finished: bool,
    ) -> Result<Marking, PumpError> {
        let offset = match file {
            None => 0,
            Some(file) => file.flush().await.map_err(PumpError::File)?,
        };
        Ok(self.mark.write(&self.node, &self.id, LogMark { sequence, offset, finished }).await)
    }
}

async fn ended(marking: &mut Option<Marking>) -> Result<u64, PumpError> {
    match marking {
        Some(marking) => marking.ended().await,
        None => std::future::pending().await,
    }
}

/// What is in the file and in no mark.
#[derive(Default)]
struct Unmarked {
    bytes: usize,
    due: Option<Instant>,
}

impl Unmarked {
    fn add(&mut self, chunks: &[LogChunk]) {
        if chunks.is_empty() {
            return;
        }
        self.bytes += chunks.iter().map(|chunk| chunk.data.len()).sum::<usize>();
        let now = Instant::now();
        if self.bytes >= MARK_BYTES {
            self.due = Some(now);
        } else {
            self.due.get_or_insert(now + LOG_MARK);
        }
    }
}

/// The chunks of a source, as many at a time as have come.
struct Chunks {
    source: Box<dyn LogSource>,
    /// How it ended, after chunks that came before.
    ended: Option<Result<(), SessionError>>,
}

impl Chunks {
    fn new(source: Box<dyn LogSource>) -> Self {
        Self { source, ended: None }
    }

    /// The next ones; none at the end. Cancel-safe, as its source is: nothing is waited for once there is one.
    async fn next(&mut self) -> Result<Vec<LogChunk>, PumpError> {
        if let Some(ended) = self.ended.take() {
            return ended.map(|()| Vec::new()).map_err(PumpError::Session);
        }
        let Some(first) = self.source.next().await.map_err(PumpError::Session)? else {
            return Ok(Vec::new());
        };
        let mut bytes = first.data.len();
        let mut chunks = vec![first];
        while bytes < APPEND_BYTES
            && let Some(next) = self.source.next().now_or_never()
        {
            match next {
                Ok(Some(chunk)) => {
                    bytes += chunk.data.len();
                    chunks.push(chunk);
                }
                ended => {
                    self.ended = Some(ended.map(drop));
                    break;
                }
            }
        }
        Ok(chunks)
    }

    async fn acknowledge(&mut self, sequence: u64) -> Result<(), PumpError> {
        timeout(AGENT_CALL, self.source.acknowledge(sequence))
            .await
            .unwrap_or(Err(SessionError::TimedOut(AGENT_CALL)))
            .map_err(PumpError::Session)
    }
}

async fn append(
    file: &mut Option<Box<dyn LogFile>>,
    chunks: Vec<LogChunk>,
) -> Result<(), PumpError> {
    match file {
        None => Ok(()),
        Some(file) => file.append(chunks).await.map_err(PumpError::File),
    }
}

/// So much output is marked without waiting for the time: a fraction of what a machine keeps at least.
const MARK_BYTES: usize = 512 * 1024;
/// What is written at once, if so much has come.
const APPEND_BYTES: usize = 256 * 1024;
