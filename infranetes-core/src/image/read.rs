//! Reading what the store has: the documents of an image, and layers as streams.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::digest::{Digest, ImageId};
use super::index::ImageRecord;
use super::manifest::{Document, ImageManifest, ManifestError};
use super::state::State;
use super::store::{ImageStore, Shared, blocking};

/// A layer as it is stored, from its first byte to its last.
///
/// The layer stays readable to its end even if the image is removed meanwhile.
#[derive(Debug)]
pub struct LayerReader {
    file: tokio::io::Take<tokio::fs::File>,
    size_bytes: u64,
}

/// An image or a layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadImageError {
    /// The store has no such image.
    #[error("the image store has no image {0}")]
    NoImage(ImageId),
    /// The store has no such layer.
    #[error("the image store has no layer {0}")]
    NoLayer(Digest),
    /// The file is not what its digest says: the disk changed it.
    #[error("the blob {0} of the image store is damaged: remove the image and pull it again")]
    Damaged(Digest),
    /// A document that was good when it was pulled is not understood now.
    #[error("the documents of image {id} cannot be read")]
    Document {
        /// The image.
        id: ImageId,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// The disk fails.
    #[error("the blob {digest} of the image store cannot be read")]
    Disk {
        /// The blob.
        digest: Digest,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl ImageStore {
    /// The layers and the configuration of an image.
    pub async fn manifest_of(&self, id: &ImageId) -> Result<ImageManifest, ReadImageError> {
        let record = self.shared().state().image(id).cloned();
        let record = record.ok_or_else(|| ReadImageError::NoImage(id.clone()))?;
        let manifest = self.shared().read_document(&record.manifest).await?;
        let config = self.shared().read_document(id.digest()).await?;
        let unreadable = |source| ReadImageError::Document { id: id.clone(), source };
        match Document::parse(&manifest, None).map_err(unreadable)? {
            Document::Image(manifest) => manifest.with_config(&config).map_err(unreadable),
            Document::Index(_) => Err(ReadImageError::Damaged(record.manifest)),
        }
    }

    /// Opens a layer for reading.
    pub async fn open_layer(&self, digest: &Digest) -> Result<LayerReader, ReadImageError> {
        let size_bytes = self.shared().state().blob_size(digest);
        let size_bytes = size_bytes.ok_or_else(|| ReadImageError::NoLayer(digest.clone()))?;
        let mut file = self.shared().open_blob(digest, size_bytes).await?;
        file.set_max_buf_size(READ_BUFFER);
        Ok(LayerReader { file: file.take(size_bytes), size_bytes })
    }
}

/// Whether a layer is still what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerCheck {
    /// It is, on this disk: whoever read something else has to look elsewhere for the fault.
    Whole,
    /// It is not. It was deleted, and with it the images that need it: they can be pulled again.
    Deleted,
}

impl ImageStore {
    /// Reads a whole layer and checks it against its digest: for when a machine says that what was sent to
    /// it is wrong. Reads from disk at full speed, so do it on suspicion and not as a routine.
    pub async fn recheck_layer(&self, digest: &Digest) -> Result<LayerCheck, ReadImageError> {
        let shared = self.shared();
        let size = shared.state().blob_size(digest);
        let size = size.ok_or_else(|| ReadImageError::NoLayer(digest.clone()))?;
        let _no_writer = shared.write_lock(digest).await;
        let disk = |source| ReadImageError::Disk { digest: digest.clone(), source };
        let (reader, wanted) = (Arc::clone(shared), digest.clone());
        let whole = blocking(move || reader.layout.is_whole(&wanted, size)).await.flatten();
        if whole.map_err(disk)? {
            return Ok(LayerCheck::Whole);
        }
        tracing::error!(%digest, "a layer of the image store is damaged; its images are removed");
        let lost = digest.clone();
        let change = move |state: &State| {
            let keeps = |record: &&ImageRecord| !record.blobs.contains_key(&lost);
            Some(state.images().filter(keeps).cloned().collect())
        };
        shared.commit(change).await.map_err(disk)?;
        // Also if somebody holds it: what is damaged must not become part of the next pull.
        let (deleter, lost) = (Arc::clone(shared), digest.clone());
        blocking(move || deleter.forget_blob(&lost)).await.flatten().map_err(disk)?;
        Ok(LayerCheck::Deleted)
    }
}

impl LayerReader {
    /// Bytes of the whole layer.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// As much as one message of the agent session carries.
const READ_BUFFER: usize = 256 << 10;

impl AsyncRead for LayerReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_read(cx, buffer)
    }
}

impl Shared {
    /// Reads a whole document and checks it; documents are bounded when they are pulled.
    pub(super) async fn read_document(&self, digest: &Digest) -> Result<Vec<u8>, ReadImageError> {
        let size = self.state().blob_size(digest);
        let size = size.ok_or_else(|| ReadImageError::NoLayer(digest.clone()))?;
        let file = self.open_blob(digest, size).await?;
        let mut bytes = Vec::new();
        let read = file.take(size).read_to_end(&mut bytes).await;
        read.map_err(|source| ReadImageError::Disk { digest: digest.clone(), source })?;
        if digest.same_kind_of(&bytes) != *digest {
            return Err(ReadImageError::Damaged(digest.clone()));
        }
        Ok(bytes)
    }

    async fn open_blob(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<tokio::fs::File, ReadImageError> {
        let disk = |source| ReadImageError::Disk { digest: digest.clone(), source };
        let file = match tokio::fs::File::open(self.layout.blob(digest)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ReadImageError::NoLayer(digest.clone()));
            }
            other => other.map_err(disk)?,
        };
        if file.metadata().await.map_err(disk)?.len() != size {
            return Err(ReadImageError::Damaged(digest.clone()));
        }
        Ok(file)
    }
}
