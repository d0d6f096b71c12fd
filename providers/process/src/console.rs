//! The console of a machine: a file that the agent appends to, and any number of followers read.
//!
//! Positions count from the first byte that was ever written, and stay: what is too old gives its blocks back to the file
//! system, while the file keeps its length. Neither the writer nor a reader notices, and a later daemon goes on. This happens
//! while a daemon runs; while none does, nobody can make an agent say much.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// One machine's console.
#[derive(Debug)]
pub(crate) struct Console {
    path: PathBuf,
    max: u64,
    /// Everything before it was given back.
    freed: AtomicU64,
}

impl Console {
    pub(crate) fn new(path: PathBuf, max: u64) -> Self {
        Self { path, max, freed: AtomicU64::new(0) }
    }

    /// The position after the last byte.
    pub(crate) fn end(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    /// Bytes from a position on, and the position after them. What is too old is skipped.
    pub(crate) fn read(&self, from: u64) -> io::Result<(Vec<u8>, u64)> {
        let mut file = File::open(&self.path)?;
        let end = file.metadata()?.len();
        // A file that was cut because it cannot have holes begins anew.
        let from = from.max(end.saturating_sub(self.max)).min(end);
        file.seek(SeekFrom::Start(from))?;
        let mut data = Vec::new();
        file.take(CHUNK).read_to_end(&mut data)?;
        let next = from + data.len() as u64;
        Ok((data, next))
    }

    /// The last lines, at most a few.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        let from = self.end().saturating_sub(LAST_BYTES);
        let (data, _) = self.read(from).unwrap_or_default();
        let text = String::from_utf8_lossy(&data);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let first = lines.len().saturating_sub(LAST_LINES);
        lines[first..].iter().map(|line| (*line).to_owned()).collect()
    }

    /// Gives back what is too old.
    pub(crate) fn trim(&self) -> io::Result<()> {
        let end = self.end();
        let old = end.saturating_sub(self.max) / BLOCK * BLOCK;
        let freed = self.freed.load(Ordering::Relaxed);
        if old < freed + STEP.min(self.max) && end >= freed {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&self.path)?;
        match fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, old) {
            Ok(()) => {}
            Err(Errno::INVAL) if old == 0 => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(0)?,
            Err(error) => return Err(error.into()),
        }
        self.freed.store(old, Ordering::Relaxed);
        Ok(())
    }
}

const CHUNK: u64 = 32 * 1024;
const BLOCK: u64 = 4096;
/// Not every line is worth a system call.
const STEP: u64 = 64 * 1024;
const LAST_BYTES: u64 = 4096;
const LAST_LINES: usize = 8;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_flood_takes_no_room_and_readers_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("console.log");
        let console = Console::new(path.clone(), 64 * 1024);
        let mut guest = OpenOptions::new().create(true).append(true).open(&path).expect("opened");
        guest.write_all(b"hello\n").expect("printed");
        let (data, next) = console.read(0).expect("read");
        assert_eq!((data.as_slice(), next), (&b"hello\n"[..], 6));

        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..4096 {
            guest.write_all(line.as_bytes()).expect("printed");
            console.trim().expect("trimmed");
        }
        guest.write_all(b"last\n").expect("printed");
        console.trim().expect("trimmed");
        let meta = fs::metadata(&path).expect("there");
        assert_eq!(meta.len(), console.end());
        assert!(meta.blocks() * 512 < 256 * 1024, "{} blocks", meta.blocks());
        let (mut at, mut kept) = (next, Vec::new());
        while at < console.end() {
            let (data, next) = console.read(at).expect("read");
            kept.extend(data);
            at = next;
        }
        assert_eq!(kept.len(), 64 * 1024);
        assert!(!kept.contains(&0), "a hole was read");
        assert_eq!(console.last_lines().last().map(String::as_str), Some("last"));
    }

    #[test]
    fn a_file_that_was_cut_is_read_from_its_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("console.log");
        fs::write(&path, "new\n").expect("written");
        let console = Console::new(path, 1024);
        assert_eq!(console.read(9999).expect("read").1, 4);
    }
}
