//! The store as the engine's source of images.

use async_trait::async_trait;

use super::manifest::{ImageManifest, Layer};
use super::read::ReadImageError;
use super::store::ImageStore;
use crate::engine::{ImageSource, ResolvedImage};
use crate::error::{Cause, EngineError, FailureKind};
use crate::session::{LayerSource, MachineImage, MachineLayer};

#[async_trait]
impl ImageSource for ImageStore {
    async fn resolve(&self, image: &str) -> Result<ResolvedImage, EngineError> {
        let found =
            self.status(image).ok_or_else(|| EngineError::ImageNotFound(image.to_owned()))?;
        let manifest = self.manifest_of(&found.id).await.map_err(|error| failed(image, &error))?;
        Ok(resolved(manifest))
    }

    async fn open_layer(&self, layer: &MachineLayer) -> Result<LayerSource, EngineError> {
        let digest = layer.digest.parse().map_err(|_| {
            EngineError::Internal(format!("the layer {:?} has no digest", layer.digest))
        })?;
        let opened = ImageStore::open_layer(self, &digest).await;
        let reader = opened.map_err(|error| failed(&layer.digest, &error))?;
        Ok(LayerSource { layer: layer.clone(), reader: Box::pin(reader) })
    }
}

fn resolved(manifest: ImageManifest) -> ResolvedImage {
    let config = manifest.config;
    ResolvedImage {
        image: MachineImage {
            id: manifest.id.to_string(),
            layers: manifest.layers.into_iter().map(layer).collect(),
        },
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        user: config.user,
        working_dir: config.working_dir,
        stop_signal: config.stop_signal.unwrap_or_default(),
    }
}

fn layer(layer: Layer) -> MachineLayer {
    MachineLayer {
        digest: layer.digest.to_string(),
        diff_id: layer.diff_id.to_string(),
        size_bytes: layer.size_bytes,
        media_type: layer.media_type,
    }
}

fn failed(what: &str, error: &ReadImageError) -> EngineError {
    match error {
        ReadImageError::NoImage(_) | ReadImageError::NoLayer(_) => {
            EngineError::ImageNotFound(what.to_owned())
        }
        _ => EngineError::ImageUnreadable(Cause::of(FailureKind::Internal, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageStoreConfig;

    #[tokio::test]
    async fn what_is_not_on_the_node_is_said_to_be_missing() {
        let root = tempfile::tempdir().unwrap();
        let store = ImageStore::open(ImageStoreConfig::new(root.path())).await.unwrap();
        let resolved = store.resolve("busybox").await.unwrap_err();
        assert_eq!(resolved.kind(), FailureKind::NotFound, "{resolved}");
        let digest = format!("sha256:{}", "0".repeat(64));
        let layer = MachineLayer { digest: digest.clone(), ..MachineLayer::default() };
        let opened = ImageSource::open_layer(&store, &layer).await.err().unwrap();
        assert!(opened.to_string().contains(&digest), "{opened}");
        let unnamed =
            ImageSource::open_layer(&store, &MachineLayer::default()).await.err().unwrap();
        assert_eq!(unnamed.kind(), FailureKind::Internal, "{unnamed}");
    }
}
