//! From failures to gRPC: the code that programs decide by, and the sentence that people read in `kubectl describe pod`.

use std::error::Error;

use infranetes_core::error::{EngineError, FailureKind};
use tonic::{Code, Status};

use crate::chain;

/// A request that is refused before the engine hears of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field has a value that it cannot have.
    #[error("{field}: {problem}")]
    Invalid {
        /// Path of the field in the request.
        field: String,
        /// Why.
        problem: String,
    },
    /// A field asks for something that cannot be had.
    #[error("{field}: {problem}")]
    Unsupported {
        /// Path of the field in the request.
        field: String,
        /// What cannot be had, and what to do instead.
        problem: String,
    },
}

impl Refusal {
    /// A field has a value that it cannot have.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Refusal {
        Refusal::Invalid { field: field.into(), problem: problem.into() }
    }

    /// A field asks for something that cannot be had.
    pub fn unsupported(field: impl Into<String>, problem: impl Into<String>) -> Refusal {
        Refusal::Unsupported { field: field.into(), problem: problem.into() }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Refusal::Invalid { .. } => FailureKind::Invalid,
            Refusal::Unsupported { .. } => FailureKind::Unsupported,
        }
    }
}

/// A refusal, for the wire.
pub fn from_refusal(refusal: Refusal) -> Status {
    from_kind(refusal.kind(), &refusal)
}

/// A failure of the engine, for the wire.
pub fn from_engine(error: EngineError) -> Status {
    Status::new(code(error.kind()), fit(error.report()))
}

/// An error with its kind, for the wire: its sentence, and those of its causes.
pub fn from_kind(kind: FailureKind, error: &(dyn Error + 'static)) -> Status {
    Status::new(code(kind), fit(chain(error)))
}

/// The only place where kinds become codes.
fn code(kind: FailureKind) -> Code {
    match kind {
        FailureKind::NotFound => Code::NotFound,
        FailureKind::Invalid => Code::InvalidArgument,
        FailureKind::Unsupported => Code::Unimplemented,
        FailureKind::WrongState => Code::FailedPrecondition,
        FailureKind::Conflict => Code::AlreadyExists,
        FailureKind::Exhausted => Code::ResourceExhausted,
        FailureKind::Denied => Code::PermissionDenied,
        FailureKind::Unavailable => Code::Unavailable,
        FailureKind::TimedOut => Code::DeadlineExceeded,
        FailureKind::Internal => Code::Internal,
    }
}

/// The sentence travels in a header, and headers have limits. What matters most comes first; the end, where a console's
/// last lines are, comes second.
fn fit(text: String) -> String {
    if text.len() <= MAX_MESSAGE {
        return text;
    }
    let mut head = MAX_MESSAGE * 2 / 3;
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = text.len() - MAX_MESSAGE / 3;
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{} […] {}", &text[..head], &text[tail..])
}

/// Cuts the output of a command so that both streams fit into one message of `limit` bytes. A stream that takes less than
/// half leaves the rest to the other.
pub fn fit_output(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>, limit: usize) {
    let room = limit.saturating_sub(MESSAGE_FRAME);
    let half = room / 2;
    if stdout.len() + stderr.len() > room {
        let (out, err) = (stdout.len(), stderr.len());
        stdout.truncate(room - err.min(half.max(room.saturating_sub(out))));
        stderr.truncate(room - stdout.len());
    }
}

/// Bytes; clients of HTTP/2 take headers of 16 KiB, and escaping makes a text up to three times as long.
const MAX_MESSAGE: usize = 4096;
/// Bytes of a message that are not output.
const MESSAGE_FRAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_of_causes_is_one_line_and_bounded() {
        let error = EngineError::Provider {
            provider: "cloud".into(),
            action: "create the machine".into(),
            cause: Box::new(infranetes_sdk::ProviderError::quota("no more than 5 machines")),
        };
        let status = from_engine(error);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(
            status.message(),
            "provider cloud failed to create the machine: no more than 5 machines"
        );
        let long = from_refusal(Refusal::invalid("config.labels", "ä".repeat(9000) + "end"));
        assert!(long.message().len() < MAX_MESSAGE + 10);
        assert!(long.message().starts_with("config.labels: ä") && long.message().ends_with("end"));
    }

    #[test]
    fn of_a_failed_start_the_reason_comes_before_the_console_and_both_fit_into_an_event() {
        let status = from_engine(EngineError::SandboxFailed {
            phase: infranetes_core::status::Phase::Submitted,
            next: "asking again starts over".into(),
            console: "boot message\n".repeat(500) + "Kernel panic",
            cause: infranetes_core::error::Cause::new(
                FailureKind::Exhausted,
                "the account has 5 of 5 machines",
            ),
        });
        assert_eq!(status.code(), Code::ResourceExhausted);
        let text = status.message();
        let reason = "the sandbox failed while its machine was created: the account has 5 of 5 machines; asking again starts over; the console ends with:\nboot";
        assert!(text.starts_with(reason) && text.ends_with("\nKernel panic"), "{text}");
        assert!(text.len() <= 900, "{}", text.len());
    }

    #[test]
    fn output_is_cut_to_one_message_and_neither_stream_starves_the_other() {
        let cases = [
            ((10, 10), 1000, (10, 10)),
            ((900, 10), 564, (490, 10)),
            ((10, 900), 564, (10, 490)),
            ((900, 900), 564, (250, 250)),
            ((900, 0), 564, (500, 0)),
        ];
        for ((out, err), limit, expected) in cases {
            let (mut stdout, mut stderr) = (vec![0; out], vec![0; err]);
            fit_output(&mut stdout, &mut stderr, limit);
            assert_eq!((stdout.len(), stderr.len()), expected, "{out} {err} {limit}");
        }
    }
}
