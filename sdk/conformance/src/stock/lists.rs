//! Promises about lists: by tags, in pages, and empty in the end.

use std::collections::BTreeSet;

use futures::future::join_all;
use infranetes_sdk::ErrorKind;

use super::{Page, Stage, Stock};
use crate::check::{Outcome, Stop, ensure, fails};

pub(crate) async fn unknown_page<K: Stock>(stage: &Stage<K>) -> Outcome {
    let wanted = Page { tags: stage.run_tags(), token: "no-such-page".into(), size: 1 };
    fails("list", ErrorKind::Invalid, K::page(&stage.provider, stage.ctx(), wanted).await)
}

/// The one of the checks of one life is found by its tags.
pub(crate) async fn by_tags<K: Stock>(stage: &Stage<K>) -> Outcome {
    let (mut request, item) = stage.main()?;
    let own = K::tags(&mut request);
    for tags in [&stage.run_tags(), own] {
        let found = stage.wait_for_tagged(tags, 1..=1).await?;
        let (made, found) = (K::id(&item), K::id(&found[0]));
        ensure(made == found, || format!("list by {tags:?} shows {found}"))?;
    }
    for (key, value) in [("conformance-run", "another"), ("no-such-tag", "")] {
        let mut tags = own.clone();
        tags.insert(key.into(), value.into());
        let found = stage.list(&tags, 0).await?;
        ensure(found.is_empty(), || format!("list by {key}={value:?} shows {}", found.len()))?;
    }
    Ok(())
}

/// Spreads `count` over pages of several sizes.
pub(crate) async fn pages<K: Stock>(stage: &Stage<K>, count: usize) -> Outcome {
    // A tag of its own, so that what earlier checks left does not confuse this one.
    let mut tags = stage.run_tags();
    tags.insert("conformance-batch".into(), "pages".into());
    let mut requests = Vec::new();
    for _ in 0..count {
        let mut request = stage.request().await?;
        K::tags(&mut request).extend(tags.clone());
        requests.push(request);
    }
    let made = join_all(requests.iter().map(|request| stage.make(request))).await;
    let made: Vec<K::Item> = made.into_iter().collect::<Outcome<_>>()?;
    let wanted: BTreeSet<&str> = made.iter().map(K::id).collect();
    ensure(wanted.len() == count, || format!("{count} tokens made {} {}s", wanted.len(), K::WORD))?;
    stage.wait_for_tagged(&tags, count..=count).await?;
    for size in [0, 1, 2, 1000] {
        let listed = stage.list(&tags, size).await?;
        let ids: BTreeSet<&str> = listed.iter().map(K::id).collect();
        ensure(ids == wanted && listed.len() == count, || {
            format!("pages of {size} show {} of {count} {}s", listed.len(), K::WORD)
        })?;
    }
    for deleted in join_all(wanted.into_iter().map(|id| stage.delete(id))).await {
        deleted?;
    }
    stage.wait_for_tagged(&tags, 0..=0).await.map(drop)
}

/// Removes what earlier checks left, so that a broken promise costs nothing; but what `list` does not show is broken.
pub(crate) async fn clean<K: Stock>(stage: &Stage<K>) -> Outcome {
    let mut errors = Vec::new();
    let listed = stage.list(&stage.run_tags(), 0).await?;
    let mut ids: BTreeSet<String> = stage.made().into_iter().collect();
    ids.extend(listed.iter().map(|item| K::id(item).to_owned()));
    for id in ids {
        if let Err(Stop::Broken(why)) = stage.delete(&id).await {
            errors.push(format!("{id}: {why}"));
        }
    }
    ensure(errors.is_empty(), || errors.join("; "))?;
    stage.wait_for_tagged(&stage.run_tags(), 0..=0).await?;
    K::swept(stage).await
}
