//! What went wrong, of which kind, and what the caller may do about it.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::v1;

/// What every provider method answers.
pub type Result<T, E = ProviderError> = std::result::Result<T, E>;

/// A failure with its kind, advice on retries, and the chain of its causes.
///
/// ```
/// use infranetes_sdk::{ErrorKind, ProviderError, RetryAdvice};
/// use std::time::Duration;
///
/// let cause = std::io::Error::other("status 429");
/// let error = ProviderError::throttled("cannot create the machine")
///     .with_provider_code("RequestLimitExceeded")
///     .with_retry(RetryAdvice::After(Duration::from_secs(2)))
///     .with_source(cause);
/// assert_eq!(error.kind, ErrorKind::Throttled);
/// assert!(error.is_retryable());
/// assert_eq!(error.chain(), "cannot create the machine: status 429");
/// ```
///
/// The message is one sentence and never repeats what the causes say; [`Error::source`] walks the causes, also
/// after the error came through the plugin boundary.
pub struct ProviderError {
    /// Decides what the caller does next.
    pub kind: ErrorKind,
    /// One sentence about what could not be done.
    pub message: String,
    /// When to ask again; [`RetryAdvice::ByKind`] leaves that to the kind.
    pub retry: RetryAdvice,
    /// The cloud's own code as it spells it, or empty.
    pub provider_code: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The kinds that a caller tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An account limit is reached; a person has to raise it or something has to go.
    Quota,
    /// The provider has no room now, for this type or zone.
    Capacity,
    /// The provider does not accept who we are or what we may do.
    Credentials,
    /// Too many calls.
    Throttled,
    /// No such thing (yet, or any more).
    NotFound,
    /// What exists contradicts the wish.
    Conflict,
    /// The wish itself is wrong; asking again changes nothing.
    Invalid,
    /// The provider cannot do this at all.
    Unsupported,
    /// A passing fault.
    Transient,
    /// A defect of the plugin, a panic included.
    Internal,
    /// The deadline passed.
    DeadlineExceeded,
}

/// When to ask again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// Decide by the kind.
    #[default]
    ByKind,
    /// Do not ask again.
    Never,
    /// Ask again with growing pauses.
    Backoff,
    /// Ask again after this time.
    After(Duration),
}

impl ProviderError {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry: RetryAdvice::ByKind,
            provider_code: String::new(),
            source: None,
        }
    }

    /// An account limit is reached.
    pub fn quota(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Quota, message)
    }

    /// The provider has no room now.
    pub fn capacity(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Capacity, message)
    }

    /// The provider does not accept who we are or what we may do.
    pub fn credentials(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Credentials, message)
    }

    /// Too many calls; add [`Self::with_retry`] where the provider says how long to wait.
    pub fn throttled(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Throttled, message)
    }

    /// No such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// What exists contradicts the wish.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// The wish itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The provider cannot do this at all.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A passing fault.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Transient, message)
    }

    /// A defect of the plugin.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The deadline passed.
    pub fn deadline_exceeded(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::DeadlineExceeded, message)
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds advice on when to ask again.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryAdvice) -> Self {
        self.retry = retry;
        self
    }

    /// Adds the cloud's own code.
    #[must_use]
    pub fn with_provider_code(mut self, code: impl Into<String>) -> Self {
        self.provider_code = code.into();
        self
    }

    /// Whether asking again can help without anybody changing anything: the advice decides, else the kind.
    pub fn is_retryable(&self) -> bool {
        match self.retry {
            RetryAdvice::Never => false,
            RetryAdvice::Backoff | RetryAdvice::After(_) => true,
            RetryAdvice::ByKind => self.kind.is_retryable(),
        }
    }

    /// The message and all causes in one line, for logs: "cannot X: cannot Y: no such file".
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        for cause in self.causes() {
            text.push_str(": ");
            text.push_str(&cause);
        }
        text
    }

    fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.source();
        while let Some(cause) = next.filter(|_| causes.len() < CAUSES_MAX) {
            causes.push(cause.to_string());
            next = cause.source();
        }
        causes
    }
}

impl ErrorKind {
    /// Every kind, in the order of the protocol.
    pub const ALL: [Self; 11] = [
        Self::Quota,
        Self::Capacity,
        Self::Credentials,
        Self::Throttled,
        Self::NotFound,
        Self::Conflict,
        Self::Invalid,
        Self::Unsupported,
        Self::Transient,
        Self::Internal,
        Self::DeadlineExceeded,
    ];

    /// Whether asking again can help when nothing else was said.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Capacity | Self::Throttled | Self::Transient | Self::DeadlineExceeded)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quota => "quota",
            Self::Capacity => "capacity",
            Self::Credentials => "credentials",
            Self::Throttled => "throttled",
            Self::NotFound => "not found",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Transient => "transient",
            Self::Internal => "internal",
            Self::DeadlineExceeded => "deadline exceeded",
        })
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for ProviderError {
    /// `kind: message: cause: cause (code)`, so that a failed `unwrap` in a test reads well.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.chain())?;
        if !self.provider_code.is_empty() {
            write!(f, " ({})", self.provider_code)?;
        }
        Ok(())
    }
}

impl Error for ProviderError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// One cause of an error that came through the boundary: its text, and the next link.
#[derive(Debug)]
struct Cause {
    message: String,
    source: Option<Box<Cause>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl From<&ProviderError> for v1::Status {
    fn from(error: &ProviderError) -> Self {
        let (retry, retry_after_ms) = match error.retry {
            RetryAdvice::ByKind => (v1::RetryAdvice::Unspecified, 0),
            RetryAdvice::Never => (v1::RetryAdvice::Never, 0),
            RetryAdvice::Backoff => (v1::RetryAdvice::Backoff, 0),
            RetryAdvice::After(pause) => (v1::RetryAdvice::After, millis(pause)),
        };
        Self {
            kind: v1::ErrorKind::from(error.kind) as i32,
            message: error.message.clone(),
            sources: error.causes(),
            retry: retry as i32,
            retry_after_ms,
            provider_code: error.provider_code.clone(),
        }
    }
}

impl From<ProviderError> for v1::Status {
    fn from(error: ProviderError) -> Self {
        Self::from(&error)
    }
}

impl From<v1::Status> for ProviderError {
    fn from(status: v1::Status) -> Self {
        let kind = ErrorKind::from(status.kind());
        let retry = match status.retry() {
            v1::RetryAdvice::Unspecified => RetryAdvice::ByKind,
            v1::RetryAdvice::Never => RetryAdvice::Never,
            v1::RetryAdvice::Backoff => RetryAdvice::Backoff,
            v1::RetryAdvice::After => {
                RetryAdvice::After(Duration::from_millis(status.retry_after_ms))
            }
        };
        let source =
            status.sources.into_iter().take(CAUSES_MAX).rev().fold(None, |source, text| {
                Some(Box::new(Cause { message: shortened(text, TEXT_BYTES_MAX), source }))
            });
        Self {
            kind,
            message: shortened(status.message, TEXT_BYTES_MAX),
            retry,
            provider_code: shortened(status.provider_code, CODE_BYTES_MAX),
            source: source.map(|cause| cause as Box<dyn Error + Send + Sync>),
        }
    }
}

/// What the other side says ends in logs and in answers to others: it may not be of any length.
pub(crate) fn shortened(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        let left_out = text.len() - end;
        text.truncate(end);
        text.push_str(&format!("… ({left_out} bytes more)"));
    }
    text
}

impl From<ErrorKind> for v1::ErrorKind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Quota => Self::Quota,
            ErrorKind::Capacity => Self::Capacity,
            ErrorKind::Credentials => Self::Credentials,
            ErrorKind::Throttled => Self::Throttled,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::Invalid => Self::Invalid,
            ErrorKind::Unsupported => Self::Unsupported,
            ErrorKind::Transient => Self::Transient,
            ErrorKind::Internal => Self::Internal,
            ErrorKind::DeadlineExceeded => Self::DeadlineExceeded,
        }
    }
}

impl From<v1::ErrorKind> for ErrorKind {
    /// A kind that this version does not know reads as [`ErrorKind::Internal`].
    fn from(kind: v1::ErrorKind) -> Self {
        match kind {
            v1::ErrorKind::Quota => Self::Quota,
            v1::ErrorKind::Capacity => Self::Capacity,
            v1::ErrorKind::Credentials => Self::Credentials,
            v1::ErrorKind::Throttled => Self::Throttled,
            v1::ErrorKind::NotFound => Self::NotFound,
            v1::ErrorKind::Conflict => Self::Conflict,
            v1::ErrorKind::Invalid => Self::Invalid,
            v1::ErrorKind::Unsupported => Self::Unsupported,
            v1::ErrorKind::Transient => Self::Transient,
            v1::ErrorKind::DeadlineExceeded => Self::DeadlineExceeded,
            v1::ErrorKind::Internal | v1::ErrorKind::Unspecified => Self::Internal,
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A chain of causes is cut here, so that a cycle or a hostile plugin cannot make it endless.
const CAUSES_MAX: usize = 16;
/// Of one message that comes through the boundary.
const TEXT_BYTES_MAX: usize = 4096;
const CODE_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_everything_through_the_boundary() {
        for kind in ErrorKind::ALL {
            for retry in [
                RetryAdvice::ByKind,
                RetryAdvice::Never,
                RetryAdvice::Backoff,
                RetryAdvice::After(Duration::from_millis(1500)),
            ] {
                let inner = ProviderError::internal("dial the API")
                    .with_source(std::io::Error::other("connection refused"));
                let error = ProviderError::new(kind, "cannot create the machine")
                    .with_retry(retry)
                    .with_provider_code("Nope")
                    .with_source(inner);
                let back = ProviderError::from(v1::Status::from(&error));
                assert_eq!(back.kind, kind);
                assert_eq!(back.retry, retry);
                assert_eq!(back.provider_code, "Nope");
                assert_eq!(
                    back.chain(),
                    "cannot create the machine: dial the API: connection refused"
                );
                let first = back.source().expect("the first cause");
                let second = first.source().expect("the second cause");
                assert_eq!(second.to_string(), "connection refused");
                assert!(second.source().is_none());
            }
        }
    }

    #[test]
    fn an_unknown_kind_reads_as_internal() {
        let status = v1::Status { kind: 4711, ..Default::default() };
        assert_eq!(ProviderError::from(status).kind, ErrorKind::Internal);
    }

    #[test]
    fn advice_goes_before_kind() {
        assert!(ProviderError::transient("x").is_retryable());
        assert!(!ProviderError::transient("x").with_retry(RetryAdvice::Never).is_retryable());
        assert!(ProviderError::quota("x").with_retry(RetryAdvice::Backoff).is_retryable());
        assert!(!ProviderError::quota("x").is_retryable());
    }
}
