//! What travels beside every call.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::millis;
use crate::v1;

/// Who asks, for how long, and on whose behalf.
///
/// ```
/// use infranetes_sdk::CallContext;
/// use std::time::Duration;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
/// # runtime.block_on(async {
/// let context = CallContext::new("request-1").with_timeout(Duration::from_secs(5));
/// assert!(context.remaining().unwrap() <= Duration::from_secs(5));
/// # });
/// ```
///
/// Dropping the future of a call cancels it: the provider's code stops at its next await point, so operations of
/// many steps have to be resumable.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CallContext {
    /// Names one wish of the caller; the same id may arrive again after a lost answer.
    pub request_id: String,
    /// When the caller stops waiting. For a stream it bounds the opening, not the life of the stream.
    pub deadline: Option<Instant>,
    /// W3C trace context, or empty.
    pub traceparent: String,
}

impl CallContext {
    /// A call without a deadline.
    pub fn new(request_id: impl Into<String>) -> Self {
        Self { request_id: request_id.into(), ..Self::default() }
    }

    /// Sets the deadline to `timeout` from now.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Some(Instant::now() + timeout);
        self
    }

    /// Sets the deadline.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the W3C trace context.
    #[must_use]
    pub fn with_traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = traceparent.into();
        self
    }

    /// How long the caller still waits; zero when the deadline passed, `None` when there is none.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

impl From<&CallContext> for v1::CallHeader {
    fn from(context: &CallContext) -> Self {
        Self {
            request_id: context.request_id.clone(),
            // 0 means "did not say", so that a passed deadline travels as the shortest one.
            timeout_ms: context.remaining().map_or(0, |left| millis(left).max(1)),
            traceparent: context.traceparent.clone(),
        }
    }
}

impl From<v1::CallHeader> for CallContext {
    fn from(header: v1::CallHeader) -> Self {
        // A timeout too long for the clock is no timeout.
        let deadline = (header.timeout_ms != 0)
            .then(|| Instant::now().checked_add(Duration::from_millis(header.timeout_ms)))
            .flatten();
        Self { request_id: header.request_id, deadline, traceparent: header.traceparent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_travels_as_the_time_that_is_left() {
        let context = CallContext::new("r1").with_timeout(Duration::from_millis(250));
        let back = CallContext::from(v1::CallHeader::from(&context));
        assert_eq!(back.request_id, "r1");
        assert_eq!(back.remaining(), Some(Duration::from_millis(250)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_passed_deadline_is_not_mistaken_for_none() {
        let context = CallContext::new("r1").with_timeout(Duration::ZERO);
        assert_eq!(v1::CallHeader::from(&context).timeout_ms, 1);
        assert_eq!(v1::CallHeader::from(&CallContext::new("r2")).timeout_ms, 0);
    }

    #[tokio::test]
    async fn an_endless_timeout_does_not_overflow() {
        let header = v1::CallHeader { timeout_ms: u64::MAX, ..Default::default() };
        let context = CallContext::from(header);
        assert!(context.remaining().is_none_or(|left| left > Duration::from_secs(1 << 32)));
    }
}
