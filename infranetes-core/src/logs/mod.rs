//! Containers' output in CRI's log format, written by the node: `TIME STREAM TAG LINE`.

mod files;
mod line;

use std::path::Path;

use async_trait::async_trait;

pub use files::DiskLogs;

use crate::session::LogChunk;

/// Where containers' output goes.
#[async_trait]
pub trait LogFiles: Send + Sync + 'static {
    /// Opens a log for appending; makes it, and its directory, if need be.
    ///
    /// With `from`, what the file holds beyond that offset was written after the last durable mark and will come again. As long as
    /// the same comes it stays and is not written twice, so that whoever follows the file sees nothing of it; where something else
    /// comes it is cut off; and what never comes again, because its machine is gone, stays but for half a line at the end. A file
    /// that is shorter than `from` was rotated away meanwhile: appending starts at its end.
    async fn open(&self, path: &Path, from: Option<u64>) -> std::io::Result<Box<dyn LogFile>>;
}

/// An open log.
#[async_trait]
pub trait LogFile: Send {
    /// Appends chunks, in this order: whole lines with tag `F`, what was cut short with tag `P`, each stream by itself.
    ///
    /// Every line that the chunks end can be read by others when this returns, not only after the next `flush`: people
    /// follow a log while it is written. A write that fails leaves no half line behind. What waits for its end of line may
    /// be kept back.
    async fn append(&mut self, chunks: Vec<LogChunk>) -> std::io::Result<()>;

    /// Hands all that was appended to the operating system, what waits for its end of line included (tag `P`), and
    /// answers the file's length, without what is there and did not come again so far. A later `open` from this offset
    /// continues without a gap or a repetition.
    async fn flush(&mut self) -> std::io::Result<u64>;
}
