//! Promises about several calls at once, calls that are cut off, and what is left in the end.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use infranetes_sdk::ErrorKind;
use infranetes_sdk::volume::CreateVolumeRequest;
use tokio::time::timeout;

use super::stage::Stage;
use crate::check::{CALLERS, DEADLINE_GRACE, Outcome, Stop, ensure};

pub(super) async fn concurrent_token(stage: &Stage) -> Outcome {
    let request = stage.request();
    let made = join_all((0..CALLERS).map(|_| stage.create(&request))).await;
    let ids: BTreeSet<String> =
        made.into_iter().map(|made| made.map(|volume| volume.id)).collect::<Outcome<_>>()?;
    ensure(ids.len() == 1, || format!("{} volumes were made: {ids:?}", ids.len()))?;
    one_volume(stage, &request).await
}

pub(super) async fn cancelled_create(stage: &Stage) -> Outcome {
    for patience in [0, 1, 5, 20, 100] {
        let request = stage.request();
        let create = stage.provider.create(stage.ctx(), request.clone());
        // The answer, if it came, is thrown away, as a lost one would be.
        let _ = timeout(Duration::from_millis(patience), create).await;
        one_volume(stage, &request).await?;
    }
    Ok(())
}

pub(super) async fn late_create(stage: &Stage) -> Outcome {
    for patience in [0, 2, 10] {
        let request = stage.request();
        let patience = Duration::from_millis(patience);
        let context = stage.ctx().with_timeout(patience);
        let create = stage.provider.create(context, request.clone());
        // A linked provider may leave its deadline to the caller, which then drops the call.
        if let Ok(Err(error)) = timeout(patience + DEADLINE_GRACE, create).await {
            ensure(error.kind == ErrorKind::DeadlineExceeded, || {
                format!("past the deadline create answered {error:?}")
            })?;
        }
        one_volume(stage, &request).await?;
    }
    Ok(())
}

/// After whatever happened to earlier calls with this token: at most one volume is listed, asking once more gives exactly one,
/// and deleting that one leaves none.
async fn one_volume(stage: &Stage, request: &CreateVolumeRequest) -> Outcome {
    stage.wait_for_count(&request.tags, 0..=1).await?;
    let volume = stage.available(request).await?;
    let listed = stage.wait_for_count(&request.tags, 1..=1).await?;
    ensure(listed[0].id == volume.id, || {
        format!("{} was made, {} is listed", volume.id, listed[0].id)
    })?;
    stage.delete(&volume.id).await?;
    stage.wait_until_gone(&volume.id).await?;
    stage.wait_for_count(&request.tags, 0..=0).await.map(drop)
}

pub(super) async fn pages(stage: &Stage) -> Outcome {
    // A tag of its own, so that what earlier checks left does not confuse this one.
    let mut tags = stage.run_tags();
    tags.insert("conformance-batch".into(), "pages".into());
    let mut wanted = BTreeSet::new();
    for _ in 0..PAGED {
        let mut request = stage.request();
        request.tags.extend(tags.clone());
        wanted.insert(stage.available(&request).await?.id);
    }
    ensure(wanted.len() == PAGED, || format!("{PAGED} tokens made {} volumes", wanted.len()))?;
    stage.wait_for_count(&tags, PAGED..=PAGED).await?;
    for page_size in [0, 1, 2, 1000] {
        let listed = stage.list(&tags, page_size).await?;
        let ids: BTreeSet<String> = listed.iter().map(|volume| volume.id.clone()).collect();
        ensure(ids == wanted && listed.len() == PAGED, || {
            format!("pages of {page_size} show {} of {PAGED} volumes", listed.len())
        })?;
    }
    for id in wanted {
        stage.delete(&id).await?;
    }
    stage.wait_for_count(&tags, 0..=0).await.map(drop)
}

pub(super) async fn concurrent_delete(stage: &Stage) -> Outcome {
    let volume = stage.available(&stage.request()).await?;
    for deleted in join_all((0..CALLERS).map(|_| stage.delete(&volume.id))).await {
        deleted?;
    }
    stage.wait_until_gone(&volume.id).await
}

/// Removes what earlier checks left, so that a broken promise costs nothing; what `list` then still shows is broken.
pub(super) async fn clean(stage: &Stage) -> Outcome {
    let mut ids: BTreeSet<String> = stage.made().into_iter().collect();
    ids.extend(stage.list(&stage.run_tags(), 0).await?.into_iter().map(|volume| volume.id));
    let mut errors = Vec::new();
    for id in ids {
        if let Err(Stop::Broken(why)) = stage.delete(&id).await {
            errors.push(format!("{id}: {why}"));
        }
    }
    ensure(errors.is_empty(), || errors.join("; "))?;
    stage.wait_for_count(&stage.run_tags(), 0..=0).await.map(drop)
}

/// How many volumes are spread over pages.
const PAGED: usize = 3;
