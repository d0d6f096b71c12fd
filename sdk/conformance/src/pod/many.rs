//! Promises about several calls at once, calls that are cut off, and what is left in the end.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use infranetes_sdk::ErrorKind;
use infranetes_sdk::pod::{CreateRequest, DestroyRequest};
use tokio::time::timeout;

use super::stage::Stage;
use crate::check::{CALLERS, DEADLINE_GRACE, Outcome, Stop, ensure, ok, require};

pub(super) async fn destroy_at_once(stage: &Stage) -> Outcome {
    let machine = stage.create(&stage.request().await?).await?;
    stage.destroy(&machine.id).await?;
    stage.wait_until_gone(&machine.id).await
}

pub(super) async fn concurrent_token(stage: &Stage) -> Outcome {
    let request = stage.request().await?;
    let made = join_all((0..CALLERS).map(|_| stage.create(&request))).await;
    let ids: BTreeSet<String> =
        made.into_iter().map(|made| made.map(|machine| machine.id)).collect::<Outcome<_>>()?;
    ensure(ids.len() == 1, || format!("{} machines were made: {ids:?}", ids.len()))?;
    one_machine(stage, &request).await
}

pub(super) async fn cancelled_create(stage: &Stage) -> Outcome {
    for patience in [0, 1, 5, 20, 100] {
        let request = stage.request().await?;
        let create = stage.provider.create(stage.ctx(), request.clone());
        // The answer, if it came, is thrown away, as a lost one would be.
        let _ = timeout(Duration::from_millis(patience), create).await;
        one_machine(stage, &request).await?;
    }
    Ok(())
}

pub(super) async fn late_create(stage: &Stage) -> Outcome {
    for patience in [0, 2, 10] {
        let request = stage.request().await?;
        let patience = Duration::from_millis(patience);
        let context = stage.ctx().with_timeout(patience);
        let create = stage.provider.create(context, request.clone());
        // A linked provider may leave its deadline to the caller, which then drops the call.
        if let Ok(Err(error)) = timeout(patience + DEADLINE_GRACE, create).await {
            ensure(error.kind == ErrorKind::DeadlineExceeded, || {
                format!("past the deadline create answered {error:?}")
            })?;
        }
        one_machine(stage, &request).await?;
    }
    Ok(())
}

pub(super) async fn cancelled_destroy(stage: &Stage) -> Outcome {
    for patience in [0, 5, 50] {
        let request = stage.request().await?;
        let machine = stage.create(&request).await?;
        let destroy = DestroyRequest { id: machine.id.clone() };
        let destroy = stage.provider.destroy(stage.ctx(), destroy);
        // The answer, if it came, is thrown away, as a lost one would be.
        let _ = timeout(Duration::from_millis(patience), destroy).await;
        stage.destroy(&machine.id).await?;
        stage.wait_until_gone(&machine.id).await?;
        stage.wait_for_count(&request.tags, 0..=0).await?;
    }
    Ok(())
}

/// After whatever happened to earlier calls with this token: at most one machine is listed, asking once more gives
/// exactly one, and destroying that one leaves none.
pub(super) async fn one_machine(stage: &Stage, request: &CreateRequest) -> Outcome {
    stage.wait_for_count(&request.tags, 0..=1).await?;
    let machine = stage.create(request).await?;
    let listed = stage.wait_for_count(&request.tags, 1..=1).await?;
    ensure(listed[0].id == machine.id, || {
        format!("{} was made, {} is listed", machine.id, listed[0].id)
    })?;
    stage.destroy(&machine.id).await?;
    stage.wait_until_gone(&machine.id).await?;
    stage.wait_for_count(&request.tags, 0..=0).await.map(drop)
}

pub(super) async fn pages(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.tags, "describe denies tags")?;
    let count = stage.subject.machines_max.max(2);
    let mut requests = Vec::new();
    // A tag of its own, so that what earlier checks left does not confuse this one.
    let mut tags = stage.run_tags();
    tags.insert("conformance-batch".into(), "pages".into());
    for _ in 0..count {
        let mut request = stage.request().await?;
        request.tags.extend(tags.clone());
        requests.push(request);
    }
    let made = join_all(requests.iter().map(|request| stage.create(request))).await;
    let made: Vec<String> =
        made.into_iter().map(|made| made.map(|machine| machine.id)).collect::<Outcome<_>>()?;
    let wanted: BTreeSet<&String> = made.iter().collect();
    ensure(wanted.len() == count, || format!("{count} tokens made {} machines", wanted.len()))?;
    stage.wait_for_count(&tags, count..=count).await?;
    for page_size in [0, 1, 2, 1000] {
        let listed = stage.list(&tags, page_size).await?;
        let ids: BTreeSet<&String> = listed.iter().map(|machine| &machine.id).collect();
        ensure(ids == wanted && listed.len() == count, || {
            format!("pages of {page_size} show {} of {count} machines", listed.len())
        })?;
    }
    for destroyed in join_all(made.iter().map(|id| stage.destroy(id))).await {
        destroyed?;
    }
    stage.wait_for_count(&tags, 0..=0).await.map(drop)
}

pub(super) async fn concurrent_destroy(stage: &Stage) -> Outcome {
    let machine = stage.create(&stage.request().await?).await?;
    for destroyed in join_all((0..CALLERS).map(|_| stage.destroy(&machine.id))).await {
        destroyed?;
    }
    stage.wait_until_gone(&machine.id).await
}

/// Removes what earlier checks left, so that a broken promise costs nothing; but what `list` does not show is broken.
pub(super) async fn clean(stage: &Stage) -> Outcome {
    let mut errors = Vec::new();
    let listed = stage.list(&stage.run_tags(), 0).await?;
    let mut ids: BTreeSet<String> = stage.made().into_iter().collect();
    ids.extend(listed.into_iter().map(|machine| machine.id));
    for id in ids {
        let request = DestroyRequest { id: id.clone() };
        let destroyed = stage.provider.destroy(stage.ctx(), request).await;
        if let Err(Stop::Broken(why)) = ok(&format!("destroying {id}"), destroyed) {
            errors.push(why);
        }
    }
    ensure(errors.is_empty(), || errors.join("; "))?;
    stage.wait_for_count(&stage.run_tags(), 0..=0).await?;
    stage.wait_until_swept().await
}
