//! The directory of one machine.
//!
//! ```text
//! m/ID/                root's alone
//!   machine.json       the record
//!   user-data          kept for a second boot
//!   user-data.boot     the copy that the agent reads and deletes
//!   console.log        what the agent prints
//!   agent.sock         where it listens
//!   plugins/           links to its plugins, and their configuration
//!   state/ run/        what it and its plugins write; new at each boot
//! m/.new-ID            being made; of no value
//! m/.gone-ID           being removed
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::ProcessError;
use crate::mounts;
use crate::record::Record;

/// The directory of a machine, made or not.
#[derive(Clone, Debug)]
pub(crate) struct MachineDir {
    machines: PathBuf,
    path: PathBuf,
    id: String,
}

impl MachineDir {
    pub(crate) fn of(machines: &Path, id: &str) -> Self {
        Self { machines: machines.to_owned(), path: machines.join(id), id: id.to_owned() }
    }

    /// Makes the directory, whole or not at all.
    pub(crate) fn make(&self, record: &Record, user_data: &[u8]) -> Result<(), ProcessError> {
        let new = self.machines.join(format!("{NEW}{}", self.id));
        let made = fill(&new, record, user_data).and_then(|()| {
            fs::rename(&new, &self.path)?;
            File::open(&self.machines)?.sync_data()
        });
        made.map_err(|source| {
            // Of no value; the next attempt, or the next start, removes it too.
            let _ = fs::remove_dir_all(&new);
            ProcessError::Io {
                doing: "make the machine's directory",
                path: self.path.clone(),
                source,
            }
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.path.join(CONSOLE)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    pub(crate) fn plugins(&self) -> PathBuf {
        self.path.join("plugins")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    pub(crate) fn boot_user_data(&self) -> PathBuf {
        self.path.join("user-data.boot")
    }

    /// What was handed to `make`.
    pub(crate) fn user_data(&self) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(USER_DATA))
    }

    /// Removes what an earlier boot left, and lays the user-data out for the agent.
    pub(crate) fn prepare_boot(&self) -> Result<(), ProcessError> {
        let prepared = self.clear().and_then(|()| {
            make_private(&self.plugins())?;
            write_private(&self.boot_user_data(), &self.user_data()?)
        });
        prepared.map_err(ProcessError::io("prepare a boot in", &self.path))
    }

    /// Removes the agent's copy of the user-data, where the agent did not come to it.
    pub(crate) fn forget_boot_user_data(&self) {
        // Not there is what is wanted.
        let _ = fs::remove_file(self.boot_user_data());
    }

    /// Removes all of it. Gone already is success.
    pub(crate) fn remove(&self) -> Result<(), ProcessError> {
        let gone = self.machines.join(format!("{GONE}{}", self.id));
        let removed = mounts::detach_below(&self.path)
            .and_then(|()| remove_if_there(&gone))
            .and_then(|()| match fs::rename(&self.path, &gone) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                answer => answer,
            })
            .and_then(|()| remove_if_there(&gone));
        removed.map_err(ProcessError::io("remove", &gone))
    }

    fn clear(&self) -> io::Result<()> {
        mounts::detach_below(&self.path)?;
        for dir in [self.state(), self.path.join("run"), self.plugins()] {
            remove_if_there(&dir)?;
        }
        match fs::remove_file(self.socket()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// What may be found in the directory of machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Machine(String),
    /// Not finished when a daemon died.
    New(String),
    /// Not removed in full.
    Gone(String),
}

impl Entry {
    pub(crate) fn path(&self, machines: &Path) -> PathBuf {
        machines.join(match self {
            Self::Machine(id) => id.clone(),
            Self::New(id) => format!("{NEW}{id}"),
            Self::Gone(id) => format!("{GONE}{id}"),
        })
    }
}

/// Looks through the directory of machines.
pub(crate) fn entries(machines: &Path) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(machines)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if let Some(id) = name.strip_prefix(NEW) {
            found.push(Entry::New(id.to_owned()));
        } else if let Some(id) = name.strip_prefix(GONE) {
            found.push(Entry::Gone(id.to_owned()));
        } else if !name.starts_with('.') {
            found.push(Entry::Machine(name));
        }
    }
    Ok(found)
}

/// Makes a directory for root alone, with those above it. There already is success.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Removes a directory with all in it. It must have no mounts below.
pub(crate) fn remove_if_there(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

/// Bytes that a run directory has too many for the sockets of agents.
pub(crate) fn too_long(machines: &Path, id_bytes: usize) -> usize {
    let socket = machines.as_os_str().len() + 1 + id_bytes + 1 + SOCKET.len();
    socket.saturating_sub(SOCKET_PATH_MAX)
}

fn fill(new: &Path, record: &Record, user_data: &[u8]) -> io::Result<()> {
    remove_if_there(new)?;
    make_private(new)?;
    write_private(&new.join(USER_DATA), user_data)?;
    write_private(&new.join(CONSOLE), b"")?;
    record.save(new)
}

fn write_private(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(data)
}

const NEW: &str = ".new-";
const GONE: &str = ".gone-";
const USER_DATA: &str = "user-data";
const CONSOLE: &str = "console.log";
const SOCKET: &str = "agent.sock";
/// `sun_path` has 108 bytes with the zero at its end.
const SOCKET_PATH_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_socket_path_fits() {
        // 1 + 18 + 1 + 10 bytes follow.
        assert_eq!(too_long(Path::new(&"x".repeat(77)), 18), 0);
        assert_eq!(too_long(Path::new(&"x".repeat(80)), 18), 3);
    }

    #[test]
    fn a_directory_is_made_whole_and_removed_whole() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = MachineDir::of(root.path(), "p-1");
        let record = crate::record::tests::record();
        dir.make(&record, b"secret").expect("made");
        assert_eq!(entries(root.path()).expect("listed"), [Entry::Machine("p-1".to_owned())]);
        fs::write(dir.socket(), "").expect("written");
        fs::create_dir_all(dir.state().join("etc")).expect("made");
        dir.prepare_boot().expect("prepared");
        assert!(!dir.socket().exists() && !dir.state().exists());
        assert_eq!(fs::read(dir.boot_user_data()).expect("read"), b"secret");
        dir.forget_boot_user_data();
        assert_eq!(dir.user_data().expect("kept"), b"secret");
        dir.remove().expect("removed");
        dir.remove().expect("gone is success");
        assert!(entries(root.path()).expect("listed").is_empty());
    }
}
