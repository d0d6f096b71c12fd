//! What goes wrong between us and the agent's process, and of which kind that is for the caller.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use infranetes_sdk::{ErrorKind, ProviderError, RetryAdvice};

/// Why a machine could not be made, driven or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("the agent {path} cannot be started (config `agent`)", path = path.display())]
    NoAgent { path: PathBuf, source: io::Error },
    #[error("the directory {path} has no plugin for the agent (config `plugins`)", path = path.display())]
    NoPlugins { path: PathBuf, source: io::Error },
    #[error("the configuration {path} of a plugin cannot be used", path = path.display())]
    PluginConfig { path: PathBuf, source: serde_json::Error },
    #[error("making namespaces takes root")]
    NotRoot,
    #[error("the run directory {path} is {bytes} bytes too long: an agent's socket below it would have no address (config `run_dir`)", path = path.display())]
    LongPath { path: PathBuf, bytes: usize },
    #[error("cannot {doing} {path}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("the agent could not be started")]
    Spawn { source: io::Error },
    #[error("{how} before it listened{}", words(last))]
    EndedEarly { how: String, last: Option<String> },
    #[error("the agent did not listen within {} s", waited.as_secs())]
    NeverListened { waited: Duration },
    #[error("machine {id} is being destroyed")]
    Destroyed { id: String },
    #[error("the provider is closing, and the machine goes on")]
    Closing,
    #[error("processes of machine {id} did not end within {} s", waited.as_secs())]
    StillThere { id: String, waited: Duration },
    #[error("cgroups of machine {id} cannot be removed")]
    Cgroup { id: String, source: io::Error },
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
    #[error("the limit of {limit} machines is reached (config `max_machines`)")]
    TooMany { limit: u32 },
    #[error("another process uses the run directory {path}", path = path.display())]
    InUse { path: PathBuf },
    #[error("the deadline passed before {doing} was done; it goes on")]
    Deadline { doing: &'static str },
    #[error("the task that did this broke off")]
    Broken,
}

impl ProcessError {
    /// An I/O error about a path.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// It and its causes in one line.
    pub(crate) fn chain(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |next| next.source());
        causes.fold(self.to_string(), |text, cause| format!("{text}: {cause}"))
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoAgent { .. }
            | Self::NoPlugins { .. }
            | Self::NotRoot
            | Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Io { source, .. } | Self::Spawn { source } => kind_of_io(source),
            Self::EndedEarly { .. }
            | Self::NeverListened { .. }
            | Self::Closing
            | Self::StillThere { .. }
            | Self::Cgroup { .. }
            | Self::Process { .. } => ErrorKind::Transient,
            Self::NoSuchMachine { .. } => ErrorKind::NotFound,
            Self::PluginConfig { .. } | Self::LongPath { .. } | Self::Invalid(_) => {
                ErrorKind::Invalid
            }
            Self::Conflict(_) | Self::InUse { .. } | Self::Destroyed { .. } => ErrorKind::Conflict,
            Self::TooMany { .. } => ErrorKind::Quota,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::Broken => ErrorKind::Internal,
        }
    }
}

/// A full disk or process table is a lack of room, not a defect.
fn kind_of_io(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::OutOfMemory
        | io::ErrorKind::WouldBlock => ErrorKind::Capacity,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ErrorKind::Credentials
        }
        _ => ErrorKind::Transient,
    }
}

impl From<ProcessError> for ProviderError {
    fn from(error: ProcessError) -> Self {
        let mut plain = Self::new(error.kind(), error.to_string());
        if error.kind() == ErrorKind::Unsupported {
            plain = plain.with_retry(RetryAdvice::Never);
        }
        match error {
            ProcessError::NoAgent { source, .. }
            | ProcessError::NoPlugins { source, .. }
            | ProcessError::Io { source, .. }
            | ProcessError::Spawn { source }
            | ProcessError::Cgroup { source, .. }
            | ProcessError::Process { source, .. } => plain.with_source(source),
            ProcessError::PluginConfig { source, .. } => plain.with_source(source),
            _ => plain,
        }
    }
}

fn words(last: &Option<String>) -> String {
    last.as_ref().map(|line| format!("; it said last: {line}")).unwrap_or_default()
}
