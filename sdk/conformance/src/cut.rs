//! Calls that are cut off: by a caller that goes away, or by their deadline.

use std::future::Future;
use std::time::Duration;

use infranetes_sdk::{CallContext, ErrorKind, ProviderError};
use tokio::time::timeout;

use crate::check::{Limits, Outcome, context, ensure};

/// How a call is cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// The caller goes away.
    Cancelled,
    /// The deadline passes.
    Late,
}

impl Cut {
    /// Makes a call that is cut off after `patience`. It may have answered before that; past its deadline it says so, and soon.
    pub(crate) async fn off<T, F>(
        self,
        what: &str,
        limits: &Limits,
        patience: Duration,
        call: impl FnOnce(CallContext) -> F,
    ) -> Outcome
    where
        F: Future<Output = Result<T, ProviderError>>,
    {
        match self {
            // The answer, if it came, is thrown away, as a lost one would be.
            Self::Cancelled => drop(timeout(patience, call(context(limits))).await),
            Self::Late => {
                let context = context(limits).with_timeout(patience);
                // A linked provider may leave its deadline to the caller, which then drops the call.
                if let Ok(Err(error)) = timeout(patience + GRACE, call(context)).await {
                    ensure(error.kind == ErrorKind::DeadlineExceeded, || {
                        format!("past the deadline {what} answered {error:?}")
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// How long after a deadline an answer may still come.
const GRACE: Duration = Duration::from_millis(500);
