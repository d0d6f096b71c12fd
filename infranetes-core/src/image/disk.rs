//! The files of the store: where they lie and the few things that are done to them. All of it blocks.
//!
//! ```text
//! lock       held by the one process that has the store open
//! index      the durable list of images
//! blobs/     content that was checked against its digest: the file's name
//! partial/   content on its way; survives, so that a download continues
//! trash/     content that is no longer named by anything; emptied at the next occasion
//! ```

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::digest::{Digest, Hasher};

/// Paths of the files of one store.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
}

/// Content on its way: what is there, and the digest of it so far.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    digest: Digest,
    hasher: Hasher,
    length: u64,
}

/// Files that the store has besides blobs: lock, index and the four directories.
pub(super) const FIXED_INODES: u64 = 6;

impl Layout {
    pub(super) fn make_root(&self) -> io::Result<()> {
        make_directory(&self.root)
    }

    pub(super) fn make_directories(&self) -> io::Result<()> {
        for directory in [self.blobs(), self.partials(), self.trash()] {
            make_directory(&directory)?;
        }
        sync_directory(&self.root)
    }

    /// Takes the lock of the store; `None` if another process has it.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let file = open_options().truncate(false).open(self.root.join("lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.file_name())
    }

    pub(super) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials().join(digest.file_name())
    }

    /// Takes a file out of its name at once; [`Layout::empty_trash`] frees its space, which may take long.
    pub(super) fn discard(&self, path: &Path, digest: &Digest) -> io::Result<()> {
        match fs::rename(path, self.trash().join(digest.file_name())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(super) fn empty_trash(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.trash())? {
            match fs::remove_file(entry?.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// The sizes of all blobs.
    pub(super) fn list_blobs(&self) -> io::Result<HashMap<Digest, u64>> {
        list(&self.blobs())
    }

    /// The sizes of all unfinished downloads.
    pub(super) fn list_partials(&self) -> io::Result<HashMap<Digest, u64>> {
        list(&self.partials())
    }

    /// Reads a whole blob, and says whether it is what its name says.
    pub(super) fn is_whole(&self, digest: &Digest, size: u64) -> io::Result<bool> {
        let file = match File::open(self.blob(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        let mut hasher = digest.hasher();
        let length = feed(&mut hasher, file.take(size + 1))?;
        Ok(length == size && hasher.finish() == *digest)
    }

    /// Makes the renames of blobs durable.
    pub(super) fn sync_blobs(&self) -> io::Result<()> {
        sync_directory(&self.blobs())
    }

    fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }
}

impl Partial {
    /// Opens what there is of a blob of `size` bytes and digests it. More than `size` bytes, or an
    /// unreadable file, start anew.
    pub(super) fn open(layout: &Layout, digest: &Digest, size: u64) -> io::Result<Partial> {
        let path = layout.partial(digest);
        let file = open_options().truncate(false).read(true).append(true).open(&path)?;
        let mut partial =
            Partial { file, path, digest: digest.clone(), hasher: digest.hasher(), length: 0 };
        let length = partial.file.metadata()?.len();
        if length > size || partial.read_back(length).is_err() {
            partial.restart()?;
        }
        Ok(partial)
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn append(&mut self, content: &[u8]) -> io::Result<()> {
        self.file.write_all(content)?;
        self.hasher.update(content);
        self.length += content.len() as u64;
        Ok(())
    }

    /// Forgets all content.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.hasher = self.digest.hasher();
        self.length = 0;
        Ok(())
    }

    /// Makes the content a blob if it has its digest; says which digest it has if not, and forgets it.
    pub(super) fn finish(&mut self, layout: &Layout) -> io::Result<Result<(), Digest>> {
        let got = self.hasher.clone().finish();
        if got != self.digest {
            self.restart()?;
            return Ok(Err(got));
        }
        self.file.sync_all()?;
        fs::rename(&self.path, layout.blob(&self.digest))?;
        Ok(Ok(()))
    }

    fn read_back(&mut self, length: u64) -> io::Result<()> {
        self.length = feed(&mut self.hasher, (&self.file).take(length))?;
        Ok(())
    }
}

/// Digests all of `content`, and says how much it was.
fn feed(hasher: &mut Hasher, mut content: impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut length = 0;
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(length),
            count => {
                hasher.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
}

/// Writes a file and waits until the disk has it.
pub(super) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = open_options().truncate(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes renames into `directory` durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Images may be private: what is in the store is for its owner.
fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The files of a directory that are named by a digest; others are not ours to count or to touch.
fn list(directory: &Path) -> io::Result<HashMap<Digest, u64>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_name().to_str().and_then(Digest::from_file_name) {
            Some(digest) => drop(found.insert(digest, entry.metadata()?.len())),
            None => {
                tracing::warn!(file = %entry.path().display(), "unknown file in the image store")
            }
        }
    }
    Ok(found)
}
