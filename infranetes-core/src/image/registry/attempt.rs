//! What is worth another try, and when the tries end.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use super::super::config::Limits;
use super::super::pull_error::PullFailure;

/// Why one attempt failed.
#[derive(Debug)]
pub(in super::super) enum Attempt {
    /// Asking this endpoint again would change nothing.
    Final(PullFailure),
    /// Asking again may help.
    Again(Transient),
}

/// What may be gone a moment later.
#[derive(Debug)]
pub(in super::super) enum Transient {
    Unreachable(Arc<dyn Error + Send + Sync>),
    Stalled,
    CutOff { have: u64, size: u64 },
    Throttled { retry_after: Option<Duration> },
    Fault { status: u16, retry_after: Option<Duration> },
}

/// Counts the attempts at one thing from one endpoint, and waits between them.
pub(in super::super) struct Attempts<'a> {
    registry: &'a str,
    limits: &'a Limits,
    allowed: u32,
    made: u32,
}

impl<'a> Attempts<'a> {
    pub(in super::super) fn new(
        registry: &'a str,
        allowed: u32,
        limits: &'a Limits,
    ) -> Attempts<'a> {
        Attempts { registry, limits, allowed: allowed.max(1), made: 0 }
    }

    /// Starts to count anew: the last attempt got further than the one before it.
    pub(in super::super) fn progressed(&mut self) {
        self.made = 0;
    }

    /// Waits until the next attempt may be made, or says with what the pull fails if there is none.
    pub(in super::super) async fn failed(&mut self, why: Transient) -> Result<(), PullFailure> {
        self.made += 1;
        let backoff = self.backoff();
        let wait = why.retry_after().map_or(backoff, |asked| asked.max(backoff));
        // Whoever wants to be left alone for long is left alone: the kubelet comes again.
        if self.made >= self.allowed || wait > self.limits.max_backoff {
            return Err(self.gave_up(why));
        }
        tracing::debug!(registry = self.registry, attempt = self.made, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn backoff(&self) -> Duration {
        let doubled = 1_u32.checked_shl(self.made - 1).unwrap_or(u32::MAX);
        self.limits.first_backoff.saturating_mul(doubled).min(self.limits.max_backoff)
    }

    fn gave_up(&self, why: Transient) -> PullFailure {
        let (registry, attempts) = (self.registry.to_owned(), self.made);
        match why {
            Transient::Unreachable(source) => {
                PullFailure::Unreachable { registry, attempts, source }
            }
            Transient::Stalled => {
                PullFailure::Stalled { registry, attempts, idle: self.limits.idle }
            }
            Transient::CutOff { have, size } => {
                PullFailure::CutOff { registry, attempts, have, size }
            }
            Transient::Throttled { retry_after } => {
                PullFailure::Throttled { registry, retry_after }
            }
            Transient::Fault { status, .. } => {
                PullFailure::RegistryFault { registry, attempts, status }
            }
        }
    }
}

impl Transient {
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Transient::Throttled { retry_after } | Transient::Fault { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }
}

impl From<PullFailure> for Attempt {
    fn from(failure: PullFailure) -> Attempt {
        Attempt::Final(failure)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// The waits between the attempts that end with the failure.
    async fn waits(allowed: u32, retry_after: Option<u64>) -> (Vec<u64>, PullFailure) {
        let limits = Limits::default();
        let mut attempts = Attempts::new("r.example", allowed, &limits);
        let mut waits = Vec::new();
        loop {
            let start = Instant::now();
            let retry_after = retry_after.map(Duration::from_secs);
            match attempts.failed(Transient::Throttled { retry_after }).await {
                Ok(()) => waits.push(start.elapsed().as_millis() as u64),
                Err(failure) => return (waits, failure),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_double_follow_the_registry_and_end() {
        assert_eq!(waits(4, None).await.0, [500, 1000, 2000]);
        assert_eq!(waits(9, None).await.0[5..], [16_000, 30_000, 30_000]);
        assert_eq!(waits(3, Some(7)).await.0, [7000, 7000]);
        let (none, failure) = waits(5, Some(31)).await;
        assert!(none.is_empty(), "longer than anybody waits here");
        assert!(failure.to_string().contains("left alone for 31 s"), "{failure}");
        assert_eq!(waits(0, None).await.0, [0; 0]);
    }
}
