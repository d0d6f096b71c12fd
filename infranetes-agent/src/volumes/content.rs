//! The content of a volume that is one file: what containers made of it, for the node.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use ring::digest::{Context, SHA256};

use super::VolumeError;

/// A file, opened to be read once.
pub(crate) struct Content {
    file: File,
    delivered: Vec<u8>,
}

impl Content {
    pub(super) fn open(path: &Path, delivered: Vec<u8>) -> Result<Self, VolumeError> {
        let file = File::open(path).map_err(VolumeError::io("open"))?;
        Ok(Self { file, delivered })
    }

    /// The file's size, and its last bytes, if it is not what the node delivered. `None`: it is.
    pub(crate) fn changed(
        &mut self,
        bytes_max: u64,
    ) -> Result<Option<(u64, Vec<u8>)>, VolumeError> {
        let failed = || VolumeError::io::<io::Error>("read");
        if digest(&mut self.file).map_err(failed())? == self.delivered {
            return Ok(None);
        }
        let size = self.file.seek(SeekFrom::End(0)).map_err(failed())?;
        let start = size.saturating_sub(bytes_max);
        self.file.seek(SeekFrom::Start(start)).map_err(failed())?;
        let mut last = Vec::new();
        (&mut self.file).take(bytes_max).read_to_end(&mut last).map_err(failed())?;
        Ok(Some((size, last)))
    }
}

/// SHA-256 of a file.
pub(super) fn digest_of(path: &Path) -> io::Result<Vec<u8>> {
    digest(&mut File::open(path)?)
}

/// Writes one file's content over another's, whose readers keep it open.
pub(super) fn copy_over(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut to = OpenOptions::new().write(true).open(to)?;
    let bytes = io::copy(&mut from, &mut to)?;
    to.set_len(bytes)?;
    to.flush()
}

fn digest(file: &mut File) -> io::Result<Vec<u8>> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            count => context.update(&buffer[..count]),
        }
    }
}
