//! Log files on the node's disk.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

use async_trait::async_trait;
use rustix::fs::OFlags;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::line::Lines;
use super::{LogFile, LogFiles};
use crate::session::LogChunk;

/// Writes logs where the caller says, which is where the kubelet reads them.
///
/// Files get mode 0640. The last part of a path is never followed as a link, is a regular file or becomes one, and no path
/// leads upwards: who can write to a log directory cannot make the node write elsewhere by it.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskLogs;

#[async_trait]
impl LogFiles for DiskLogs {
    async fn open(&self, path: &Path, from: Option<u64>) -> io::Result<Box<dyn LogFile>> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || open(&path, from)).await;
        let (file, length) = opened.map_err(io::Error::other)??;
        Ok(Box::new(DiskLog { file: File::from_std(file), length, lines: Lines::default() }))
    }
}

fn open(path: &Path, from: Option<u64>) -> io::Result<(std::fs::File, u64)> {
    let upwards = path.components().any(|part| part == Component::ParentDir);
    if upwards || !path.is_absolute() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of a log is absolute and leads nowhere else",
        ));
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    // Without NONBLOCK, a pipe in the file's place would hold us for ever.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a log is a regular file"));
    }
    match from {
        Some(from) if from < metadata.len() => {
            file.set_len(from)?;
            Ok((file, from))
        }
        _ => Ok((file, metadata.len())),
    }
}

struct DiskLog {
    file: File,
    /// Everything up to here is whole.
    length: u64,
    lines: Lines,
}

#[async_trait]
impl LogFile for DiskLog {
    async fn append(&mut self, chunk: &LogChunk) -> io::Result<()> {
        let lines = self.lines.take(chunk);
        self.write(&lines).await
    }

    async fn flush(&mut self) -> io::Result<u64> {
        let rest = self.lines.rest();
        self.write(&rest).await?;
        Ok(self.length)
    }

    async fn finish(&mut self) -> io::Result<u64> {
        self.flush().await
    }
}

impl DiskLog {
    /// All or nothing: half of a line is taken back, so that a reader never sees the rest of it twice.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = match self.file.write_all(bytes).await {
            Ok(()) => self.file.flush().await,
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {
                self.length += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Should this fail, too, opening the log again cuts it at the last durable mark.
                let _ = self.file.set_len(self.length).await;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::LogStream;
    use std::os::unix::fs::MetadataExt;
    use std::time::SystemTime;

    fn chunk(text: &str) -> LogChunk {
        LogChunk {
            sequence: 1,
            stream: LogStream::Stdout,
            timestamp: SystemTime::UNIX_EPOCH,
            data: text.as_bytes().to_vec(),
        }
    }

    fn line(tag: &str, text: &str) -> String {
        format!("1970-01-01T00:00:00.000000000Z stdout {tag} {text}\n")
    }

    #[tokio::test]
    async fn what_was_written_after_the_mark_is_cut_off_and_comes_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/app/0.log");
        let mut log = DiskLogs.open(&path, Some(0)).await.unwrap();
        log.append(&chunk("one\ntw")).await.unwrap();
        let mark = log.flush().await.unwrap();
        log.append(&chunk("o\nthree\n")).await.unwrap();
        drop(log);

        let mut log = DiskLogs.open(&path, Some(mark)).await.unwrap();
        log.append(&chunk("o\nthree\n")).await.unwrap();
        let length = log.finish().await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = [line("F", "one"), line("P", "tw"), line("F", "o"), line("F", "three")];
        assert_eq!(text, expected.concat());
        assert_eq!(length, text.len() as u64);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    }

    #[tokio::test]
    async fn a_rotated_log_is_a_new_file_under_the_old_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = DiskLogs.open(&path, None).await.unwrap();
        log.append(&chunk("one\n")).await.unwrap();
        let mark = log.flush().await.unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        log.append(&chunk("two\n")).await.unwrap();

        let mut log = DiskLogs.open(&path, Some(mark)).await.unwrap();
        log.append(&chunk("three\n")).await.unwrap();
        log.flush().await.unwrap();
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("0.log.1"), line("F", "one") + &line("F", "two"));
        assert_eq!(read("0.log"), line("F", "three"));
    }

    #[tokio::test]
    async fn a_path_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link.log");
        std::os::unix::fs::symlink(dir.path().join("victim"), &link).unwrap();
        assert!(DiskLogs.open(&link, None).await.is_err());
        assert!(!dir.path().join("victim").exists());
        let pipe = dir.path().join("pipe.log");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        for path in [pipe, dir.path().join("../x.log"), "relative.log".into(), dir.path().into()] {
            assert!(DiskLogs.open(&path, None).await.is_err(), "{}", path.display());
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_and_leaves_no_half_line() {
        // The kernel's own full disk: every write fails, and it is no regular file, so the log is put around it by hand.
        let full = std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
        let mut log = DiskLog { file: File::from_std(full), length: 0, lines: Lines::default() };
        let error = log.append(&chunk("one\n")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(log.length, 0);
    }
}
