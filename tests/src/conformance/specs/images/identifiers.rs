//! One image has one identifier, whoever is asked.

use anyhow::{Context as _, Result, ensure};

use super::tagged;
use crate::conformance::context::{Context, image_spec};
use crate::conformance::images::PAUSE;
use crate::conformance::spec::{Group, Lane, Skip, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Image Identifier Consistency")
        .lane(Lane::Images)
        .spec("should return the same image identifier across all APIs [Conformance]", |c| {
            Box::pin(of_one_name(c))
        })
        .spec("should return the same image identifier when pulled from different registries [Conformance]", |c| {
            Box::pin(of_two_registries(c))
        })
        .done()
}

async fn of_one_name(c: &mut Context) -> Result<()> {
    let pulled = c.pull(&tagged()).await?;
    let image = c.image(&tagged()).await?.context("it is not there after its pull")?;
    ensure!(!pulled.is_empty() && image.id == pulled, "PullImage {pulled}, Image {}", image.id);
    told_by_container(c, &pulled, &tagged()).await
}

async fn of_two_registries(c: &mut Context) -> Result<()> {
    let first = c.pull(PAUSE[0]).await?;
    let second = c.pull(PAUSE[1]).await?;
    ensure!(first == second, "{first} from one registry, {second} from the other");
    for name in PAUSE {
        let id = c.image(name).await?.with_context(|| format!("no {name}"))?.id;
        ensure!(id == first, "{name} has the id {id}");
    }
    told_by_container(c, &second, PAUSE[1]).await
}

/// Status and list of a container tell the identifier that PullImage answered.
async fn told_by_container(c: &mut Context, pulled: &str, name: &str) -> Result<()> {
    let sandbox = c.sandbox().await?;
    let mut config = c.container_config(&[]);
    config.command.clear();
    let mut spec = image_spec(pulled);
    spec.user_specified_image = name.to_owned();
    config.image = Some(spec);
    let id = c.create(&sandbox, config).await?;
    c.start(&id).await?;
    let listed = c.listed(&id).await?;
    ensure!(listed.len() == 1, "listed {listed:?}");
    for (place, told) in [
        ("ContainerStatus", c.status(&id).await?.image_id),
        ("ListContainers", listed[0].image_id.clone()),
    ] {
        if told.is_empty() {
            return Err(Skip(format!("{place} tells no image_id")).into());
        }
        ensure!(told == pulled, "{place} tells {told}, PullImage {pulled}");
    }
    c.remove(&id).await
}
