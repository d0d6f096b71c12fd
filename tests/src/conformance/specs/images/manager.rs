//! Pulling images by every kind of name, and what is said of them.

use std::error::Error as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use infranetes_cri::api::v1 as cri;
use tonic::{Code, Request};

use super::{pulled_anew, tagged};
use crate::conformance::context::{Context, image_spec};
use crate::conformance::images::staged;
use crate::conformance::spec::{Group, Lane, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Image Manager")
        .lane(Lane::Images)
        .spec("public image with tag should be pulled and removed [Conformance]", |c| {
            Box::pin(with_tag(c))
        })
        .spec("public image should timeout if requested [Conformance]", |c| Box::pin(timeout(c)))
        .spec("public image without tag should be pulled and removed [Conformance]", |c| {
            Box::pin(without_tag(c))
        })
        .spec("public image with digest should be pulled and removed [Conformance]", |c| {
            Box::pin(with_digest(c))
        })
        .spec("image status should support all kinds of references [Conformance]", |c| {
            Box::pin(references(c))
        })
        .spec(
            "image status get image fields should not have Uid/Username empty [Conformance]",
            |c| Box::pin(users(c)),
        )
        .spec("listImage should get exactly 3 image in the result list [Conformance]", |c| {
            Box::pin(three_images(c))
        })
        .spec("listImage should get exactly 3 repoTags in the result image [Conformance]", |c| {
            Box::pin(three_tags(c))
        })
        .done()
}

async fn with_tag(c: &mut Context) -> Result<()> {
    let image = pulled_anew(c, &tagged()).await?;
    ensure!(image.repo_tags == [tagged()], "tags: {:?}", image.repo_tags);
    ensure!(!image.id.is_empty() && image.size > 0, "without id or size: {image:?}");
    gone_after_removal(c, &tagged()).await
}

async fn timeout(c: &mut Context) -> Result<()> {
    c.remove_image(&tagged()).await?;
    let image = Some(image_spec(&tagged()));
    let mut request = Request::new(cri::PullImageRequest { image, ..Default::default() });
    request.set_timeout(Duration::from_millis(1));
    match c.client.images.pull_image(request).await {
        Ok(answer) => bail!("it was pulled within a millisecond: {answer:?}"),
        Err(status) => {
            let expired = status.code() == Code::DeadlineExceeded || own_clock_rang(&status);
            ensure!(expired, "it failed otherwise: {status:?}");
        }
    }
    Ok(())
}

/// Our client gives up by itself, too, and then has another code for it.
fn own_clock_rang(status: &tonic::Status) -> bool {
    let mut causes = std::iter::successors(status.source(), |cause| (*cause).source());
    causes.any(|cause| cause.is::<tonic::TimeoutExpired>())
}

async fn without_tag(c: &mut Context) -> Result<()> {
    let name = staged("latest");
    let image = pulled_anew(c, &name).await?;
    ensure!(image.repo_tags == [format!("{name}:latest")], "tags: {:?}", image.repo_tags);
    gone_after_removal(c, &name).await
}

async fn with_digest(c: &mut Context) -> Result<()> {
    let name = format!("{}@{}", staged("digest"), c.suite.digest);
    let image = pulled_anew(c, &name).await?;
    ensure!(image.repo_tags.is_empty(), "tags: {:?}", image.repo_tags);
    ensure!(image.repo_digests == [name.clone()], "digests: {:?}", image.repo_digests);
    gone_after_removal(c, &name).await
}

async fn references(c: &mut Context) -> Result<()> {
    let name = staged("tag:all");
    let image = pulled_anew(c, &name).await?;
    let names = [&[image.id.clone()][..], &image.repo_tags, &image.repo_digests].concat();
    ensure!(names.len() >= 3, "it has no tag or no digest: {image:?}");
    for other in names {
        let found = c.image(&other).await?.with_context(|| format!("nothing under {other}"))?;
        ensure!(found == image, "another image under {other}: {found:?}");
    }
    gone_after_removal(c, &name).await
}

async fn users(c: &mut Context) -> Result<()> {
    for (name, uid, user) in [
        ("user-uid", Some(1002), ""),
        ("user-username", None, "www-data"),
        ("user-uid-group", Some(1003), ""),
        ("user-username-group", None, "www-data"),
    ] {
        let image = pulled_anew(c, &staged(name)).await?;
        let told = (image.uid.as_ref().map(|uid| uid.value), image.username.as_str());
        ensure!(told == (uid, user), "{name}: {told:?}");
    }
    Ok(())
}

async fn three_images(c: &mut Context) -> Result<()> {
    let mut ids = Vec::new();
    for number in 1..=3 {
        let tag = staged(&format!("{number}:latest"));
        ids.push((pulled_anew(c, &tag).await?.id, tag));
    }
    let listed = c.images().await?;
    for (id, tag) in ids {
        let image = listed.iter().find(|image| image.id == id);
        let tags = image.map(|image| image.repo_tags.clone()).unwrap_or_default();
        ensure!(tags == [tag.clone()], "{tag} is listed with {tags:?}");
    }
    Ok(())
}

async fn three_tags(c: &mut Context) -> Result<()> {
    let tags: Vec<_> = (1..=3).map(|number| staged(&format!("tags:{number}"))).collect();
    c.remove_image(&tags[0]).await?;
    let mut ids = Vec::new();
    for tag in &tags {
        ids.push(c.pull(tag).await?);
    }
    ids.dedup();
    ensure!(ids.len() == 1, "one image has the ids {ids:?}");
    let listed = c.images().await?;
    let image = listed.iter().find(|image| image.id == ids[0]).context("it is not listed")?;
    let mut told = image.repo_tags.clone();
    told.sort();
    ensure!(told == tags, "its tags are {told:?}");
    Ok(())
}

async fn gone_after_removal(c: &mut Context, name: &str) -> Result<()> {
    c.remove_image(name).await?;
    let left = c.image(name).await?;
    ensure!(left.is_none(), "it is still there: {left:?}");
    Ok(())
}
