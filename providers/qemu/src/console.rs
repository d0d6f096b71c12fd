//! The console of a machine: a file that QEMU appends to, kept small, and read by any number of followers.
//!
//! A guest can print without end. While a daemon runs, the file is cut back to its last half whenever it grows over the
//! limit; while none runs, a file size limit on QEMU's process (`launch`) stops it at four times that.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// One machine's console.
#[derive(Debug)]
pub(crate) struct Console {
    path: PathBuf,
    max: u64,
    /// Bytes that were cut off from the front since we watch; also keeps readers away while the file is cut.
    dropped: Mutex<u64>,
}

impl Console {
    pub(crate) fn new(path: PathBuf, max: u64) -> Self {
        Self { path, max, dropped: Mutex::new(0) }
    }

    /// How many bytes were printed, as far as we know.
    pub(crate) fn end(&self) -> u64 {
        let dropped = self.lock();
        *dropped + std::fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    /// Bytes from position `from` on, and the position after them. What was cut off is skipped.
    pub(crate) fn read(&self, from: u64) -> io::Result<(Vec<u8>, u64)> {
        let dropped = self.lock();
        let from = from.max(*dropped);
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(from - *dropped))?;
        let mut data = Vec::new();
        file.take(CHUNK).read_to_end(&mut data)?;
        let next = from + data.len() as u64;
        Ok((data, next))
    }

    /// Cuts the file back if it is too large.
    pub(crate) fn trim(&self) -> io::Result<()> {
        if std::fs::metadata(&self.path)?.len() <= self.max {
            return Ok(());
        }
        let mut dropped = self.lock();
        let mut file = OpenOptions::new().read(true).append(true).open(&self.path)?;
        let mut tail = Vec::new();
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(self.max / 2)))?;
        Read::by_ref(&mut file).take(self.max).read_to_end(&mut tail)?;
        // What the guest prints between these steps may be lost or come before the tail; it is a flood already.
        file.set_len(0)?;
        file.write_all(&tail)?;
        *dropped += length.saturating_sub(tail.len() as u64);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const CHUNK: u64 = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_back_and_readers_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("console.log");
        let console = Console::new(path.clone(), 1000);
        let mut guest = OpenOptions::new().create(true).append(true).open(&path).expect("opened");
        guest.write_all(b"hello\n").expect("printed");
        let (data, next) = console.read(0).expect("read");
        assert_eq!((data.as_slice(), next), (&b"hello\n"[..], 6));
        console.trim().expect("nothing to do");
        assert_eq!(console.end(), 6);

        for number in 0..500 {
            guest.write_all(format!("line {number:04}\n").as_bytes()).expect("printed");
        }
        console.trim().expect("cut");
        let kept = std::fs::metadata(&path).expect("there").len();
        assert_eq!(kept, 500);
        assert_eq!(console.end(), 6 + 5000);
        let (data, next) = console.read(next).expect("read");
        assert_eq!((data.len(), next), (500, 5006));
        assert!(data.ends_with(b"line 0499\n"));
        guest.write_all(b"more\n").expect("printed");
        assert_eq!(console.read(next).expect("read").0, b"more\n");
    }
}
