//! Log files on the node's disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::OFlags;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

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
        let file = blocking(move || open(&path)).await?;
        sole_writer(&file).await?;
        let writer = blocking(move || Writer::new(file, from)).await?;
        Ok(Box::new(DiskLog { writer: Some(writer) }))
    }
}

fn open(path: &Path) -> io::Result<File> {
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
        .read(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a log is a regular file"));
    }
    Ok(file)
}

/// Waits until the last write of whoever was cut off has ended: it cannot be taken back, and what it wrote has to be there
/// before the file is looked at. A lock of somebody else, which says nothing, is not waited for any longer.
async fn sole_writer(file: &File) -> io::Result<()> {
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < end => sleep(LOCK_POLL).await,
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

struct DiskLog {
    /// Away while a thread writes. A write whose caller went away never brings it back: then the log has to be opened anew.
    writer: Option<Writer>,
}

#[async_trait]
impl LogFile for DiskLog {
    async fn append(&mut self, chunks: Vec<LogChunk>) -> io::Result<()> {
        self.with(move |writer| {
            chunks.iter().for_each(|chunk| writer.lines.take(chunk, &mut writer.buffer));
            writer.write()
        })
        .await
    }

    async fn flush(&mut self) -> io::Result<u64> {
        self.with(|writer| {
            writer.lines.rest(&mut writer.buffer);
            writer.write()?;
            // Whoever wrote much may be silent from now on.
            writer.buffer.shrink_to(BUFFER_BYTES_KEPT);
            Ok(writer.length)
        })
        .await
    }
}

impl DiskLog {
    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Writer) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let mut writer = self.writer.take().ok_or_else(|| {
            io::Error::other("a write of this log was cut off; it has to be opened anew")
        })?;
        let (writer, result) = blocking(move || {
            let result = work(&mut writer);
            Ok((writer, result))
        })
        .await?;
        self.writer = Some(writer);
        result
    }
}

/// Work that may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

struct Writer {
    file: File,
    /// Everything up to here is whole.
    length: u64,
    /// What the file has beyond that, and is expected to come again.
    ahead: u64,
    lines: Lines,
    /// What is to be written.
    buffer: Vec<u8>,
}

impl Writer {
    fn new(file: File, from: Option<u64>) -> io::Result<Self> {
        let there = file.metadata()?.len();
        let length = from.map_or(there, |from| from.min(there));
        let ahead = whole_lines(&file, length, there)?;
        if length + ahead < there {
            file.set_len(length + ahead)?;
        }
        Ok(Self { file, length, ahead, lines: Lines::default(), buffer: Vec::new() })
    }

    /// All or nothing: half of a line is taken back, so that a reader never sees the rest of it twice.
    fn write(&mut self) -> io::Result<()> {
        let written = self.write_what_is_new();
        if written.is_err() {
            // Should this fail, too, opening the log again cuts it at its last whole line.
            drop(self.file.set_len(self.length));
            self.ahead = 0;
        }
        self.buffer.clear();
        written
    }

    fn write_what_is_new(&mut self) -> io::Result<()> {
        let same = self.pass_by_what_is_there()?;
        let new = &self.buffer[same..];
        if !new.is_empty() {
            self.file.write_all(new)?;
        }
        self.length += new.len() as u64;
        Ok(())
    }

    /// How much of what is to be written the file has already; what it has instead is cut off.
    fn pass_by_what_is_there(&mut self) -> io::Result<usize> {
        let reach = usize::try_from(self.ahead)
            .map_or(self.buffer.len(), |ahead| ahead.min(self.buffer.len()));
        if reach == 0 {
            return Ok(0);
        }
        let mut there = vec![0; reach];
        match self.file.read_exact_at(&mut there, self.length) {
            Ok(()) => (),
            // Somebody emptied the file meanwhile.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.ahead = 0;
                return Ok(0);
            }
            Err(error) => return Err(error),
        }
        let same = self.buffer.iter().zip(&there).take_while(|(new, old)| new == old).count();
        self.ahead -= same as u64;
        if same < reach {
            self.file.set_len(self.length + same as u64)?;
            self.ahead = 0;
        }
        self.length += same as u64;
        Ok(same)
    }
}

/// How much of `from..to` are whole lines: a writer that was killed may have left half of one.
fn whole_lines(file: &File, from: u64, to: u64) -> io::Result<u64> {
    let start = from.max(to.saturating_sub(LINE_BYTES_MOST));
    let mut tail = vec![0; (to - start) as usize];
    file.read_exact_at(&mut tail, start)?;
    let end = tail.iter().rposition(|byte| *byte == b'\n');
    Ok(end.map_or(0, |end| start + end as u64 + 1 - from))
}

/// What one write takes; far more than a disk that answers needs.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(5);
const BUFFER_BYTES_KEPT: usize = 4 * 1024;
/// More than a line has with all that stands before it.
const LINE_BYTES_MOST: u64 = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::LogStream;
    use std::os::unix::fs::MetadataExt;
    use std::time::SystemTime;

    fn chunk(text: &str) -> Vec<LogChunk> {
        vec![LogChunk {
            sequence: 1,
            stream: LogStream::Stdout,
            timestamp: SystemTime::UNIX_EPOCH,
            data: text.as_bytes().to_vec(),
        }]
    }

    fn line(tag: &str, text: &str) -> String {
        format!("1970-01-01T00:00:00.000000000Z stdout {tag} {text}\n")
    }

    /// A log that was cut off after its mark, and what is in its file.
    async fn cut_off(path: &Path) -> (u64, String) {
        let mut log = DiskLogs.open(path, Some(0)).await.unwrap();
        log.append(chunk("one\ntw")).await.unwrap();
        let mark = log.flush().await.unwrap();
        log.append(chunk("o\nthree\nfour\n")).await.unwrap();
        (mark, std::fs::read_to_string(path).unwrap())
    }

    #[tokio::test]
    async fn what_was_written_after_the_mark_and_comes_again_is_there_once_and_all_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/app/0.log");
        let (mark, before) = cut_off(&path).await;
        let read = || std::fs::read_to_string(&path).unwrap();

        let mut log = DiskLogs.open(&path, Some(mark)).await.unwrap();
        assert_eq!(read(), before);
        log.append(chunk("o\nthr")).await.unwrap();
        assert_eq!(read(), before);
        log.append(chunk("ee\nfour\nfive\n")).await.unwrap();
        let length = log.flush().await.unwrap();
        let texts =
            [("F", "one"), ("P", "tw"), ("F", "o"), ("F", "three"), ("F", "four"), ("F", "five")];
        assert_eq!(read(), texts.map(|(tag, text)| line(tag, text)).concat());
        assert_eq!(length, read().len() as u64);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    }

    #[tokio::test]
    async fn what_comes_instead_of_what_was_written_after_the_mark_stands_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let (mark, before) = cut_off(&path).await;
        let mut log = DiskLogs.open(&path, Some(mark)).await.unwrap();
        log.append(chunk("o\nthree")).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        // A mark becomes due in another place than before.
        let length = log.flush().await.unwrap();
        log.append(chunk("\n")).await.unwrap();
        let texts = [("F", "one"), ("P", "tw"), ("F", "o"), ("P", "three"), ("F", "")];
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, texts.map(|(tag, text)| line(tag, text)).concat());
        assert_eq!(length, (text.len() - line("F", "").len()) as u64);
    }

    #[tokio::test]
    async fn a_log_that_somebody_emptied_goes_on_at_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let (mark, _) = cut_off(&path).await;
        let mut log = DiskLogs.open(&path, Some(mark)).await.unwrap();
        std::fs::write(&path, "").unwrap();
        log.append(chunk("o\n")).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line("F", "o"));
    }

    #[tokio::test]
    async fn half_a_line_is_cut_off_when_a_log_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for (mark, half, left) in
            [(4, "one\ntwo\nth", "one\ntwo\n"), (4, "one\nt", "one\n"), (0, "on", "")]
        {
            std::fs::write(&path, half).unwrap();
            let mut log = DiskLogs.open(&path, Some(mark)).await.unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), left);
            assert_eq!(log.flush().await.unwrap(), mark);
        }
    }

    #[tokio::test]
    async fn a_rotated_log_is_a_new_file_under_the_old_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = DiskLogs.open(&path, None).await.unwrap();
        log.append(chunk("one\n")).await.unwrap();
        let mark = log.flush().await.unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        log.append(chunk("two\n")).await.unwrap();

        let mut log = DiskLogs.open(&path, Some(mark)).await.unwrap();
        log.append(chunk("three\n")).await.unwrap();
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
        let mut log = DiskLog { writer: Some(Writer::new(full, None).unwrap()) };
        let error = log.append(chunk("one\n")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(log.writer.unwrap().length, 0);
    }

    #[tokio::test]
    async fn a_write_that_was_cut_off_ends_before_the_file_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = DiskLogs.open(&path, Some(0)).await.unwrap();
        log.append(chunk("one\n")).await.unwrap();
        let mark = log.flush().await.unwrap();
        // Its write goes on in a thread, whether or not somebody waits for it.
        let lines = "two\n".repeat(200_000);
        let mut write = Box::pin(log.append(chunk(&lines)));
        assert!(futures::poll!(write.as_mut()).is_pending());
        drop(write);
        assert!(log.flush().await.is_err());
        drop(log);

        let mut log = DiskLogs.open(&path, Some(mark)).await.unwrap();
        let all = line("F", "one") + &line("F", "two").repeat(200_000);
        assert!(std::fs::read_to_string(&path).unwrap() == all, "it was not waited for");
        log.append(chunk(&lines)).await.unwrap();
        log.append(chunk("three\n")).await.unwrap();
        log.flush().await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text == all + &line("F", "three"), "{} bytes", text.len());
    }
}
