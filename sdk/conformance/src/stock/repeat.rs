//! Promises about the same call again: one after the other, at the same time, and after one that was cut off.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;

use super::{Stage, Stock};
use crate::check::{CALLERS, Outcome, ensure};
use crate::cut::Cut;

pub(crate) async fn same_token<K: Stock>(stage: &Stage<K>) -> Outcome {
    let (request, item) = stage.main()?;
    let again = stage.create(&request).await?;
    let (one, other) = (K::id(&item), K::id(&again));
    ensure(one == other, || format!("{one} and {other} were made"))?;
    stage.wait_for_count(&request, 1..=1).await.map(drop)
}

pub(crate) async fn concurrent_token<K: Stock>(stage: &Stage<K>) -> Outcome {
    let request = stage.request().await?;
    let made = join_all((0..CALLERS).map(|_| stage.create(&request))).await;
    let made: Vec<K::Item> = made.into_iter().collect::<Outcome<_>>()?;
    let ids: BTreeSet<&str> = made.iter().map(K::id).collect();
    ensure(ids.len() == 1, || format!("{} {}s were made: {ids:?}", ids.len(), K::WORD))?;
    exactly_one(stage, &request).await
}

pub(crate) async fn cancelled_create<K: Stock>(stage: &Stage<K>) -> Outcome {
    cut_create(stage, Cut::Cancelled, &[0, 1, 5, 20, 100]).await
}

pub(crate) async fn late_create<K: Stock>(stage: &Stage<K>) -> Outcome {
    cut_create(stage, Cut::Late, &[0, 2, 10]).await
}

async fn cut_create<K: Stock>(stage: &Stage<K>, cut: Cut, patience_ms: &[u64]) -> Outcome {
    for patience in patience_ms {
        let request = stage.request().await?;
        let create = |context| K::create(&stage.provider, context, request.clone());
        cut.off("create", stage.limits(), Duration::from_millis(*patience), create).await?;
        exactly_one(stage, &request).await?;
    }
    Ok(())
}

pub(crate) async fn cancelled_delete<K: Stock>(stage: &Stage<K>) -> Outcome {
    cut_delete(stage, Cut::Cancelled).await
}

pub(crate) async fn late_delete<K: Stock>(stage: &Stage<K>) -> Outcome {
    cut_delete(stage, Cut::Late).await
}

async fn cut_delete<K: Stock>(stage: &Stage<K>, cut: Cut) -> Outcome {
    for patience in [0, 5, 50] {
        let request = stage.request().await?;
        let item = stage.create(&request).await?;
        let delete = |context| K::delete(&stage.provider, context, K::id(&item).to_owned());
        let patience = Duration::from_millis(patience);
        cut.off(K::DELETE, stage.limits(), patience, delete).await?;
        stage.end(&request, &item).await?;
    }
    Ok(())
}

pub(crate) async fn concurrent_delete<K: Stock>(stage: &Stage<K>) -> Outcome {
    let item = stage.make(&stage.request().await?).await?;
    for deleted in join_all((0..CALLERS).map(|_| stage.delete(K::id(&item)))).await {
        deleted?;
    }
    stage.wait_until_gone(K::id(&item)).await
}

/// After whatever happened to earlier calls with this token: at most one is listed, asking once more gives exactly one, and
/// deleting that one leaves none.
pub(crate) async fn exactly_one<K: Stock>(stage: &Stage<K>, request: &K::Request) -> Outcome {
    stage.wait_for_count(request, 0..=1).await?;
    let item = stage.make(request).await?;
    let listed = stage.wait_for_count(request, 1..=1).await?;
    let (made, found) = (K::id(&item), K::id(&listed[0]));
    ensure(made == found, || format!("{made} was made, {found} is listed"))?;
    stage.end(request, &item).await
}
