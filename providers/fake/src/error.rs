//! How a call to the fake cloud goes wrong.

use std::time::Duration;

use infranetes_sdk::ErrorKind;

use crate::script::{Failure, Method};

/// Why the cloud did not do a thing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloudError {
    #[error("machine {id:?} does not exist")]
    NoSuchMachine { id: String },
    #[error("volume {id:?} does not exist")]
    NoSuchVolume { id: String },
    #[error("{}", .0.message)]
    Scripted(Failure),
    #[error("the cloud's answer to {method:?} was lost")]
    LostAnswer { method: Method },
    #[error("too many calls: the next one is taken in {} ms", .retry_after.as_millis())]
    Throttled { retry_after: Duration },
    #[error("the account's limit of {limit} {name} is reached")]
    Quota { name: &'static str, limit: u64 },
    #[error("machine type {machine_type} is sold out")]
    SoldOut { machine_type: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Conflict(String),
    #[error("this cloud does not do {0}")]
    Unsupported(&'static str),
    #[error("the deadline passed before the cloud answered {method:?}")]
    Deadline { method: Method },
}

impl CloudError {
    /// Of which kind it is.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchMachine { .. } | Self::NoSuchVolume { .. } => ErrorKind::NotFound,
            Self::Scripted(failure) => failure.kind,
            Self::LostAnswer { .. } => ErrorKind::Transient,
            Self::Throttled { .. } => ErrorKind::Throttled,
            Self::Quota { .. } => ErrorKind::Quota,
            Self::SoldOut { .. } => ErrorKind::Capacity,
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Conflict(_) => ErrorKind::Conflict,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
        }
    }
}
