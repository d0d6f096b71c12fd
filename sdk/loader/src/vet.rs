//! Looks at a file before any of its code runs.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use crate::elf;
use crate::error::LoadError;
use crate::manifest::{self, Manifest};

/// A file that may be loaded: looked at through the descriptor that is held here.
#[derive(Debug)]
pub struct Vetted {
    /// What it says about itself.
    pub manifest: Manifest,
    /// Its SHA-256 digest, in hex, when one was pinned. [`Vetted::digest`] has it in any case.
    pub sha256: Option<String>,
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

/// Vets a plugin: an open regular file, owned and writable by nobody but root and this process's user, and so for every
/// directory above it; with the digest that is pinned; a shared library for this hardware; with a manifest that fits this
/// host. Runs none of its code.
///
/// Reads the whole file: call it where blocking is allowed.
pub fn vet(path: &Path, sha256: Option<&str>) -> Result<Vetted, LoadError> {
    let open = |source: std::io::Error| LoadError::Open { path: path.into(), source };
    let given = std::path::absolute(path).map_err(open)?;
    let real = given.canonicalize().map_err(open)?;
    // Not blocking, because opening a pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&real, flags, Mode::empty()).map_err(|error| open(error.into()))?;
    let mut file = File::from(file);

    let metadata = file.metadata().map_err(open)?;
    if !metadata.is_file() {
        return Err(LoadError::NotRegular { path: path.into() });
    }
    check_ownership(path, &metadata, false)?;
    for directory in given.ancestors().skip(1).chain(real.ancestors().skip(1)) {
        let metadata = directory.metadata().map_err(open)?;
        check_ownership(directory, &metadata, true)?;
    }

    let data = read(path, &mut file, metadata.len())?;
    // Hashing is by far the dearest step where a CPU is emulated: only for those who compare.
    let found = sha256.map(|_| hex::encode(Sha256::digest(&data)));
    if let (Some(expected), Some(found)) = (sha256, &found)
        && !expected.trim().trim_start_matches("sha256:").eq_ignore_ascii_case(found)
    {
        let (expected, found) = (expected.into(), found.clone());
        return Err(LoadError::Digest { path: path.into(), expected, found });
    }

    let section = elf::manifest_section(path, &data)?;
    let manifest = manifest::parse(path, section)?;
    manifest.check(path)?;
    Ok(Vetted { manifest, sha256: found, file, path: path.into() })
}

impl Vetted {
    /// The SHA-256 digest of the file, in hex. Reads the whole file where none was pinned: call it where blocking is allowed.
    pub fn digest(&self) -> Result<String, LoadError> {
        if let Some(digest) = &self.sha256 {
            return Ok(digest.clone());
        }
        let read = |source| LoadError::Read { path: self.path.clone(), source };
        let (mut hash, mut piece, mut offset) = (Sha256::new(), vec![0; PIECE_BYTES], 0);
        loop {
            let bytes = self.file.read_at(&mut piece, offset).map_err(read)?;
            if bytes == 0 {
                return Ok(hex::encode(hash.finalize()));
            }
            hash.update(&piece[..bytes]);
            offset += bytes as u64;
        }
    }
}

/// Nobody but root and us may change what is at `path`. In a sticky directory others may only add.
fn check_ownership(
    path: &Path,
    metadata: &std::fs::Metadata,
    sticky_is_fine: bool,
) -> Result<(), LoadError> {
    let uid = metadata.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(LoadError::Owner { path: path.into(), uid });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    let sticky = sticky_is_fine && mode & 0o1000 != 0;
    if mode & 0o022 != 0 && !sticky {
        return Err(LoadError::Writable { path: path.into(), mode });
    }
    Ok(())
}

fn read(path: &Path, file: &mut File, bytes: u64) -> Result<Vec<u8>, LoadError> {
    let too_large = |bytes| LoadError::TooLarge { path: path.into(), bytes, limit: BYTES_MAX };
    if bytes > BYTES_MAX {
        return Err(too_large(bytes));
    }
    let mut data = Vec::new();
    file.take(BYTES_MAX + 1)
        .read_to_end(&mut data)
        .map_err(|source| LoadError::Read { path: path.into(), source })?;
    if data.len() as u64 > BYTES_MAX {
        return Err(too_large(data.len() as u64));
    }
    Ok(data)
}

/// Debug builds with all their symbols stay well below.
const BYTES_MAX: u64 = 1 << 30;
const PIECE_BYTES: usize = 256 * 1024;
