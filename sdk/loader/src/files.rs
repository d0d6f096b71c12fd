//! Files of plugins stay open for ever.
//!
//! A plugin is opened by the linker as "/proc/self/fd/N", so that it is exactly the file that was vetted. The linker
//! remembers libraries by such names: with a reused N it would give the library that was opened first. And an inode that
//! stays open is never given to another file. So each file is opened once for the life of the process, whatever becomes
//! of the plugin.
//!
//! Who owns a file, or opened it for writing before its mode was right, can still change it between the check and the
//! linker. Bytes that somebody vouches for by a digest or a signature are therefore copied to memory and sealed first:
//! what was checked is what runs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// A file that the linker may open.
#[derive(Debug)]
pub(crate) enum Opened {
    /// The plugin's own.
    File(File),
    /// A sealed copy of bytes with this digest.
    Sealed(File, String),
}

impl Opened {
    /// Another descriptor of it, to be read by positions alone.
    pub(crate) fn try_clone(&self) -> io::Result<File> {
        match self {
            Opened::File(file) | Opened::Sealed(file, _) => file.try_clone(),
        }
    }
}

/// Copies bytes to where nobody can change them. `path` gives the copy its name in the lists of debuggers.
pub(crate) fn seal(path: &Path, data: &[u8], sha256: &str) -> io::Result<Opened> {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let name: String = name.chars().filter(|c| *c != '\0').take(NAME_CHARS_MAX).collect();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match memfd_create(name.as_str(), flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 do not know the flag, and need none.
        Err(Errno::INVAL) => memfd_create(name.as_str(), flags)?,
        copy => copy?,
    };
    let mut copy = File::from(copy);
    copy.write_all(data)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&copy, seals)?;
    Ok(Opened::Sealed(copy, sha256.to_owned()))
}

/// Keeps `file` open for ever, and gives the path under which the linker may open it.
pub(crate) fn keep(file: Opened) -> io::Result<PathBuf> {
    let (key, file) = match file {
        Opened::File(file) => {
            let metadata = file.metadata()?;
            (Key::Inode(metadata.dev(), metadata.ino()), file)
        }
        // The same bytes are the same library, however often they are loaded.
        Opened::Sealed(file, sha256) => (Key::Digest(sha256), file),
    };
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = files.entry(key).or_insert(file);
    Ok(PathBuf::from(format!("/proc/self/fd/{}", kept.as_raw_fd())))
}

#[derive(PartialEq, Eq, Hash)]
enum Key {
    Inode(u64, u64),
    Digest(String),
}

// Global because the linker's list of libraries is: it belongs to the process.
static FILES: LazyLock<Mutex<HashMap<Key, File>>> = LazyLock::new(Mutex::default);
/// The kernel takes 249 bytes.
const NAME_CHARS_MAX: usize = 60;
