//! Promises about a cloud that fails: what was refused is told as what it is and made nothing, what was lost is found again.

use std::time::Duration;

use infranetes_sdk::pod::{CreateRequest, DestroyRequest, GetRequest, ListRequest, Machine};
use infranetes_sdk::{ErrorKind, ProviderError, RetryAdvice};

use super::many::one_machine;
use super::stage::Stage;
use crate::check::{Outcome, Stop, ensure, ok};

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

pub(super) async fn create_refused(stage: &Stage) -> Outcome {
    let kinds =
        [ErrorKind::Quota, ErrorKind::Capacity, ErrorKind::Credentials, ErrorKind::Transient];
    let mut injected = false;
    for kind in kinds {
        let request = stage.request().await?;
        if stage.inject(FaultyCall::Create, Fault::Refused(kind)) {
            injected = true;
            let refused = stage.provider.create(stage.ctx(), request.clone()).await;
            check_refusal(stage, &request, kind, refused).await?;
            one_machine(stage, &request).await?;
        }
    }
    match injected {
        true => Ok(()),
        false => Err(Stop::Skipped("the injector makes no refused create".into())),
    }
}

/// A provider may try again by itself what is worth it; it may not make an error into something else, nor leave a machine.
async fn check_refusal(
    stage: &Stage,
    request: &CreateRequest,
    kind: ErrorKind,
    answer: Result<Machine, ProviderError>,
) -> Outcome {
    match answer {
        Ok(machine) => {
            stage.remember(&machine.id);
            ensure(kind.is_retryable(), || format!("create succeeded in spite of {kind}"))
        }
        Err(error) => {
            ensure(error.kind == kind, || format!("create answered {error:?} instead of {kind}"))?;
            ensure(!error.message.is_empty(), || format!("the error of {kind} has no message"))?;
            let retries = error.is_retryable();
            let fits = match kind {
                ErrorKind::Transient => retries,
                ErrorKind::Credentials => !retries,
                // Some clouds know when there will be room.
                _ => true,
            };
            ensure(fits, || format!("{kind} comes with the advice {:?}", error.retry))?;
            stage.wait_for_count(&request.tags, 0..=0).await.map(drop)
        }
    }
}

pub(super) async fn create_throttled(stage: &Stage) -> Outcome {
    let request = stage.request().await?;
    stage.inject_or_skip(FaultyCall::Create, Fault::Throttled(RETRY_AFTER))?;
    match stage.provider.create(stage.ctx(), request.clone()).await {
        Ok(machine) => stage.remember(&machine.id),
        Err(error) => {
            let told = error.kind == ErrorKind::Throttled
                && error.retry == RetryAdvice::After(RETRY_AFTER);
            ensure(told, || format!("create answered {error:?}, not when to come back"))?;
            stage.wait_for_count(&request.tags, 0..=0).await?;
        }
    }
    one_machine(stage, &request).await
}

pub(super) async fn create_lost(stage: &Stage) -> Outcome {
    let request = stage.request().await?;
    stage.inject_or_skip(FaultyCall::Create, Fault::AnswerLost)?;
    match stage.provider.create(stage.ctx(), request.clone()).await {
        Ok(machine) => stage.remember(&machine.id),
        Err(error) => ensure(error.is_retryable(), || {
            format!("create answered {error:?}, which says not to ask again")
        })?,
    }
    one_machine(stage, &request).await
}

pub(super) async fn list_refused(stage: &Stage) -> Outcome {
    let request = stage.request().await?;
    let machine = stage.create(&request).await?;
    stage.wait_for_count(&request.tags, 1..=1).await?;
    stage.inject_or_skip(FaultyCall::List, Fault::Refused(ErrorKind::Transient))?;
    let list = ListRequest { tags: request.tags.clone(), ..ListRequest::default() };
    match stage.provider.list(stage.ctx(), list).await {
        Ok(page) => ensure(page.machines.iter().any(|found| found.id == machine.id), || {
            "a list that failed shows no machine, as if there were none".into()
        })?,
        Err(error) => ensure(error.kind == ErrorKind::Transient, || {
            format!("list answered {error:?} instead of {}", ErrorKind::Transient)
        })?,
    }
    end(stage, &request, &machine).await
}

pub(super) async fn get_refused(stage: &Stage) -> Outcome {
    let request = stage.request().await?;
    let machine = stage.create(&request).await?;
    stage.wait_for_count(&request.tags, 1..=1).await?;
    stage.inject_or_skip(FaultyCall::Get, Fault::Refused(ErrorKind::Transient))?;
    let get = GetRequest { id: machine.id.clone() };
    match stage.provider.get(stage.ctx(), get).await {
        Ok(found) => ensure(found.id == machine.id, || format!("get answered {found:?}"))?,
        Err(error) => ensure(error.kind == ErrorKind::Transient, || {
            format!("get answered {error:?} instead of {}", ErrorKind::Transient)
        })?,
    }
    end(stage, &request, &machine).await
}

pub(super) async fn destroy_refused(stage: &Stage) -> Outcome {
    let mut injected = false;
    for fault in [Fault::Refused(ErrorKind::Transient), Fault::AnswerLost] {
        let request = stage.request().await?;
        let machine = stage.create(&request).await?;
        if stage.inject(FaultyCall::Destroy, fault) {
            injected = true;
            let destroy = DestroyRequest { id: machine.id.clone() };
            if let Err(error) = stage.provider.destroy(stage.ctx(), destroy).await {
                ensure(error.is_retryable(), || {
                    format!("destroy answered {error:?}, which says not to ask again")
                })?;
            }
        }
        end(stage, &request, &machine).await?;
    }
    match injected {
        true => Ok(()),
        false => Err(Stop::Skipped("the injector makes no failed destroy".into())),
    }
}

async fn end(stage: &Stage, request: &CreateRequest, machine: &Machine) -> Outcome {
    let destroy = DestroyRequest { id: machine.id.clone() };
    ok("destroy", stage.provider.destroy(stage.ctx(), destroy).await)?;
    stage.wait_until_gone(&machine.id).await?;
    stage.wait_for_count(&request.tags, 0..=0).await.map(drop)
}

/// What the cloud says when it throttles.
const RETRY_AFTER: Duration = Duration::from_secs(2);
