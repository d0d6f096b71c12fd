//! How failures of the system become errors of the provider.

use std::io;

use infranetes_sdk::{ErrorKind, ProviderError};

/// Wraps a failed system call: our sentence, the cause below it, and a kind that fits.
pub(crate) fn io_error<E: Into<io::Error>>(
    message: impl Into<String>,
) -> impl FnOnce(E) -> ProviderError {
    let message = message.into();
    move |error| {
        let error = error.into();
        from_io(message, error.kind()).with_source(error)
    }
}

/// The kind of error that a failed system call is.
pub(crate) fn from_io(message: impl Into<String>, kind: io::ErrorKind) -> ProviderError {
    let kind = match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            ErrorKind::Capacity
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => ErrorKind::Invalid,
        io::ErrorKind::Interrupted | io::ErrorKind::TimedOut => ErrorKind::Transient,
        _ => ErrorKind::Internal,
    };
    ProviderError::new(kind, message)
}
