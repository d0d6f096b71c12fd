//! Files of plugins stay open for ever.
//!
//! A plugin is opened by the linker as "/proc/self/fd/N", so that it is exactly the file that was vetted. The linker
//! remembers libraries by such names: with a reused N it would give the library that was opened first. And an inode that
//! stays open is never given to another file. So each file is opened once for the life of the process, whatever becomes
//! of the plugin.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Keeps `file` open for ever, and gives the path under which the linker may open it.
pub(crate) fn keep(file: File) -> std::io::Result<PathBuf> {
    let metadata = file.metadata()?;
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = files.entry((metadata.dev(), metadata.ino())).or_insert(file);
    Ok(PathBuf::from(format!("/proc/self/fd/{}", kept.as_raw_fd())))
}

// Global because the linker's list of libraries is: it belongs to the process.
static FILES: LazyLock<Mutex<HashMap<(u64, u64), File>>> = LazyLock::new(Mutex::default);
