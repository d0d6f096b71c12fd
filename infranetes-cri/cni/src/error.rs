//! What can go wrong between a node and its CNI plugins.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use infranetes_core::error::FailureKind;
use infranetes_core::network::NetworkError;

/// Why a sandbox could not be connected, checked or disconnected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    #[error("the directory {} has no CNI configuration (*.conflist or *.conf)", .0.display())]
    NoConfiguration(PathBuf),
    #[error("the CNI configuration {} cannot be used: {problem}", path.display())]
    Configuration { path: PathBuf, problem: String },
    #[error("the CNI plugin {plugin:?} is in none of {}", shown(dirs))]
    NoPlugin { plugin: String, dirs: Vec<PathBuf> },
    #[error(
        "the CNI network {network:?} has no plugin with the capability {capability:?}: {needed}"
    )]
    NoCapability { network: String, capability: &'static str, needed: String },
    #[error("the pod cannot be told to CNI plugins: {0}")]
    Wish(String),
    #[error("the CNI plugin {plugin:?} refused {verb}: {message} (code {code}){}", parted(details))]
    Refused { plugin: String, verb: &'static str, code: u64, message: String, details: String },
    #[error("the CNI plugin {plugin:?} failed at {verb} ({how}){}", parted(said))]
    Failed { plugin: String, verb: &'static str, how: String, said: String },
    #[error("the CNI plugin {plugin:?} did not end its {verb} within {limit:?} and was killed")]
    TimedOut { plugin: String, verb: &'static str, limit: Duration },
    #[error("the CNI plugin {plugin:?} wrote more than {limit} bytes at {verb} and was killed")]
    TooMuch { plugin: String, verb: &'static str, limit: usize },
    #[error(
        "the CNI plugin {plugin:?} answered {verb} with something that is no result: {problem}"
    )]
    NoResult { plugin: String, verb: &'static str, problem: String },
    #[error("the CNI network {0:?} gave the pod no address")]
    NoAddress(String),
    #[error("the sandbox is not connected")]
    NotConnected,
    #[error("its network namespace {} is gone", .0.display())]
    NamespaceGone(PathBuf),
    #[error("a CNI plugin of an earlier process (pid {0}) does not end")]
    Orphan(i32),
    #[error("the program {program} cannot show the network namespace: {problem}")]
    Layout { program: &'static str, problem: String },
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// All that failed of a teardown, which goes on past failures.
    #[error("{}", .0.iter().map(chain).collect::<Vec<_>>().join("; "))]
    Several(Vec<CniError>),
}

impl CniError {
    /// An I/O error about a path.
    pub(crate) fn io<E: Into<io::Error>>(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source: source.into() }
    }

    /// It with its causes, in one line.
    pub(crate) fn chain(&self) -> String {
        chain(self)
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::NoCapability { .. } => FailureKind::Unsupported,
            Self::Wish(_) => FailureKind::Invalid,
            Self::TimedOut { .. } => FailureKind::TimedOut,
            Self::NotConnected => FailureKind::WrongState,
            _ => FailureKind::Unavailable,
        }
    }
}

impl From<CniError> for NetworkError {
    fn from(error: CniError) -> Self {
        let kind = error.kind();
        let message = error.to_string();
        match error {
            CniError::Io { source, .. } => Self { kind, message, cause: Some(Box::new(source)) },
            _ => Self::new(kind, message),
        }
    }
}

fn chain(error: &CniError) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |next| next.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn shown(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn parted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
