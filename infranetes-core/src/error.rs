//! What the engine's callers get when something fails.

use crate::ids::{ContainerId, SandboxId};
use crate::status::Phase;

/// Why the engine did not do what was asked. [`EngineError::kind`] is what callers decide by.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No sandbox has this id.
    #[error("no sandbox has the id {0}")]
    SandboxNotFound(SandboxId),
    /// No container has this id.
    #[error("no container has the id {0}")]
    ContainerNotFound(ContainerId),
    /// The wish itself is wrong.
    #[error("{field}: {problem}")]
    Invalid {
        /// What is wrong, in the caller's words.
        field: String,
        /// Why.
        problem: String,
    },
    /// This build, handler or provider cannot do it.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The handler is unknown, or its provider did not load.
    #[error("handler {handler:?} cannot run pods: {problem}")]
    HandlerUnavailable {
        /// The handler's name.
        handler: String,
        /// Why.
        problem: String,
    },
    /// It is not in a state in which this can be done.
    #[error("{subject} is {state}; {needed}")]
    WrongState {
        /// "sandbox ID" or "container ID".
        subject: String,
        /// What it is.
        state: String,
        /// What would have to be.
        needed: String,
    },
    /// A name is taken by something else.
    #[error("{0}")]
    Conflict(String),
    /// The image is not on the node.
    #[error("image {0:?} is not on this node; it has to be pulled first")]
    ImageNotFound(String),
    /// The image is on the node and cannot be read.
    #[error("an image of this node cannot be read")]
    ImageUnreadable(#[source] Cause),
    /// The sandbox did not become ready, or lost its machine.
    #[error("the sandbox failed while {}", phase_words(*phase))]
    SandboxFailed {
        /// The phase that failed.
        phase: Phase,
        /// What happens next, for people: see [`EngineError::report`].
        next: String,
        /// The console's last lines, or empty.
        console: String,
        /// Why.
        #[source]
        cause: Cause,
    },
    /// It goes on in the background; asking again joins it.
    #[error(
        "{subject} is still {doing} after {waited_secs} s; it goes on, and the next attempt joins it"
    )]
    StillRunning {
        /// "sandbox ID" or the like.
        subject: String,
        /// What it does.
        doing: String,
        /// How long this call waited.
        waited_secs: u64,
    },
    /// The machine does not answer.
    #[error("the machine of sandbox {sandbox} does not answer")]
    MachineUnreachable {
        /// Whose machine.
        sandbox: SandboxId,
        /// What was seen.
        #[source]
        cause: Cause,
    },
    /// A provider refused or failed.
    #[error("provider {provider} failed to {action}")]
    Provider {
        /// Name of the provider instance.
        provider: String,
        /// What it was asked.
        action: String,
        /// Its reason.
        #[source]
        cause: Box<infranetes_sdk::ProviderError>,
    },
    /// The agent refused.
    #[error("the machine's agent failed to {action}")]
    Agent {
        /// What it was asked.
        action: String,
        /// Its reason.
        #[source]
        cause: crate::session::SessionError,
    },
    /// Something cannot be mounted.
    #[error("nothing can be mounted at {destination:?}")]
    Mount {
        /// Where, in the container.
        destination: String,
        /// Why.
        #[source]
        cause: Cause,
    },
    /// The command ran too long; it is killed.
    #[error("the command did not end within {0:?} and was killed")]
    ExecTimedOut(std::time::Duration),
    /// Durable state could not be written or read.
    #[error("the node's record failed; nothing was started that is not in it")]
    Record(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The pod network of this node could not be told something.
    #[error("the node's pod network failed")]
    Network(#[source] Box<crate::network::NetworkError>),
    /// Everything of a sandbox is ended but what connects it to the pod network of this node. That goes on; asking again
    /// brings a try of its own.
    #[error(
        "the machine of sandbox {sandbox} is gone, but the sandbox could not be disconnected from the node's pod network yet"
    )]
    NotDisconnected {
        /// Which.
        sandbox: SandboxId,
        /// What the network said.
        #[source]
        cause: Cause,
    },
    /// A checkpoint cannot be written or used.
    #[error("the checkpoint {} cannot be written or used", directory.display())]
    Checkpoint {
        /// Where it is.
        directory: std::path::PathBuf,
        /// Why.
        #[source]
        cause: Cause,
    },
    /// A bound of this node is reached.
    #[error("{0}; try again later")]
    Busy(String),
    /// The engine is being shut down.
    #[error("infranetes is shutting down")]
    ShuttingDown,
    /// A defect of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A failure that is kept: several callers may ask for it, and it outlives the process in the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What kind of failure.
    pub kind: FailureKind,
    /// One sentence.
    pub message: String,
    /// What caused it.
    pub source: Option<Box<Cause>>,
}

impl Cause {
    /// A failure without a cause of its own.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Keeps the text of an error and of its causes.
    pub fn of(kind: FailureKind, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut texts = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next.filter(|_| texts.len() < CAUSES_MAX) {
            texts.push(error.to_string());
            next = error.source();
        }
        Self::from_texts(kind, texts)
    }

    /// Makes the chain out of its sentences, outermost first.
    pub fn from_texts(kind: FailureKind, texts: Vec<String>) -> Self {
        let link =
            |source: Option<Box<Self>>, message| Some(Box::new(Self { kind, message, source }));
        let chain = texts.into_iter().rev().fold(None, link);
        chain.map_or_else(|| Self::new(kind, String::new()), |chain| *chain)
    }

    /// The sentences, outermost first.
    pub fn texts(&self) -> Vec<String> {
        std::iter::successors(Some(self), |cause| cause.source.as_deref())
            .map(|cause| cause.message.clone())
            .collect()
    }

    /// All of it in one line: "cannot X: cannot Y: no such file".
    pub fn chain(&self) -> String {
        self.texts().join(": ")
    }
}

impl From<&infranetes_sdk::ProviderError> for Cause {
    fn from(error: &infranetes_sdk::ProviderError) -> Self {
        Self::of(provider_kind(error), error)
    }
}

impl From<&crate::session::SessionError> for Cause {
    fn from(error: &crate::session::SessionError) -> Self {
        Self::of(error.kind(), error)
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

/// What kind of failure it is, for those who choose by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Nothing of this name.
    NotFound,
    /// The wish is wrong.
    Invalid,
    /// Cannot be done here at all.
    Unsupported,
    /// Not in this state.
    WrongState,
    /// A name is taken.
    Conflict,
    /// A quota, capacity, bound or disk is exhausted.
    Exhausted,
    /// Credentials were refused.
    Denied,
    /// It may work later.
    Unavailable,
    /// It took too long.
    TimedOut,
    /// A defect.
    Internal,
}

impl EngineError {
    /// What kind of failure this is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::SandboxNotFound(_) | Self::ContainerNotFound(_) | Self::ImageNotFound(_) => {
                FailureKind::NotFound
            }
            Self::Invalid { .. } => FailureKind::Invalid,
            Self::Unsupported(_) => FailureKind::Unsupported,
            Self::HandlerUnavailable { .. }
            | Self::MachineUnreachable { .. }
            | Self::ShuttingDown => FailureKind::Unavailable,
            Self::WrongState { .. } => FailureKind::WrongState,
            Self::Conflict(_) => FailureKind::Conflict,
            Self::SandboxFailed { cause, .. }
            | Self::NotDisconnected { cause, .. }
            | Self::Checkpoint { cause, .. }
            | Self::ImageUnreadable(cause) => cause.kind,
            Self::StillRunning { .. } | Self::ExecTimedOut(_) => FailureKind::TimedOut,
            Self::Provider { cause, .. } => provider_kind(cause),
            Self::Agent { cause, .. } => cause.kind(),
            Self::Mount { cause, .. } => cause.kind,
            Self::Record(cause) => cause
                .downcast_ref::<crate::record::RecordError>()
                .map_or(FailureKind::Internal, crate::record::RecordError::kind),
            Self::Network(cause) => cause.kind,
            Self::Busy(_) => FailureKind::Exhausted,
            Self::Internal(_) => FailureKind::Internal,
        }
    }
}

impl EngineError {
    /// All of it for people: the sentence, its causes, what happens next, and then the console's last lines, as many as fit
    /// into what is shown of an event (see [`REPORT_BYTES`]). Only the causes, which come first, can make it longer.
    pub fn report(&self) -> String {
        let mut text = Cause::of(self.kind(), self).chain();
        let Self::SandboxFailed { next, console, .. } = self else { return text };
        text.push_str("; ");
        text.push_str(next);
        let room = REPORT_BYTES.saturating_sub(text.len() + CONSOLE_WORDS.len());
        let lines = last_lines(console, room.max(CONSOLE_BYTES_LEAST));
        if !lines.is_empty() {
            text.push_str(CONSOLE_WORDS);
            text.push_str(lines);
        }
        text
    }

    /// The same failure for another caller that joined: sentences are kept, inner types are not.
    pub(crate) fn echo(&self) -> Self {
        match self {
            Self::SandboxNotFound(id) => Self::SandboxNotFound(id.clone()),
            Self::ContainerNotFound(id) => Self::ContainerNotFound(id.clone()),
            Self::Invalid { field, problem } => {
                Self::Invalid { field: field.clone(), problem: problem.clone() }
            }
            Self::Unsupported(what) => Self::Unsupported(what.clone()),
            Self::HandlerUnavailable { handler, problem } => {
                Self::HandlerUnavailable { handler: handler.clone(), problem: problem.clone() }
            }
            Self::WrongState { subject, state, needed } => Self::WrongState {
                subject: subject.clone(),
                state: state.clone(),
                needed: needed.clone(),
            },
            Self::Conflict(what) => Self::Conflict(what.clone()),
            Self::ImageNotFound(image) => Self::ImageNotFound(image.clone()),
            Self::ImageUnreadable(cause) => Self::ImageUnreadable(cause.clone()),
            Self::SandboxFailed { phase, next, console, cause } => Self::SandboxFailed {
                phase: *phase,
                next: next.clone(),
                console: console.clone(),
                cause: cause.clone(),
            },
            Self::StillRunning { subject, doing, waited_secs } => Self::StillRunning {
                subject: subject.clone(),
                doing: doing.clone(),
                waited_secs: *waited_secs,
            },
            Self::MachineUnreachable { sandbox, cause } => {
                Self::MachineUnreachable { sandbox: sandbox.clone(), cause: cause.clone() }
            }
            Self::Provider { provider, action, cause } => Self::Provider {
                provider: provider.clone(),
                action: action.clone(),
                cause: Box::new(infranetes_sdk::ProviderError::new(cause.kind, cause.chain())),
            },
            Self::Mount { destination, cause } => {
                Self::Mount { destination: destination.clone(), cause: cause.clone() }
            }
            Self::Agent { action, cause } => Self::Agent {
                action: action.clone(),
                cause: crate::session::SessionError::Refused {
                    kind: cause.kind(),
                    message: Cause::from(cause).chain(),
                },
            },
            Self::ExecTimedOut(limit) => Self::ExecTimedOut(*limit),
            Self::Record(cause) => match cause.downcast_ref::<crate::record::RecordError>() {
                Some(error) => Self::Record(Box::new(error.echo())),
                None => Self::Record(cause.to_string().into()),
            },
            Self::Network(cause) => Self::Network(Box::new(crate::network::NetworkError::new(
                cause.kind,
                cause.message.clone(),
            ))),
            Self::NotDisconnected { sandbox, cause } => {
                Self::NotDisconnected { sandbox: sandbox.clone(), cause: cause.clone() }
            }
            Self::Checkpoint { directory, cause } => {
                Self::Checkpoint { directory: directory.clone(), cause: cause.clone() }
            }
            Self::Busy(what) => Self::Busy(what.clone()),
            Self::ShuttingDown => Self::ShuttingDown,
            Self::Internal(what) => Self::Internal(what.clone()),
        }
    }
}

/// What callers of the engine see of a provider's error.
fn provider_kind(error: &infranetes_sdk::ProviderError) -> FailureKind {
    use infranetes_sdk::ErrorKind;
    match error.kind {
        ErrorKind::Quota | ErrorKind::Capacity => FailureKind::Exhausted,
        ErrorKind::Credentials => FailureKind::Denied,
        ErrorKind::Throttled | ErrorKind::Transient => FailureKind::Unavailable,
        ErrorKind::NotFound => FailureKind::NotFound,
        ErrorKind::Conflict => FailureKind::Conflict,
        ErrorKind::Invalid => FailureKind::Invalid,
        ErrorKind::Unsupported => FailureKind::Unsupported,
        ErrorKind::DeadlineExceeded => FailureKind::TimedOut,
        _ => FailureKind::Internal,
    }
}

fn phase_words(phase: Phase) -> &'static str {
    match phase {
        Phase::Intended => "it was planned",
        Phase::Submitted => "its machine was created",
        Phase::Allocated => "its machine booted",
        Phase::Booted => "its agent enrolled",
        Phase::Bound => "it was set up",
        Phase::Ready => "it ran",
        Phase::Stopping | Phase::Stopped => "it stopped",
        Phase::Removing => "it was removed",
        Phase::Failed => "it had failed already",
    }
}

/// The last lines that fit into so many bytes; of a line that is longer than that, its end.
fn last_lines(text: &str, room: usize) -> &str {
    let text = text.trim_end();
    if text.len() <= room {
        return text;
    }
    let mut start = text.len() - room;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    // A cut at the end of a line is a cut between lines.
    let begins_line = text.as_bytes().get(start - 1) == Some(&b'\n');
    let cut = &text[start..];
    match cut.split_once('\n') {
        Some((_, whole)) if !begins_line => whole,
        _ => cut,
    }
}

/// `kubectl describe` shows 1024 bytes of an event, and the kubelet puts about a hundred of its own first.
pub const REPORT_BYTES: usize = 900;
/// However long the causes are, this much of a console is there for those who see more than an event.
const CONSOLE_BYTES_LEAST: usize = 300;
const CONSOLE_WORDS: &str = "; the console ends with:\n";
/// A chain of causes is cut here, so that a cycle cannot make it endless.
const CAUSES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(cause: &str, console: &str) -> EngineError {
        EngineError::SandboxFailed {
            phase: Phase::Allocated,
            next: "asking again starts over".to_owned(),
            console: console.to_owned(),
            cause: Cause::from_texts(
                FailureKind::TimedOut,
                vec!["it did not run within 120s".to_owned(), cause.to_owned()],
            ),
        }
    }

    #[test]
    fn a_report_says_phase_cause_and_what_happens_next_before_the_console() {
        let head = "the sandbox failed while its machine booted: it did not run within 120s: \
                    quota; asking again starts over";
        assert_eq!(failed("quota", "").report(), head);
        assert_eq!(
            failed("quota", "one\nKernel panic\n\n").report(),
            format!("{head}; the console ends with:\none\nKernel panic")
        );
        assert_eq!(EngineError::Busy("5 boot".into()).report(), "5 boot; try again later");
    }

    #[test]
    fn a_report_keeps_the_end_of_a_long_console_in_whole_lines() {
        let console: String = (0..400).map(|n| format!("[{n:>4}] all is well, ä\n")).collect();
        let report = failed("quota", &format!("{console}Kernel panic\n")).report();
        assert!(report.len() <= REPORT_BYTES && report.len() > REPORT_BYTES - 40, "{report}");
        assert!(report.ends_with("[ 399] all is well, ä\nKernel panic"), "{report}");
        let shown = report.split_once("ends with:\n").map(|(_, lines)| lines);
        assert!(shown.is_some_and(|lines| lines.starts_with('[')), "{report}");
        // Causes are never cut for the console's sake, and some of it is always there.
        let long = failed(&"x".repeat(2000), &"ä".repeat(2000)).report();
        assert!(long.contains(&"x".repeat(2000)) && long.ends_with(&"ä".repeat(150)), "{long}");
        assert!(long.len() < 2600);
    }

    #[test]
    fn lines_are_cut_between_them_where_that_is_possible() {
        for (text, room, expected) in [
            ("ab\ncd", 5, "ab\ncd"),
            ("ab\ncd", 4, "cd"),
            ("ab\ncd", 2, "cd"),
            ("ab\ncd", 1, "d"),
            ("ääää", 3, "ä"),
            ("\n\n", 9, ""),
        ] {
            assert_eq!(last_lines(text, room), expected, "{text:?} {room}");
        }
    }
}
