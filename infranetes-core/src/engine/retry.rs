//! Pauses between tries, and what an error of a provider means for the next one.

use std::time::Duration;

use infranetes_sdk::{ErrorKind, ProviderError, RetryAdvice};

use crate::engine::timeouts::PAUSE_MAX;

/// Growing pauses.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    next: Duration,
    /// Spreads many sandboxes that fail at the same moment; in 256ths.
    spread: u8,
}

impl Backoff {
    pub(crate) fn new(first: Duration, spread: u8) -> Self {
        Self { first, next: first, spread }
    }

    /// The next pause: twice the one before, up to a bound; advice of the provider goes before it.
    pub(crate) fn pause(&mut self, advice: RetryAdvice) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(PAUSE_MAX);
        match advice {
            RetryAdvice::After(wanted) => wanted.min(PAUSE_MAX),
            _ => pause + pause.mul_f64(f64::from(self.spread) / 1024.0),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// What a failed create call means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ask again with the same token.
    Again,
    /// No room for this type: the next candidate.
    NextCandidate,
    /// What exists contradicts: look what it is.
    Look,
    /// It fails, and asking again changes nothing.
    Fail,
}

/// Reads an error of `create`.
pub(crate) fn verdict(error: &ProviderError) -> Verdict {
    match (error.kind, error.retry) {
        (ErrorKind::Conflict, _) => Verdict::Look,
        (ErrorKind::Capacity, _) => Verdict::NextCandidate,
        (
            ErrorKind::Quota
            | ErrorKind::Invalid
            | ErrorKind::Credentials
            | ErrorKind::Unsupported
            | ErrorKind::NotFound,
            _,
        ) => Verdict::Fail,
        (_, RetryAdvice::Never) => Verdict::Fail,
        _ => Verdict::Again,
    }
}

/// Whether a failed create call may have made a machine all the same.
pub(crate) fn is_uncertain(error: &ProviderError) -> bool {
    // Transient, internal, timed out, or a kind of a later version: the answer may be what failed.
    !matches!(
        error.kind,
        ErrorKind::Quota
            | ErrorKind::Capacity
            | ErrorKind::Invalid
            | ErrorKind::Credentials
            | ErrorKind::Unsupported
            | ErrorKind::NotFound
            | ErrorKind::Throttled
    )
}

/// Whether asking for a machine's state again may help.
pub(crate) fn may_pass(error: &ProviderError) -> bool {
    !matches!(
        error.kind,
        ErrorKind::Credentials | ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::Quota
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_refusal_has_its_verdict() {
        let cases = [
            (ErrorKind::Quota, Verdict::Fail, false),
            (ErrorKind::Capacity, Verdict::NextCandidate, false),
            (ErrorKind::Credentials, Verdict::Fail, false),
            (ErrorKind::Throttled, Verdict::Again, false),
            (ErrorKind::NotFound, Verdict::Fail, false),
            (ErrorKind::Conflict, Verdict::Look, true),
            (ErrorKind::Invalid, Verdict::Fail, false),
            (ErrorKind::Unsupported, Verdict::Fail, false),
            (ErrorKind::Transient, Verdict::Again, true),
            (ErrorKind::Internal, Verdict::Again, true),
            (ErrorKind::DeadlineExceeded, Verdict::Again, true),
        ];
        assert_eq!(cases.len(), ErrorKind::ALL.len());
        for (kind, wanted, uncertain) in cases {
            let error = ProviderError::new(kind, "x");
            assert_eq!((verdict(&error), is_uncertain(&error)), (wanted, uncertain), "{kind:?}");
        }
    }

    #[test]
    fn pauses_grow_to_a_bound_and_advice_goes_before_them() {
        let mut backoff = Backoff::new(Duration::from_secs(1), 255);
        let pauses: Vec<_> = (0..10).map(|_| backoff.pause(RetryAdvice::ByKind)).collect();
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX.mul_f64(1.25)), "{pauses:?}");
        assert_eq!(
            backoff.pause(RetryAdvice::After(Duration::from_secs(7))),
            Duration::from_secs(7)
        );
        backoff.reset();
        assert!(backoff.pause(RetryAdvice::ByKind) < Duration::from_secs(2));
    }
}
