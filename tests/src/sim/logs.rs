//! Log files in memory; they outlive engines. Each holds the sequence numbers of the chunks that were written.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use infranetes_core::logs::{LogFile, LogFiles};
use infranetes_core::session::LogChunk;

/// All files. Clones are the same files.
#[derive(Clone, Debug, Default)]
pub struct SimLogs(Arc<Mutex<BTreeMap<PathBuf, Vec<u64>>>>);

impl SimLogs {
    /// The sequence numbers in a file, in order.
    pub fn read(&self, path: &Path) -> Vec<u64> {
        self.with(path, |file| file.clone())
    }

    fn with<T>(&self, path: &Path, look: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(files.entry(path.to_owned()).or_default())
    }
}

struct SimLog {
    files: SimLogs,
    path: PathBuf,
}

#[async_trait]
impl LogFiles for SimLogs {
    async fn open(&self, path: &Path, from: Option<u64>) -> io::Result<Box<dyn LogFile>> {
        self.with(path, |file| {
            if let Some(from) = from.and_then(|from| usize::try_from(from).ok()) {
                file.truncate(from);
            }
        });
        Ok(Box::new(SimLog { files: self.clone(), path: path.to_owned() }))
    }
}

#[async_trait]
impl LogFile for SimLog {
    async fn append(&mut self, chunks: Vec<LogChunk>) -> io::Result<()> {
        self.files.with(&self.path, |file| file.extend(chunks.iter().map(|chunk| chunk.sequence)));
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<u64> {
        Ok(self.files.with(&self.path, |file| file.len() as u64))
    }
}
