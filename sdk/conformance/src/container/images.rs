//! Promises about images: what is missing, and how layers get in.

use std::time::Duration;

use futures::StreamExt;
use infranetes_sdk::container::{
    Image, ImportChunk, ImportPart, Layer, ListImagesRequest, MissingRequest, RemoveImageRequest,
    UsageRequest,
};
use infranetes_sdk::{ErrorKind, ProviderError, stream};

use super::stage::Stage;
use crate::check::{Outcome, Stop, ensure, fails, ok, require};
use crate::cut::Cut;

pub(super) async fn create_without_image(stage: &Stage) -> Outcome {
    require_import(stage).await?;
    let absent = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let layer = Layer {
        digest: absent("a"),
        diff_id: absent("b"),
        size_bytes: 10,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
    };
    let image = Image { id: absent("c"), layers: vec![layer.clone()] };
    let missing = ask_missing(stage, &image).await?;
    ensure(missing == [layer.digest], || format!("missing answers {missing:?}"))?;
    let mut request = stage.request("exit 0");
    request.image = Some(image);
    let created = stage.provider.create(stage.ctx(), request).await;
    fails("create", ErrorKind::NotFound, created)
}

pub(super) async fn wrong_bytes(stage: &Stage) -> Outcome {
    let (layer, mut bytes) = missing_layer(stage).await?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    let error = import_one(stage, &layer, &bytes, true).await.err();
    let error = error.ok_or_else(|| Stop::Broken("wrong bytes were taken".into()))?;
    ensure(error.kind == ErrorKind::Invalid, || format!("import answered {error:?}"))?;
    still_missing(stage, &layer).await
}

pub(super) async fn cut_off(stage: &Stage) -> Outcome {
    let (layer, bytes) = missing_layer(stage).await?;
    let error = import_one(stage, &layer, &bytes[..bytes.len() / 2], false).await.err();
    ensure(error.is_some(), || "half a layer was taken".into())?;
    still_missing(stage, &layer).await
}

pub(super) async fn import(stage: &Stage) -> Outcome {
    require_import(stage).await?;
    let missing = ask_missing(stage, &stage.subject.image).await?;
    let layers = &stage.subject.image.layers;
    let in_order: Vec<&String> = layers
        .iter()
        .map(|layer| &layer.digest)
        .filter(|digest| missing.contains(digest))
        .collect();
    ensure(in_order.iter().copied().eq(&missing), || format!("missing answers {missing:?}"))?;
    import_all(stage, &missing).await?;
    let missing = ask_missing(stage, &stage.subject.image).await?;
    ensure(missing.is_empty(), || format!("after the import {missing:?} is missing"))
}

pub(super) async fn import_again(stage: &Stage) -> Outcome {
    require_import(stage).await?;
    let digests: Vec<String> =
        stage.subject.image.layers.iter().map(|layer| layer.digest.clone()).collect();
    import_all(stage, &digests).await
}

pub(super) async fn usage(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.own_root, "containers have no file systems of their own")?;
    let usage = ok("usage", stage.provider.usage(stage.ctx(), UsageRequest {}).await)?;
    ensure(usage.used_bytes > 0, || "images take no room".into())
}

pub(super) async fn listed_and_used(stage: &Stage) -> Outcome {
    require_import(stage).await?;
    let listed = stage.provider.list_images(stage.ctx(), ListImagesRequest {}).await;
    let ids = ok("list_images", listed)?.image_ids;
    let id = &stage.subject.image.id;
    ensure(ids.contains(id), || format!("{id} is not in {ids:?}"))?;
    let request = RemoveImageRequest { image_id: id.clone() };
    let removed = stage.provider.remove_image(stage.ctx(), request).await;
    fails("remove_image of a used image", ErrorKind::Conflict, removed)
}

/// Runs last, because all containers of the image go before it.
pub(super) async fn remove(stage: &Stage) -> Outcome {
    require_import(stage).await?;
    stage.remove_all().await?;
    let image = &stage.subject.image;
    let request = RemoveImageRequest { image_id: image.id.clone() };
    for cut in Cut::ALL {
        for patience in [Duration::ZERO, Duration::from_millis(5)] {
            let remove = |context| stage.provider.remove_image(context, request.clone());
            cut.off("remove_image", stage.limits(), patience, remove).await?;
        }
    }
    for what in ["remove_image", "remove_image again"] {
        ok(what, stage.provider.remove_image(stage.ctx(), request.clone()).await)?;
        let listed = stage.provider.list_images(stage.ctx(), ListImagesRequest {}).await;
        let ids = ok("list_images", listed)?.image_ids;
        ensure(!ids.contains(&image.id), || format!("after {what} it is in {ids:?}"))?;
    }
    // Other images may have its layers.
    import_all(stage, &ask_missing(stage, image).await?).await?;
    let status = stage.run_to_end(stage.request("exit 4")).await?;
    ensure(status.exit_code == 4, || format!("of the image that came back: {status:?}"))?;
    stage.remove(&status.id).await
}

async fn require_import(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.import, "describe denies import")
}

async fn ask_missing(stage: &Stage, image: &Image) -> Outcome<Vec<String>> {
    let request = MissingRequest { image: Some(image.clone()) };
    Ok(ok("missing", stage.provider.missing(stage.ctx(), request).await)?.digests)
}

/// A layer of the image that is not here yet, and its bytes.
async fn missing_layer(stage: &Stage) -> Outcome<(Layer, Vec<u8>)> {
    require_import(stage).await?;
    let missing = ask_missing(stage, &stage.subject.image).await?;
    let layers = &stage.subject.image.layers;
    let layer = layers.iter().find(|layer| missing.contains(&layer.digest));
    let layer = layer.ok_or_else(|| Stop::Skipped("the image is here already".into()))?;
    Ok((layer.clone(), blob(stage, layer)?))
}

fn blob(stage: &Stage, layer: &Layer) -> Outcome<Vec<u8>> {
    let blob = stage.subject.blobs.get(&layer.digest).filter(|blob| !blob.is_empty()).cloned();
    blob.ok_or_else(|| Stop::Skipped(format!("the subject has no bytes for {}", layer.digest)))
}

async fn still_missing(stage: &Stage, layer: &Layer) -> Outcome {
    let missing = ask_missing(stage, &stage.subject.image).await?;
    ensure(missing.contains(&layer.digest), || "it counts as present".into())
}

async fn import_all(stage: &Stage, digests: &[String]) -> Outcome {
    let layers = stage.subject.image.layers.iter();
    for layer in layers.filter(|layer| digests.contains(&layer.digest)) {
        let bytes = blob(stage, layer)?;
        let done = ok("import", import_one(stage, layer, &bytes, true).await)?;
        ensure(done == [layer.digest.clone()], || format!("done are {done:?}"))?;
    }
    Ok(())
}

/// Sends one layer, and gives the digests that were reported as done. An input that is not `whole` ends with an error.
async fn import_one(
    stage: &Stage,
    layer: &Layer,
    bytes: &[u8],
    whole: bool,
) -> Result<Vec<String>, ProviderError> {
    let mut parts = vec![Ok(ImportPart::Layer(layer.clone()))];
    parts.extend(bytes.chunks(CHUNK).map(|chunk| Ok(ImportPart::Data(chunk.to_vec()))));
    if !whole {
        parts.push(Err(ProviderError::transient("the sender was cut off")));
    }
    let (sender, input) = stream::channel(4);
    let feed = async move {
        for part in parts {
            if sender.send(part.map(|part| ImportChunk { part: Some(part) })).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let mut done = Vec::new();
        let mut progress = stage.provider.import(stage.ctx(), input).await?;
        while let Some(item) = progress.next().await {
            let item = item?;
            if item.done {
                done.push(item.digest);
            }
        }
        Ok(done)
    };
    let both = async { futures::join!(feed, read).1 };
    tokio::time::timeout(stage.limits().call, both)
        .await
        .unwrap_or_else(|_| Err(ProviderError::deadline_exceeded("the import does not end")))
}

/// Bytes that travel at once.
const CHUNK: usize = 32 << 10;
