//! How checks are written and run: a check is an async function over a stage, and ends kept, broken or skipped.

use std::future::Future;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use infranetes_sdk::{CallContext, ErrorKind, ProviderError};
use tokio::time::Instant;

use crate::report::{Line, Report, Verdict};

/// How long things may take before a promise counts as broken.
#[derive(Clone, Debug)]
pub struct Limits {
    /// One call.
    pub call: Duration,
    /// From `create` to a running machine or container.
    pub start: Duration,
    /// From `stop` or `destroy` to its effect, listings included.
    pub settle: Duration,
    /// One check with all that it does.
    pub check: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(30),
            start: Duration::from_secs(60),
            settle: Duration::from_secs(10),
            check: Duration::from_secs(180),
        }
    }
}

/// Why a check ends early.
#[derive(Debug)]
pub(crate) enum Stop {
    Broken(String),
    Skipped(String),
}

/// How a check ends.
pub(crate) type Outcome<T = ()> = Result<T, Stop>;

/// A check of a promise on a stage of type `S`.
pub(crate) struct Check<S: 'static> {
    pub(crate) name: &'static str,
    pub(crate) promise: &'static str,
    pub(crate) run: for<'a> fn(&'a S) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>,
}

/// A table of checks: `"name", "promise" => function;`.
macro_rules! checks {
    ($stage:ty; $( $name:literal, $promise:literal => $run:path; )*) => {
        &[ $( $crate::check::Check::<$stage> {
            name: $name,
            promise: $promise,
            run: |stage| Box::pin($run(stage)),
        } ),* ]
    };
}
pub(crate) use checks;

/// Runs checks one after the other and shows each line to `watch`, which may cut the run short; those of `last` clean up,
/// and run in any case.
pub(crate) async fn run_all<S>(
    stage: &S,
    checks: impl IntoIterator<Item = &Check<S>>,
    last: &[Check<S>],
    limits: &Limits,
    mut watch: impl FnMut(&Line) -> ControlFlow<()>,
) -> Report {
    let mut report = Report::default();
    for check in checks {
        report.lines.push(run_one(stage, check, limits.check).await);
        if report.lines.last().is_some_and(|line| watch(line).is_break()) {
            break;
        }
    }
    for check in last {
        let line = run_one(stage, check, limits.check).await;
        // There is nothing left to cut.
        let _ = watch(&line);
        report.lines.push(line);
    }
    report
}

async fn run_one<S>(stage: &S, check: &Check<S>, limit: Duration) -> Line {
    let started = Instant::now();
    let run = AssertUnwindSafe((check.run)(stage)).catch_unwind();
    let verdict = match tokio::time::timeout(limit, run).await {
        Ok(Ok(Ok(()))) => Verdict::Kept,
        Ok(Ok(Err(Stop::Broken(why)))) => Verdict::Broken(why),
        Ok(Ok(Err(Stop::Skipped(why)))) => Verdict::Skipped(why),
        Ok(Err(_)) => Verdict::Broken("the provider panicked".into()),
        Err(_) => Verdict::Broken(format!("it did not end within {limit:?}")),
    };
    Line { name: check.name, promise: check.promise, verdict, took: started.elapsed() }
}

/// The promise is broken unless `kept`.
pub(crate) fn ensure(kept: bool, seen: impl FnOnce() -> String) -> Outcome {
    if kept { Ok(()) } else { Err(Stop::Broken(seen())) }
}

/// Nothing to look at unless `able`.
pub(crate) fn require(able: bool, why: &str) -> Outcome {
    if able { Ok(()) } else { Err(Stop::Skipped(why.into())) }
}

/// The call has to succeed.
pub(crate) fn ok<T>(what: &str, result: Result<T, ProviderError>) -> Outcome<T> {
    result.map_err(|error| Stop::Broken(format!("{what} answered {error:?}")))
}

/// The call has to fail with `kind`.
pub(crate) fn fails<T>(what: &str, kind: ErrorKind, result: Result<T, ProviderError>) -> Outcome {
    match result {
        Err(error) if error.kind == kind => {
            ensure(!error.message.is_empty(), || format!("the error of {what} has no message"))
        }
        Err(error) => Err(Stop::Broken(format!("{what} answered {error:?} instead of {kind}"))),
        Ok(_) => Err(Stop::Broken(format!("{what} succeeded instead of {kind}"))),
    }
}

/// What the provider can do succeeds or fails, but not as `Unsupported`; what it denies is `Unsupported`.
pub(crate) fn honest<T>(what: &str, able: bool, result: Result<T, ProviderError>) -> Outcome {
    let unsupported = matches!(&result, Err(error) if error.kind == ErrorKind::Unsupported);
    match (able, unsupported) {
        (true, true) => {
            Err(Stop::Broken(format!("describe grants {what}, it answers Unsupported")))
        }
        (false, false) => {
            let seen = result.map_or_else(|error| format!("{error:?}"), |_| "success".into());
            Err(Stop::Broken(format!("describe denies {what}, it answers {seen}")))
        }
        _ => Ok(()),
    }
}

/// Asks again until there is an answer or the time is over.
pub(crate) async fn eventually<T, F>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> F,
) -> Outcome<T>
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match attempt().await {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() >= deadline => {
                return Err(Stop::Broken(format!("{what}: not within {limit:?}; {seen}")));
            }
            Err(_) => tokio::time::sleep(POLL_PAUSE).await,
        }
    }
}

/// A context for one call.
pub(crate) fn context(limits: &Limits) -> CallContext {
    static CALLS: AtomicU64 = AtomicU64::new(1);
    let number = CALLS.fetch_add(1, Ordering::Relaxed);
    CallContext::new(format!("conformance-{number}")).with_timeout(limits.call)
}

const POLL_PAUSE: Duration = Duration::from_millis(50);

/// How many callers ask for the same thing at once.
pub(crate) const CALLERS: usize = 8;
