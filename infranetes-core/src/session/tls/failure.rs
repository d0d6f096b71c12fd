//! What went wrong on the way to an agent or at it, in the engine's words.

use std::error::Error;
use std::time::Duration;

use tonic::{Code, Status};

use crate::error::FailureKind;
use crate::session::SessionError;

/// Waits for an answer at most so long.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, SessionError> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(SessionError::TimedOut(limit)),
    }
}

/// As [`within`], for work whose errors are told already.
pub(super) async fn bounded<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(SessionError::TimedOut(limit)))
}

/// A call that failed: refused by the agent, or lost with the connection. What the transport says has a source; what the
/// agent says has none.
pub(super) fn failed(status: Status) -> SessionError {
    if status.source().is_some() {
        return SessionError::Broken(Box::new(status));
    }
    refused(status.code(), status.message())
}

/// What an agent's refusal means.
pub(super) fn refused(code: Code, message: &str) -> SessionError {
    let kind = match code {
        Code::NotFound => FailureKind::NotFound,
        Code::InvalidArgument | Code::OutOfRange => FailureKind::Invalid,
        Code::Unimplemented => FailureKind::Unsupported,
        Code::FailedPrecondition => FailureKind::WrongState,
        Code::AlreadyExists => FailureKind::Conflict,
        Code::ResourceExhausted => FailureKind::Exhausted,
        Code::PermissionDenied | Code::Unauthenticated => FailureKind::Denied,
        Code::Unavailable | Code::Aborted | Code::Cancelled => FailureKind::Unavailable,
        Code::DeadlineExceeded => FailureKind::TimedOut,
        _ => FailureKind::Internal,
    };
    let message = if message.is_empty() {
        format!("the agent refused with {code:?}")
    } else {
        message.to_owned()
    };
    SessionError::Refused { kind, message }
}

/// What TLS itself has to say among the causes, if anything: who is there refused us, or is not who it should be. An end of
/// the connection in the middle is none.
pub(super) fn tls_problem(error: &(dyn Error + 'static)) -> Option<String> {
    let causes = || std::iter::successors(Some(error), |error| cause_of(*error));
    if let Some(found) = causes().find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
        return Some(match found {
            rustls::Error::AlertReceived(alert) => {
                format!("it refused this node in the handshake ({alert:?})")
            }
            rustls::Error::InvalidCertificate(problem) => {
                format!("its certificate does not count: {problem}")
            }
            error => format!("the handshake failed: {error}"),
        });
    }
    // HTTP/2 keeps of an error of the TLS stream its words, and its kind, which errors of the socket below never have.
    causes()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .find(|error| error.kind() == std::io::ErrorKind::InvalidData)
        .map(|error| format!("it refused this node ({error})"))
}

/// The next cause; io::Error hides what it carries behind its own source.
fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(carried) => Some(carried),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_broken_connection_is_no_refusal_and_a_refusal_is_none() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        let typed = io::Error::new(io::ErrorKind::InvalidData, alert);
        assert!(tls_problem(&typed).is_some_and(|text| text.contains("UnknownCA")));
        let words =
            io::Error::new(io::ErrorKind::InvalidData, "received fatal alert: DecryptError");
        assert!(tls_problem(&words).is_some_and(|text| text.contains("DecryptError")));
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(tls_problem(&reset), None);
        let nested = io::Error::other(io::Error::from(io::ErrorKind::UnexpectedEof));
        assert_eq!(tls_problem(&nested), None);
    }

    #[test]
    fn what_the_agent_says_is_told_from_what_the_connection_says() {
        let said = failed(Status::not_found("no container c1"));
        assert_eq!(
            (said.kind(), said.to_string()),
            (FailureKind::NotFound, "no container c1".into())
        );
        let mut lost = Status::unavailable("transport error");
        lost.set_source(std::sync::Arc::new(io::Error::from(io::ErrorKind::BrokenPipe)));
        assert!(matches!(failed(lost), SessionError::Broken(_)));
    }
}
