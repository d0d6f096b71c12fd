//! The directory of one machine.
//!
//! ```text
//! machines/ID/            root's; its user may pass, not list
//!   machine.json          the record
//!   user-data             root's, kept for a second boot
//!   user-data.boot        the copy that QEMU reads; gone once it did
//!   console.log           the user's
//!   qemu.log              QEMU's own words
//!   control/qmp           the user's
//! machines/.new-ID        being made; of no value
//! machines/.gone-ID       being removed
//! ```

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::client::{Qmp, QmpEvent};
use crate::error::{QemuError, QmpError};
use crate::launch::{BOOT_USER_DATA, CONSOLE, QMP};
use crate::record::Record;

/// The directory of a machine that exists.
#[derive(Clone, Debug)]
pub(crate) struct MachineDir {
    machines: PathBuf,
    path: PathBuf,
    id: String,
}

impl MachineDir {
    /// The directory of machine `id`, made or not.
    pub(crate) fn of(machines: &Path, id: &str) -> Self {
        Self { machines: machines.to_owned(), path: machines.join(id), id: id.to_owned() }
    }

    /// Makes the directory, whole or not at all.
    pub(crate) fn make(&self, record: &Record, user_data: &[u8]) -> Result<(), QemuError> {
        let new = self.machines.join(format!("{NEW}{}", self.id));
        let made = self.fill(&new, record, user_data).and_then(|()| {
            fs::rename(&new, &self.path)?;
            File::open(&self.machines)?.sync_data()
        });
        made.map_err(|source| {
            // Of no value; the next attempt, or the next start, removes it too.
            let _ = fs::remove_dir_all(&new);
            QemuError::Io { doing: "make the machine's directory", path: self.path.clone(), source }
        })
    }

    fn fill(&self, new: &Path, record: &Record, user_data: &[u8]) -> io::Result<()> {
        remove_if_there(new)?;
        fs::create_dir(new)?;
        write_private(&new.join(USER_DATA), user_data, None)?;
        write_private(&new.join(CONSOLE), b"", record.uid)?;
        let control = new.join(CONTROL);
        fs::create_dir(&control)?;
        fs::set_permissions(&control, Permissions::from_mode(0o700))?;
        chown(&control, record.uid, record.uid)?;
        fs::set_permissions(new, Permissions::from_mode(0o711))?;
        record.save(new)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What was handed to `make`.
    pub(crate) fn user_data(&self) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(USER_DATA))
    }

    /// Lays out what QEMU reads at its start, and answers the user-data.
    pub(crate) fn prepare_boot(&self, uid: Option<u32>) -> Result<Vec<u8>, QemuError> {
        let path = self.path.join(BOOT_USER_DATA);
        let _ = fs::remove_file(self.path.join(QMP));
        let data = self.user_data().map_err(QemuError::io("read the user-data in", &self.path))?;
        write_private(&path, &data, uid).map_err(QemuError::io("write", &path))?;
        Ok(data)
    }

    /// Removes QEMU's copy of the user-data.
    pub(crate) fn forget_boot_user_data(&self) {
        // Not there is what is wanted.
        let _ = fs::remove_file(self.path.join(BOOT_USER_DATA));
    }

    /// Connects to the QEMU of the machine. The path of a socket has a limit, the path of a directory has not.
    pub(crate) async fn connect(
        &self,
        pid: i32,
        limit: Duration,
    ) -> Result<(Qmp, mpsc::Receiver<QmpEvent>), QmpError> {
        let dir = File::open(&self.path)?;
        let socket = PathBuf::from(format!("/proc/self/fd/{}/{QMP}", dir.as_raw_fd()));
        Qmp::connect(&socket, pid, limit).await
    }

    /// Removes all of it. Gone already is success.
    pub(crate) fn remove(&self) -> Result<(), QemuError> {
        let gone = self.machines.join(format!("{GONE}{}", self.id));
        let removed = remove_if_there(&gone)
            .and_then(|()| match fs::rename(&self.path, &gone) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                answer => answer,
            })
            .and_then(|()| remove_if_there(&gone));
        removed.map_err(QemuError::io("remove", &gone))
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

/// The path of what `entries` found.
pub(crate) fn path_of(machines: &Path, entry: &Entry) -> PathBuf {
    match entry {
        Entry::Machine(id) => machines.join(id),
        Entry::New(id) => machines.join(format!("{NEW}{id}")),
        Entry::Gone(id) => machines.join(format!("{GONE}{id}")),
    }
}

pub(crate) fn remove_if_there(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

fn write_private(path: &Path, data: &[u8], uid: Option<u32>) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(data)?;
    chown(path, uid, uid)
}

const NEW: &str = ".new-";
const GONE: &str = ".gone-";
const USER_DATA: &str = "user-data";
const CONTROL: &str = "control";
