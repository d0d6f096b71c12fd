//! Keeps a container's output until its reader has it for good.
//!
//! Chunks are numbered 1, 2, 3 … over both streams and collected in segments. The newest segment is in memory; sealed ones
//! stay there as long as they fit, and go to files after that. When memory and files are full, [`Spool::push`] waits, and so
//! does the container's next write. Acknowledged segments are forgotten.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use infranetes_sdk::v1::{LogChunk, LogStream};
use infranetes_sdk::{ProviderError, Result};
use tokio::sync::Notify;

use crate::error::io_error;

/// How much a spool keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpoolLimits {
    pub(crate) memory_bytes: u64,
    pub(crate) file_bytes: u64,
}

/// The output of one container.
pub(crate) struct Spool {
    dir: PathBuf,
    limits: SpoolLimits,
    state: Mutex<State>,
    /// Wakes readers: there is more, or the end.
    grown: Notify,
    /// Wakes the writer: there is room.
    shrunk: Notify,
}

#[derive(Default)]
struct State {
    segments: VecDeque<Segment>,
    last: u64,
    acknowledged: u64,
    memory_bytes: u64,
    file_bytes: u64,
    ended: bool,
    closed: bool,
}

/// Chunks with neighbouring numbers.
struct Segment {
    first: u64,
    last: u64,
    bytes: u64,
    place: Place,
}

enum Place {
    Memory(Vec<u8>),
    File(PathBuf),
}

/// Reads a spool from a number on.
pub(crate) struct Reader {
    spool: Arc<Spool>,
    next: u64,
    /// What was taken of a segment in a file and is being read.
    taken: Vec<u8>,
    position: usize,
    /// The first number of that segment, and where in it the next taking begins.
    segment: u64,
    offset: usize,
}

impl Spool {
    /// An empty spool; its files are `log.N` in `dir`.
    pub(crate) fn new(dir: PathBuf, limits: SpoolLimits) -> Self {
        Self { dir, limits, state: Mutex::default(), grown: Notify::new(), shrunk: Notify::new() }
    }

    /// Appends output, once there is room for it.
    pub(crate) async fn push(&self, stream: LogStream, timestamp_unix_ns: u64, data: &[u8]) {
        loop {
            let room = self.shrunk.notified();
            if self.try_push(stream, timestamp_unix_ns, data) {
                self.grown.notify_waiters();
                return;
            }
            room.await;
        }
    }

    /// Nothing follows: readers end once they have all.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.grown.notify_waiters();
    }

    /// Drops what is kept and whatever comes, for a container that is removed.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        (state.closed, state.ended) = (true, true);
        while let Some(segment) = state.segments.pop_front() {
            state.drop_segment(&segment);
        }
        drop(state);
        self.shrunk.notify_waiters();
        self.grown.notify_waiters();
    }

    /// Forgets everything up to and including `sequence`.
    pub(crate) fn acknowledge(&self, sequence: u64) {
        let mut state = self.lock();
        state.acknowledged = state.acknowledged.max(sequence.min(state.last));
        let acknowledged = state.acknowledged;
        while let Some(segment) = state.segments.pop_front() {
            if segment.last > acknowledged {
                state.segments.push_front(segment);
                break;
            }
            state.drop_segment(&segment);
        }
        drop(state);
        self.shrunk.notify_waiters();
    }

    /// Reads what has a greater number than `after`, as far as it was not forgotten.
    pub(crate) fn reader(self: &Arc<Self>, after: u64) -> Reader {
        Reader {
            spool: self.clone(),
            next: after.saturating_add(1),
            taken: Vec::new(),
            position: 0,
            segment: 0,
            offset: 0,
        }
    }

    fn try_push(&self, stream: LogStream, timestamp: u64, data: &[u8]) -> bool {
        let mut state = self.lock();
        if state.closed {
            return true;
        }
        let size = (RECORD_HEADER + data.len()) as u64;
        if !self.make_room(&mut state, size) {
            return false;
        }
        state.last += 1;
        let sequence = state.last;
        state.memory_bytes += size;
        let segment = match state.segments.back_mut() {
            Some(segment) if segment.takes(size) => segment,
            _ => {
                state.segments.push_back(Segment::new(sequence, size));
                // Just pushed.
                match state.segments.back_mut() {
                    Some(segment) => segment,
                    None => return false,
                }
            }
        };
        segment.last = sequence;
        segment.bytes += size;
        if let Place::Memory(bytes) = &mut segment.place {
            write_record(bytes, sequence, stream, timestamp, data);
        }
        true
    }

    /// Moves segments to files until `size` more bytes fit into memory.
    fn make_room(&self, state: &mut State, size: u64) -> bool {
        // An empty spool takes whatever comes, so that no limit stops all output.
        if state.segments.is_empty() {
            return true;
        }
        while state.memory_bytes + size > self.limits.memory_bytes {
            let oldest =
                state.segments.iter().position(|one| matches!(one.place, Place::Memory(_)));
            let Some(index) = oldest else { return false };
            let segment = &state.segments[index];
            if state.file_bytes + segment.bytes > self.limits.file_bytes {
                return false;
            }
            let path = self.dir.join(format!("log.{}", segment.first));
            let Place::Memory(bytes) = &segment.place else { return false };
            if let Err(error) = fs::write(&path, bytes.as_slice()) {
                // A full disk is as good as a full spool: the container waits.
                tracing::warn!(path = %path.display(), %error, "cannot keep output in a file");
                let _ = fs::remove_file(&path);
                return false;
            }
            let moved = segment.bytes;
            state.segments[index].place = Place::File(path);
            state.memory_bytes -= moved;
            state.file_bytes += moved;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_segment(&mut self, segment: &Segment) {
        match &segment.place {
            Place::Memory(_) => self.memory_bytes -= segment.bytes,
            Place::File(path) => {
                self.file_bytes -= segment.bytes;
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl Segment {
    /// Where much comes at once, room for all of it: it need not move as it grows.
    fn new(first: u64, size: u64) -> Self {
        let room = if size < MUCH_BYTES { 0 } else { SEGMENT_BYTES as usize };
        Self { first, last: first, bytes: 0, place: Place::Memory(Vec::with_capacity(room)) }
    }

    fn takes(&self, size: u64) -> bool {
        matches!(self.place, Place::Memory(_)) && self.bytes + size <= SEGMENT_BYTES
    }
}

impl Reader {
    /// The next chunk, once there is one; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<LogChunk>> {
        loop {
            let spool = self.spool.clone();
            let grown = spool.grown.notified();
            if let Some(chunk) = self.next_taken() {
                return Ok(Some(chunk));
            }
            match self.take_more()? {
                Loaded::Chunk(chunk) => return Ok(Some(chunk)),
                Loaded::More => {}
                Loaded::End => return Ok(None),
                Loaded::Nothing => grown.await,
            }
        }
    }

    fn next_taken(&mut self) -> Option<LogChunk> {
        while let Some((chunk, length)) = read_record(&self.taken[self.position..]) {
            self.position += length;
            if chunk.sequence >= self.next {
                self.next = chunk.sequence + 1;
                return Some(chunk);
            }
        }
        self.offset += std::mem::take(&mut self.position);
        self.taken = Vec::new();
        None
    }

    fn take_more(&mut self) -> Result<Loaded> {
        let state = self.spool.lock();
        let Some(segment) = state.segments.iter().find(|segment| segment.last >= self.next) else {
            return Ok(if state.ended { Loaded::End } else { Loaded::Nothing });
        };
        if self.segment != segment.first {
            (self.segment, self.offset) = (segment.first, 0);
        }
        let path = match &segment.place {
            Place::File(path) => path,
            // Nothing is copied but the chunk itself.
            Place::Memory(bytes) => loop {
                let Some((chunk, length)) =
                    read_record(bytes.get(self.offset..).unwrap_or_default())
                else {
                    return Err(ProviderError::internal("output that was kept is lost"));
                };
                self.offset += length;
                if chunk.sequence >= self.next {
                    self.next = chunk.sequence + 1;
                    return Ok(Loaded::Chunk(chunk));
                }
            },
        };
        let mut bytes = fs::read(path).map_err(io_error("output that was kept is lost"))?;
        bytes.drain(..self.offset.min(bytes.len()));
        self.taken = bytes;
        Ok(Loaded::More)
    }
}

enum Loaded {
    Chunk(LogChunk),
    /// More is in memory now.
    More,
    Nothing,
    End,
}

/// Sequence, time, stream, length: then the data.
fn write_record(into: &mut Vec<u8>, sequence: u64, stream: LogStream, timestamp: u64, data: &[u8]) {
    into.extend_from_slice(&sequence.to_le_bytes());
    into.extend_from_slice(&timestamp.to_le_bytes());
    into.push(stream as u8);
    into.extend_from_slice(&(data.len() as u32).to_le_bytes());
    into.extend_from_slice(data);
}

fn read_record(bytes: &[u8]) -> Option<(LogChunk, usize)> {
    let sequence = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let timestamp_unix_ns = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    let stream = i32::from(*bytes.get(16)?);
    let length = u32::from_le_bytes(bytes.get(17..RECORD_HEADER)?.try_into().ok()?) as usize;
    let data = bytes.get(RECORD_HEADER..RECORD_HEADER + length)?.to_vec();
    Some((LogChunk { sequence, stream, timestamp_unix_ns, data }, RECORD_HEADER + length))
}

/// Refuses limits that would let nothing through.
pub(crate) fn check_limits(limits: SpoolLimits) -> Result<SpoolLimits> {
    if limits.memory_bytes < 2 * SEGMENT_BYTES {
        return Err(ProviderError::invalid(format!(
            "log_memory_kib has to be at least {}",
            2 * SEGMENT_BYTES / 1024
        )));
    }
    Ok(limits)
}

const RECORD_HEADER: usize = 21;
/// The most that one chunk holds, and that one read asks for. Each chunk wakes all that is on its way to the node, so few large ones are
/// quicker; but what malloc gives back to the kernel, which is all that is larger than 128 KiB, costs more than it saves.
pub(crate) const CHUNK_BYTES: usize = 120 << 10;
const SEGMENT_BYTES: u64 = 124 << 10;
/// Of one read.
const MUCH_BYTES: u64 = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn spool(memory_kib: u64, file_kib: u64) -> (tempfile::TempDir, Arc<Spool>) {
        let dir = tempfile::tempdir().unwrap();
        let limits = SpoolLimits { memory_bytes: memory_kib << 10, file_bytes: file_kib << 10 };
        let spool = Arc::new(Spool::new(dir.path().to_owned(), limits));
        (dir, spool)
    }

    async fn collect(spool: &Arc<Spool>, after: u64) -> Vec<(u64, Vec<u8>)> {
        let mut reader = spool.reader(after);
        let mut all = Vec::new();
        while let Some(chunk) = reader.next().await.unwrap() {
            all.push((chunk.sequence, chunk.data));
        }
        all
    }

    #[tokio::test]
    async fn output_comes_back_in_order_from_memory_and_files() {
        let (dir, spool) = spool(128, 1024);
        for number in 0..100_u32 {
            let data = vec![number as u8; 8000];
            spool.push(LogStream::Stdout, number.into(), &data).await;
        }
        spool.end();
        assert!(fs::read_dir(dir.path()).unwrap().count() > 5);
        let all = collect(&spool, 0).await;
        assert_eq!(all.len(), 100);
        for (index, (sequence, data)) in all.iter().enumerate() {
            assert_eq!(*sequence, index as u64 + 1);
            assert_eq!(data, &vec![index as u8; 8000]);
        }
        assert_eq!(collect(&spool, 40).await.first().unwrap().0, 41);
        assert!(collect(&spool, 100).await.is_empty());
    }

    #[tokio::test]
    async fn acknowledged_output_is_forgotten_with_its_files() {
        let (dir, spool) = spool(128, 1024);
        for _ in 0..100 {
            spool.push(LogStream::Stderr, 0, &[1; 8000]).await;
        }
        spool.end();
        spool.acknowledge(100);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(collect(&spool, 0).await.is_empty());
    }

    #[tokio::test]
    async fn a_full_spool_makes_the_writer_wait_until_something_is_acknowledged() {
        let (_dir, spool) = spool(128, 64);
        let full = async {
            loop {
                spool.push(LogStream::Stdout, 0, &[1; 8000]).await;
            }
        };
        tokio::time::timeout(Duration::from_millis(200), full).await.unwrap_err();
        let last = spool.lock().last;
        assert!((16..30).contains(&last), "{last}");
        let writer = tokio::spawn({
            let spool = spool.clone();
            async move { spool.push(LogStream::Stdout, 0, &[2; 8000]).await }
        });
        spool.acknowledge(last);
        tokio::time::timeout(Duration::from_secs(5), writer).await.unwrap().unwrap();
        spool.end();
        assert_eq!(collect(&spool, last).await.len(), 1);
    }

    #[tokio::test]
    async fn a_reader_follows_what_is_written_later() {
        let (_dir, spool) = spool(128, 64);
        let reading = tokio::spawn({
            let spool = spool.clone();
            async move { collect(&spool, 0).await }
        });
        for _ in 0..1000 {
            spool.push(LogStream::Stdout, 0, b"line\n").await;
            tokio::task::yield_now().await;
        }
        spool.end();
        assert_eq!(reading.await.unwrap().len(), 1000);
    }
}
