//! Carries one container's output from its machine into its file: every chunk once, over cuts and restarts.
//!
//! A mark (the last chunk in the file, and the file's length with it) becomes durable first; then the agent may forget.
//! Whoever continues cuts the file at the mark and asks for what follows it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};
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
pub(crate) struct SharedMark(Arc<Mutex<LogMark>>);

impl SharedMark {
    pub(crate) fn new(mark: LogMark) -> Self {
        Self(Arc::new(Mutex::new(mark)))
    }

    pub(crate) fn get(&self) -> LogMark {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, mark: LogMark) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = mark;
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
        let mark = self.mark.get();
        let mut file = self.open(Some(mark.offset)).await?;
        let opened = timeout(AGENT_CALL, self.session.logs(&self.id, mark.sequence)).await;
        let mut source = opened
            .unwrap_or(Err(SessionError::TimedOut(AGENT_CALL)))
            .map_err(PumpError::Session)?;
        let mut written = mark.sequence;
        let mut due: Option<Instant> = None;
        loop {
            let wake = due.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                Some(reply) = self.reopen.recv() => {
                    self.keep(&mut file, written, source.as_mut()).await?;
                    due = None;
                    // The old name may lead to a new file now, or to none.
                    file = self.open(None).await?;
                    self.record(written, flush(&mut file).await?, false).await?;
                    let _ = reply.send(Ok(()));
                }
                () = sleep_until(wake), if due.is_some() => {
                    self.keep(&mut file, written, source.as_mut()).await?;
                    due = None;
                }
                chunk = source.next() => match chunk.map_err(PumpError::Session)? {
                    // A chunk that comes twice is in the file already.
                    Some(chunk) if chunk.sequence <= written => {}
                    Some(chunk) => {
                        append(&mut file, &chunk).await?;
                        written = chunk.sequence;
                        due.get_or_insert_with(|| Instant::now() + LOG_MARK);
                    }
                    None => break,
                },
            }
        }
        let length = match &mut file {
            Some(file) => file.finish().await.map_err(PumpError::File)?,
            None => 0,
        };
        self.record(written, length, true).await?;
        // The agent may keep what it already sent; nobody will ask again.
        let _ = timeout(AGENT_CALL, source.acknowledge(written)).await;
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

    /// Makes what was written durable, then lets the agent forget it.
    async fn keep(
        &self,
        file: &mut Option<Box<dyn LogFile>>,
        written: u64,
        source: &mut dyn LogSource,
    ) -> Result<(), PumpError> {
        let length = flush(file).await?;
        self.record(written, length, false).await?;
        timeout(AGENT_CALL, source.acknowledge(written))
            .await
            .unwrap_or(Err(SessionError::TimedOut(AGENT_CALL)))
            .map_err(PumpError::Session)
    }

    async fn record(&self, sequence: u64, offset: u64, finished: bool) -> Result<(), PumpError> {
        let mark = LogMark { sequence, offset, finished };
        let entry = container::encode_mark(&self.id, &mark);
        self.node.commit(vec![Change::Put(entry)]).await.map_err(PumpError::Record)?;
        self.mark.set(mark);
        Ok(())
    }
}

async fn append(file: &mut Option<Box<dyn LogFile>>, chunk: &LogChunk) -> Result<(), PumpError> {
    match file {
        None => Ok(()),
        Some(file) => file.append(chunk).await.map_err(PumpError::File),
    }
}

async fn flush(file: &mut Option<Box<dyn LogFile>>) -> Result<u64, PumpError> {
    match file {
        None => Ok(0),
        Some(file) => file.flush().await.map_err(PumpError::File),
    }
}
