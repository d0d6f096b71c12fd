//! Images are there at once after a pull, and gone at once with all their names.

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use infranetes_cri::api::v1 as cri;

use super::{pulled_anew, tagged};
use crate::conformance::context::{Context, image_spec};
use crate::conformance::images::{PAUSE, staged};
use crate::conformance::spec::{Group, Lane, Spec};

pub(super) fn specs() -> Vec<Spec> {
    let manager = Group::new("Image Manager")
        .lane(Lane::Images)
        .spec("removing image by one tag should remove all tags [Conformance]", |c| {
            Box::pin(all_tags(c, (1..=3).map(|tag| staged(&format!("tags:{tag}"))).collect()))
        })
        .spec("removing image from one registry should remove all tags from other registries [Conformance]", |c| {
            Box::pin(all_tags(c, PAUSE.map(str::to_owned).to_vec()))
        })
        .done();
    let consistency = Group::new("Image Consistency")
        .lane(Lane::Images)
        .spec("should not list or get image status immediately after removal [Conformance]", |c| {
            Box::pin(gone_at_once(c))
        })
        .spec("should list and get image status immediately after pulling [Conformance]", |c| {
            Box::pin(there_at_once(c))
        })
        .spec("should not fail on simultaneous RemoveImage calls [Conformance]", |c| {
            Box::pin(removed_by_many(c))
        })
        .done();
    [manager, consistency].concat()
}

async fn all_tags(c: &mut Context, tags: Vec<String>) -> Result<()> {
    for tag in &tags {
        c.remove_image(tag).await?;
    }
    for tag in &tags {
        c.pull(tag).await?;
    }
    let listed = c.images().await?;
    let image = listed.iter().find(|image| image.repo_tags.contains(&tags[0]));
    let image = image.context("it is not listed")?;
    let all = tags.iter().all(|tag| image.repo_tags.contains(tag));
    ensure!(all && image.repo_tags.len() == tags.len(), "its tags are {:?}", image.repo_tags);
    c.remove_image(&tags[0]).await?;
    for name in tags.iter().chain([&image.id]) {
        ensure!(c.image(name).await?.is_none(), "it is still there under {name}");
    }
    Ok(())
}

async fn gone_at_once(c: &mut Context) -> Result<()> {
    pulled_anew(c, &tagged()).await?;
    c.remove_image(&tagged()).await?;
    ensure!(!is_listed(c, &tagged()).await?, "it is still listed");
    ensure!(c.image(&tagged()).await?.is_none(), "it still has a status");
    Ok(())
}

async fn there_at_once(c: &mut Context) -> Result<()> {
    c.remove_image(&tagged()).await?;
    c.pull(&tagged()).await?;
    ensure!(is_listed(c, &tagged()).await?, "it is not listed");
    ensure!(c.image(&tagged()).await?.is_some(), "it has no status");
    Ok(())
}

/// Each caller finds it gone as soon as its own call came back.
async fn removed_by_many(c: &mut Context) -> Result<()> {
    let id = pulled_anew(c, &tagged()).await?.id;
    let calls = (0..5).map(|_| {
        let (mut images, id) = (c.client.images.clone(), id.clone());
        async move {
            let image = Some(image_spec(&id));
            images.remove_image(cri::RemoveImageRequest { image: image.clone() }).await?;
            let request = cri::ImageStatusRequest { image, ..Default::default() };
            anyhow::Ok(images.image_status(request).await?.into_inner().image)
        }
    });
    for left in join_all(calls).await {
        ensure!(left?.is_none(), "it was still there after RemoveImage");
    }
    ensure!(c.image(&id).await?.is_none(), "it is there again");
    Ok(())
}

async fn is_listed(c: &mut Context, name: &str) -> Result<bool> {
    Ok(c.images().await?.iter().any(|image| image.repo_tags.iter().any(|tag| tag == name)))
}
