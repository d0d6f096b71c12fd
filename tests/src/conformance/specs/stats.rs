//! Figures of containers.

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1 as cri;

use crate::conformance::context::Context;
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Container > runtime should support basic operations on container")
        .spec("runtime should support listing container stats [Conformance]", |c| Box::pin(one(c)))
        .spec("runtime should support listing stats for started containers [Conformance]", |c| {
            Box::pin(by_id(c))
        })
        .spec("runtime should support listing stats for started containers when filter is nil [Conformance]", |c| {
            Box::pin(without_filter(c, 1))
        })
        .spec("runtime should support listing stats for three created containers when filter is nil. [Conformance]", |c| {
            Box::pin(without_filter(c, 3))
        })
        .spec("runtime should support listing stats for containers filtered by labels [Conformance]", |c| {
            Box::pin(by_labels(c))
        })
        .done()
}

async fn one(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let id = c.running(&sandbox).await?;
    let request = cri::ContainerStatsRequest { container_id: id.clone() };
    let answer = c.client.runtime.container_stats(request).await?.into_inner();
    let stats = answer.stats.context("an answer without stats")?;
    let attributes = stats.attributes.clone().unwrap_or_default();
    let name = attributes.metadata.unwrap_or_default().name;
    ensure!(attributes.id == id && name.starts_with("container-"), "of another: {stats:?}");
    let times =
        (stats.cpu.unwrap_or_default().timestamp, stats.memory.unwrap_or_default().timestamp);
    ensure!(times.0 != 0 && times.1 != 0, "without a time: {stats:?}");
    Ok(())
}

async fn by_id(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let id = c.running(&sandbox).await?;
    let filter = cri::ContainerStatsFilter { id: id.clone(), ..Default::default() };
    let listed = list(c, Some(filter)).await?;
    ensure!(listed == [id], "listed {listed:?}");
    Ok(())
}

async fn without_filter(c: &mut Context, count: usize) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(c.running(&sandbox).await?);
    }
    let listed = list(c, None).await?;
    let missing: Vec<_> = ids.iter().filter(|id| !listed.contains(id)).collect();
    ensure!(missing.is_empty(), "{missing:?} are not among {listed:?}");
    Ok(())
}

async fn by_labels(c: &mut Context) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let mut config = c.container_config(&[]);
    config.labels.insert("foo".to_owned(), "bar".to_owned());
    let id = c.running_of(&sandbox, config).await?;
    for (value, there) in [("bar", true), ("baz", false)] {
        let label_selector = [("foo".to_owned(), value.to_owned())].into();
        let filter = cri::ContainerStatsFilter { label_selector, ..Default::default() };
        let listed = list(c, Some(filter)).await?;
        ensure!(listed.contains(&id) == there, "with foo={value}: {listed:?}");
    }
    Ok(())
}

async fn list(c: &mut Context, filter: Option<cri::ContainerStatsFilter>) -> Result<Vec<String>> {
    let request = cri::ListContainerStatsRequest { filter };
    let answer = c.client.runtime.list_container_stats(request).await?.into_inner();
    Ok(answer.stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect())
}
