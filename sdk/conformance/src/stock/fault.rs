//! Promises about a cloud that fails: what was refused is told as what it is and did nothing, what was lost is found again.

use std::time::Duration;

use infranetes_sdk::{ErrorKind, Result, RetryAdvice};

use super::repeat::exactly_one;
use super::{Page, Stage, Stock};
use crate::check::{Outcome, Stop, ensure};

/// Makes the cloud behind a provider fail, where that can be done: in a simulator, or by a proxy in front of an API.
pub trait FaultInjector: Send + Sync {
    /// Makes the next call that the provider makes of its cloud for `call` go wrong, once. `false` if that cannot be done: then
    /// nothing is expected of the provider.
    fn inject(&self, call: FaultyCall, fault: Fault) -> bool;
}

/// What a provider asks of its cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultyCall {
    /// To make a machine.
    Create,
    /// For one machine.
    Get,
    /// For all machines.
    List,
    /// To destroy a machine.
    Destroy,
    /// To attach a volume to a machine.
    Attach,
    /// To detach a volume from a machine.
    Detach,
    /// To make a volume.
    CreateVolume,
    /// For one volume.
    GetVolume,
    /// For all volumes.
    ListVolumes,
    /// To delete a volume.
    DeleteVolume,
}

/// How it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The cloud refuses for such a reason, and does nothing.
    Refused(ErrorKind),
    /// The cloud wants to be asked again after so long, and does nothing.
    Throttled(Duration),
    /// The cloud does it, and the answer is lost.
    AnswerLost,
}

pub(crate) async fn create_refused<K: Stock>(stage: &Stage<K>) -> Outcome {
    let [create, ..] = K::CALLS;
    let mut injected = false;
    for kind in REFUSALS {
        let request = stage.request().await?;
        if stage.inject(create, Fault::Refused(kind)) {
            injected = true;
            if is_refused("create", kind, &stage.try_create(&request).await)? {
                stage.wait_for_count(&request, 0..=0).await?;
            }
            exactly_one(stage, &request).await?;
        }
    }
    some(injected, "refused create")
}

/// Whether the cloud's refusal came through, as what it is. A provider may try again by itself what is worth it; it may not make an
/// error into something else.
pub(crate) fn is_refused<T>(what: &str, kind: ErrorKind, answer: &Result<T>) -> Outcome<bool> {
    let error = match answer {
        Ok(_) => {
            ensure(kind.is_retryable(), || format!("{what} succeeded in spite of {kind}"))?;
            return Ok(false);
        }
        Err(error) => error,
    };
    ensure(error.kind == kind, || format!("{what} answered {error:?} instead of {kind}"))?;
    ensure(!error.message.is_empty(), || format!("the error of {kind} has no message"))?;
    let retries = error.is_retryable();
    let fits = match kind {
        ErrorKind::Transient => retries,
        ErrorKind::Credentials => !retries,
        // Some clouds know when there will be room.
        _ => true,
    };
    ensure(fits, || format!("{kind} comes with the advice {:?}", error.retry))?;
    Ok(true)
}

pub(crate) async fn create_throttled<K: Stock>(stage: &Stage<K>) -> Outcome {
    let [create, ..] = K::CALLS;
    let request = stage.request().await?;
    stage.inject_or_skip(create, Fault::Throttled(RETRY_AFTER))?;
    if let Err(error) = stage.try_create(&request).await {
        let told =
            error.kind == ErrorKind::Throttled && error.retry == RetryAdvice::After(RETRY_AFTER);
        ensure(told, || format!("create answered {error:?}, not when to come back"))?;
        stage.wait_for_count(&request, 0..=0).await?;
    }
    exactly_one(stage, &request).await
}

pub(crate) async fn create_lost<K: Stock>(stage: &Stage<K>) -> Outcome {
    let [create, ..] = K::CALLS;
    let request = stage.request().await?;
    stage.inject_or_skip(create, Fault::AnswerLost)?;
    may_be_repeated("create", &stage.try_create(&request).await)?;
    exactly_one(stage, &request).await
}

pub(crate) async fn get_refused<K: Stock>(stage: &Stage<K>) -> Outcome {
    let [_, get, ..] = K::CALLS;
    let (request, item) = listed(stage).await?;
    stage.inject_or_skip(get, Fault::Refused(ErrorKind::Transient))?;
    let answer = stage.try_get(K::id(&item)).await;
    is_told("get", &answer, |found| K::id(found) == K::id(&item))?;
    stage.end(&request, &item).await
}

pub(crate) async fn list_refused<K: Stock>(stage: &Stage<K>) -> Outcome {
    let [_, _, list, _] = K::CALLS;
    let (mut request, item) = listed(stage).await?;
    stage.inject_or_skip(list, Fault::Refused(ErrorKind::Transient))?;
    let wanted = Page { tags: K::tags(&mut request).clone(), ..Page::default() };
    let answer = K::page(&stage.provider, stage.ctx(), wanted).await;
    is_told("list", &answer, |(page, _)| page.iter().any(|found| K::id(found) == K::id(&item)))?;
    stage.end(&request, &item).await
}

pub(crate) async fn delete_refused<K: Stock>(stage: &Stage<K>) -> Outcome {
    let [.., delete] = K::CALLS;
    let mut injected = false;
    for fault in [Fault::Refused(ErrorKind::Transient), Fault::AnswerLost] {
        let (request, item) = listed(stage).await?;
        if stage.inject(delete, fault) {
            injected = true;
            let id = K::id(&item).to_owned();
            may_be_repeated(K::DELETE, &K::delete(&stage.provider, stage.ctx(), id).await)?;
        }
        stage.end(&request, &item).await?;
    }
    some(injected, &format!("failed {}", K::DELETE))
}

/// Success, or an error that says to ask again.
pub(crate) fn may_be_repeated<T>(what: &str, answer: &Result<T>) -> Outcome {
    match answer {
        Ok(_) => Ok(()),
        Err(error) => ensure(error.is_retryable(), || {
            format!("{what} answered {error:?}, which says not to ask again")
        }),
    }
}

/// Nothing was looked at unless a fault was `injected`.
pub(crate) fn some(injected: bool, what: &str) -> Outcome {
    match injected {
        true => Ok(()),
        false => Err(Stop::Skipped(format!("the injector makes no {what}"))),
    }
}

/// The truth, or that it cannot be known now; but no falsehood.
fn is_told<T: std::fmt::Debug>(
    what: &str,
    answer: &Result<T>,
    is_true: impl FnOnce(&T) -> bool,
) -> Outcome {
    let kind = ErrorKind::Transient;
    match answer {
        Ok(found) => ensure(is_true(found), || {
            format!("{what} failed, and answered {found:?} as if it had not")
        }),
        Err(error) => {
            ensure(error.kind == kind, || format!("{what} answered {error:?} instead of {kind}"))
        }
    }
}

/// One that is there and listed.
async fn listed<K: Stock>(stage: &Stage<K>) -> Outcome<(K::Request, K::Item)> {
    let request = stage.request().await?;
    let item = stage.make(&request).await?;
    stage.wait_for_count(&request, 1..=1).await?;
    Ok((request, item))
}

/// Why clouds refuse.
pub(crate) const REFUSALS: [ErrorKind; 4] =
    [ErrorKind::Quota, ErrorKind::Capacity, ErrorKind::Credentials, ErrorKind::Transient];
/// What the cloud says when it throttles.
const RETRY_AFTER: Duration = Duration::from_secs(2);
