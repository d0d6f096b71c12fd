//! What goes wrong between us and QEMU, and of which kind that is for the caller.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use infranetes_sdk::{ErrorKind, ProviderError, RetryAdvice};

/// Why a machine could not be made, driven or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QemuError {
    #[error("{what} {path} cannot be used; {remedy}", path = path.display())]
    Missing { what: &'static str, path: PathBuf, remedy: &'static str, source: io::Error },
    #[error("cannot {doing} {path}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("QEMU could not be started")]
    Spawn { source: io::Error },
    #[error("QEMU ended before its machine ran: {reason}")]
    EndedEarly { reason: String },
    #[error("QEMU does not answer on its control socket")]
    Control { source: QmpError },
    #[error("QEMU forwards no port of this node to the agent's port {port}")]
    NoForward { port: u16 },
    #[error("the network namespace {path} cannot be given to a machine: {problem}", path = path.display())]
    Namespace { path: PathBuf, problem: String },
    #[error("no tap can be opened in the network namespace {path}", path = path.display())]
    Tap { path: PathBuf, source: io::Error },
    #[error("the process of machine {id} did not end within {} s", waited.as_secs())]
    StillThere { id: String, waited: Duration },
    #[error("cannot take hold of the process of machine {id}")]
    Process { id: String, source: io::Error },
    #[error("machine {id:?} does not exist")]
    NoSuchMachine { id: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Conflict(String),
    #[error("the limit of {limit} machines is reached (max_machines)")]
    TooMany { limit: u32 },
    #[error(
        "{needed_mib} MiB of memory are asked for, and {free_mib} MiB of {limit_mib} MiB are free"
    )]
    NoMemory { needed_mib: u64, free_mib: u64, limit_mib: u64 },
    #[error("every user id of the range {first}..{end} belongs to a machine (uids)", end = first + count)]
    NoUid { first: u32, count: u32 },
    #[error("another process uses the run directory {path}", path = path.display())]
    InUse { path: PathBuf },
    #[error("the deadline passed before {doing} was done; it goes on")]
    Deadline { doing: &'static str },
    #[error("the checkpoint {path} cannot be used: {problem}", path = path.display())]
    Checkpoint { path: PathBuf, problem: String },
    #[error("the machine's state cannot be written")]
    State { source: io::Error },
    #[error("QEMU could not write or read the machine's state: {reason}")]
    Migration { reason: String },
    #[error("nobody waits for the checkpoint any more")]
    Abandoned,
    #[error("the task that did this broke off")]
    Broken,
}

/// Why the control socket of a QEMU gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the connection ended")]
    Closed,
    #[error("QEMU refused {command}: {message}")]
    Refused { command: &'static str, message: String },
    #[error("the answer is not QMP")]
    Garbage,
    #[error("the other side of the socket is not the machine's own QEMU")]
    Stranger,
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

impl QemuError {
    /// An I/O error about a path.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } | Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Io { source, .. } | Self::Spawn { source } | Self::State { source } => {
                kind_of_io(source)
            }
            Self::EndedEarly { .. }
            | Self::Control { .. }
            | Self::NoForward { .. }
            | Self::Migration { .. } => ErrorKind::Transient,
            Self::StillThere { .. }
            | Self::Process { .. }
            | Self::Namespace { .. }
            | Self::Tap { .. } => ErrorKind::Transient,
            Self::NoSuchMachine { .. } => ErrorKind::NotFound,
            Self::Invalid(_) | Self::Checkpoint { .. } => ErrorKind::Invalid,
            Self::Conflict(_) | Self::InUse { .. } => ErrorKind::Conflict,
            Self::TooMany { .. } | Self::NoUid { .. } => ErrorKind::Quota,
            Self::NoMemory { .. } => ErrorKind::Capacity,
            Self::Deadline { .. } | Self::Abandoned => ErrorKind::DeadlineExceeded,
            Self::Broken => ErrorKind::Internal,
        }
    }
}

/// A full disk is a lack of room, not a defect.
fn kind_of_io(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Capacity,
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => ErrorKind::Capacity,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ErrorKind::Credentials
        }
        _ => ErrorKind::Transient,
    }
}

impl From<QemuError> for ProviderError {
    fn from(error: QemuError) -> Self {
        let plain = Self::new(error.kind(), error.to_string());
        let plain = match error {
            QemuError::Missing { .. } => plain.with_retry(RetryAdvice::Never),
            _ => plain,
        };
        match error {
            QemuError::Missing { source, .. }
            | QemuError::Io { source, .. }
            | QemuError::Spawn { source }
            | QemuError::State { source }
            | QemuError::Tap { source, .. }
            | QemuError::Process { source, .. } => plain.with_source(source),
            QemuError::Control { source } => plain.with_source(source),
            _ => plain,
        }
    }
}
