//! One daemon at a time for a state directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A state directory that is ours for as long as this lives. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// A state directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another daemon has it.
    #[error(
        "the state directory {} is in use by another infranetes-cri{}; stop that one, or give this one a directory of its own",
        path.display(), holder_words(*holder)
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other daemon's process id, if it is known.
        holder: Option<u32>,
    },
    /// It cannot be made or written.
    #[error("the state directory {} cannot be used", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl StateDir {
    /// Makes the directory if need be, for this user alone, and locks it.
    pub fn lock(path: &Path) -> Result<StateDir, StateDirError> {
        let unusable = |source| StateDirError::Unusable { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path.join("lock")).map_err(unusable)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StateDirError::InUse {
                    path: path.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(error) => return Err(unusable(error.into())),
        }
        write_holder(&mut file).map_err(unusable)?;
        Ok(StateDir { path: path.to_owned(), _lock: file })
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A directory in it, made if need be, for this user alone.
    pub fn directory(&self, name: &str) -> Result<PathBuf, StateDirError> {
        let path = self.path.join(name);
        match DirBuilder::new().recursive(true).mode(0o700).create(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(StateDirError::Unusable { path, source }),
        }
    }
}

/// For people alone: what counts is the lock.
fn write_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn holder_words(holder: Option<u32>) -> String {
    holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_second_daemon_is_told_who_has_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/state");
        let first = StateDir::lock(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let error = StateDir::lock(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        StateDir::lock(&path).unwrap();
    }

    #[test]
    fn what_cannot_be_a_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let error = StateDir::lock(&root.path().join("file/state")).unwrap_err();
        assert!(matches!(error, StateDirError::Unusable { .. }), "{error}");
    }
}
