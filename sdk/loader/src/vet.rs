//! Looks at a file before any of its code runs.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256, digest};
use rustix::fs::{Mode, OFlags};

use crate::elf;
use crate::error::LoadError;
use crate::files::{self, Opened};
use crate::manifest::{self, Manifest};
use crate::signature::{PublicKey, Signature, SignatureError};

/// A file that may be loaded: looked at through the descriptor that is held here.
#[derive(Debug)]
pub struct Vetted {
    /// What it says about itself.
    pub manifest: Manifest,
    /// Its SHA-256 digest, in hex, when one was pinned or signed. [`Vetted::digest`] has it in any case.
    pub sha256: Option<String>,
    /// Who vouches for it, when signatures are asked for and no digest is pinned.
    pub signed_by: Option<PublicKey>,
    pub(crate) file: Opened,
    pub(crate) path: PathBuf,
}

/// What a file has to prove, beside its owner.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The digest that it must have, in hex, with or without "sha256:".
    pub sha256: Option<String>,
    /// Who may vouch for it. Where there is any, a file without a pinned digest needs a signature of one of them.
    pub keys: Vec<PublicKey>,
}

/// As [`vet_with`], for a file that proves at most its digest.
pub fn vet(path: &Path, sha256: Option<&str>) -> Result<Vetted, LoadError> {
    vet_with(path, &Trust { sha256: sha256.map(str::to_owned), keys: Vec::new() })
}

/// Vets a plugin: an open regular file, owned and writable by nobody but root and this process's user, and so for every
/// directory above it; with the digest that is pinned, or a signature of a trusted key; a shared library for this hardware; with a manifest that fits this
/// host. Runs none of its code.
///
/// What has a digest or a signature is loaded from a sealed copy of the very bytes that were looked at.
///
/// Reads the whole file: call it where blocking is allowed.
pub fn vet_with(path: &Path, trust: &Trust) -> Result<Vetted, LoadError> {
    let open = |source: std::io::Error| LoadError::Open { path: path.into(), source };
    let given = std::path::absolute(path).map_err(open)?;
    let real = given.canonicalize().map_err(open)?;
    // Not blocking, because opening a pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&real, flags, Mode::empty()).map_err(|error| open(error.into()))?;
    let file = File::from(file);

    let metadata = file.metadata().map_err(open)?;
    if !metadata.is_file() {
        let found = kind_of(metadata.file_type());
        return Err(LoadError::NotRegular { path: path.into(), found });
    }
    check_ownership(path, &metadata, false)?;
    for directory in given.ancestors().skip(1).chain(real.ancestors().skip(1)) {
        let metadata = directory.metadata().map_err(open)?;
        check_ownership(directory, &metadata, true)?;
    }

    let data = read(path, &file, metadata.len())?;
    let proof = prove(path, &data, trust)?;
    let section = elf::manifest_section(path, &data)?;
    let manifest = manifest::parse(path, section)?;
    manifest.check(path)?;
    let sealed = |source| LoadError::Seal { path: path.into(), source };
    let (sha256, signed_by, file) = match proof {
        None => (None, None, Opened::File(file)),
        Some((digest, key)) => {
            let file = files::seal(path, &data, &digest).map_err(sealed)?;
            (Some(digest), key, file)
        }
    };
    Ok(Vetted { manifest, sha256, signed_by, file, path: path.into() })
}

/// The digest, and who vouches for it; `None` where nothing is asked for, because hashing is by far the dearest step where
/// a CPU is emulated.
fn prove(
    path: &Path,
    data: &[u8],
    trust: &Trust,
) -> Result<Option<(String, Option<PublicKey>)>, LoadError> {
    if let Some(expected) = &trust.sha256 {
        let found = sha256_of(data);
        if !expected.trim().trim_start_matches("sha256:").eq_ignore_ascii_case(&found) {
            let (path, expected) = (path.into(), expected.clone());
            return Err(LoadError::Digest { path, expected, found });
        }
        return Ok(Some((found, None)));
    }
    if trust.keys.is_empty() {
        return Ok(None);
    }
    let digest = sha256_of(data);
    let signature = Signature::read(path).and_then(|found| found.verify(&digest, &trust.keys));
    match signature {
        Ok(key) => Ok(Some((digest, Some(key)))),
        Err(source @ SignatureError::Read { .. }) => {
            Err(LoadError::Unsigned { path: path.into(), source })
        }
        Err(source) => Err(LoadError::Signature { path: path.into(), source }),
    }
}

/// The SHA-256 digest of bytes, in hex.
pub fn sha256_of(data: &[u8]) -> String {
    hex::encode(digest(&SHA256, data))
}

impl Vetted {
    /// The SHA-256 digest of the file, in hex. Reads the whole file where none was pinned: call it where blocking is allowed.
    pub fn digest(&self) -> Result<String, LoadError> {
        let file = match &self.file {
            Opened::Sealed(_, digest) => return Ok(digest.clone()),
            Opened::File(file) => file,
        };
        let read = |source| LoadError::Read { path: self.path.clone(), source };
        let (mut hash, mut piece, mut offset) = (Context::new(&SHA256), vec![0; PIECE_BYTES], 0);
        loop {
            let bytes = file.read_at(&mut piece, offset).map_err(read)?;
            if bytes == 0 {
                return Ok(hex::encode(hash.finish()));
            }
            hash.update(&piece[..bytes]);
            offset += bytes as u64;
        }
    }
}

fn kind_of(found: std::fs::FileType) -> &'static str {
    match found {
        found if found.is_dir() => "a directory",
        found if found.is_fifo() => "a pipe",
        found if found.is_socket() => "a socket",
        _ => "a device",
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

/// What is left to vet of a file that somebody else opened and vetted, in a process that may be lost over it.
pub(crate) fn vet_opened(path: &Path, file: File) -> Result<Vetted, LoadError> {
    let open = |source: std::io::Error| LoadError::Open { path: path.into(), source };
    let data = read(path, &file, file.metadata().map_err(open)?.len())?;
    let manifest = manifest::parse(path, elf::manifest_section(path, &data)?)?;
    manifest.check(path)?;
    let file = Opened::File(file);
    Ok(Vetted { manifest, sha256: None, signed_by: None, file, path: path.into() })
}

/// Wherever the descriptor stands: others may read by it, too.
fn read(path: &Path, file: &File, bytes: u64) -> Result<Vec<u8>, LoadError> {
    if bytes > BYTES_MAX {
        return Err(LoadError::TooLarge { path: path.into(), bytes, limit: BYTES_MAX });
    }
    let failed = |source| LoadError::Read { path: path.into(), source };
    let mut data = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut data, 0).map_err(failed)?;
    Ok(data)
}

/// Debug builds with all their symbols stay well below.
const BYTES_MAX: u64 = 1 << 30;
const PIECE_BYTES: usize = 256 * 1024;
