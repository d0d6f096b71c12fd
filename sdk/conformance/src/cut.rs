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
    pub(crate) const ALL: [Self; 2] = [Self::Cancelled, Self::Late];

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
        match self.answer(limits, patience, call).await {
            // A lie of `describe`, which has checks of its own.
            Some(Err(error)) if error.kind == ErrorKind::Unsupported => Ok(()),
            Some(Err(error)) => ensure(error.kind == ErrorKind::DeadlineExceeded, || {
                format!("past the deadline {what} answered {error:?}")
            }),
            _ => Ok(()),
        }
    }

    /// As [`Self::off`], for a call that may also be refused. What a caller heard that is still there.
    pub(crate) async fn answer<T, F>(
        self,
        limits: &Limits,
        patience: Duration,
        call: impl FnOnce(CallContext) -> F,
    ) -> Option<Result<T, ProviderError>>
    where
        F: Future<Output = Result<T, ProviderError>>,
    {
        match self {
            Self::Cancelled => {
                // The answer, if it came, is thrown away, as a lost one would be.
                drop(timeout(patience, call(context(limits))).await);
                None
            }
            Self::Late => {
                let context = context(limits).with_timeout(patience);
                // A linked provider may leave its deadline to the caller, which then drops the call.
                timeout(patience + GRACE, call(context)).await.ok()
            }
        }
    }
}

/// Makes those calls that a provider is able to, each with a deadline that passes after `$patience`.
macro_rules! late {
    ($stage:expr, $patience:expr; $( $able:expr => $method:ident($request:expr); )*) => { $(
        if $able {
            let call = |context| $stage.provider.$method(context, $request);
            $crate::cut::Cut::Late.off(stringify!($method), $stage.limits(), $patience, call).await?;
        }
    )* };
}
pub(crate) use late;

/// How long after a deadline an answer may still come.
const GRACE: Duration = Duration::from_millis(500);
