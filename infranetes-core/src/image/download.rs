//! Getting one blob onto the disk: continued where it stopped, checked, and only then given its name.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use http::{Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};

use super::digest::Digest;
use super::disk::Partial;
use super::manifest::Descriptor;
use super::pull_error::PullFailure;
use super::registry::{Attempt, Attempts, RegistryEndpoint, Transient};
use super::store::{Shared, blocking, lock};

/// A blob on its way to the disk. While it lives, nobody else writes the same blob.
pub(super) struct Download {
    shared: Arc<Shared>,
    digest: Digest,
    size: u64,
    /// Shared with the thread that writes, so that a cancelled pull lets go of the file only when no write
    /// is under way.
    file: Arc<Mutex<Writing>>,
    /// Whether some of the content was there before this download.
    resumed: bool,
}

struct Writing {
    partial: Partial,
    _lock: OwnedMutexGuard<()>,
}

/// What is collected before it is written: large enough to be rare, small enough to be many.
const WRITE_BYTES: usize = 1 << 20;

impl Download {
    /// Opens what there is of the blob; `None` if all of it is there already.
    pub(super) async fn start(
        shared: &Arc<Shared>,
        blob: &Descriptor,
    ) -> Result<Option<Download>, PullFailure> {
        let write_lock = shared.write_lock(&blob.digest).await;
        if shared.state().blob_size(&blob.digest) == Some(blob.size) {
            return Ok(None);
        }
        let (opener, digest, size) = (Arc::clone(shared), blob.digest.clone(), blob.size);
        let opened = blocking(move || Partial::open(&opener.layout, &digest, size)).await;
        let partial = opened.flatten().map_err(|error| shared.disk_failure(error))?;
        Ok(Some(Download {
            shared: Arc::clone(shared),
            digest: blob.digest.clone(),
            size: blob.size,
            resumed: partial.length() > 0,
            file: Arc::new(Mutex::new(Writing { partial, _lock: write_lock })),
        }))
    }

    /// Gets the rest of the blob from `registry`. What arrived stays for another endpoint or another pull.
    pub(super) async fn run(
        &mut self,
        registry: &RegistryEndpoint,
        attempts: u32,
    ) -> Result<(), PullFailure> {
        let shared = Arc::clone(&self.shared);
        let mut attempts = Attempts::new(registry.name(), attempts, &shared.limits);
        loop {
            let before = self.length();
            match self.attempt(registry).await {
                Ok(()) => match self.finish().await? {
                    Ok(()) => return Ok(()),
                    // What was there before may be what is wrong: power may have failed under it.
                    Err(_) if std::mem::take(&mut self.resumed) => {}
                    Err(got) => {
                        let registry = registry.name().to_owned();
                        let expected = self.digest.clone();
                        return Err(PullFailure::WrongDigest { registry, expected, got });
                    }
                },
                Err(Attempt::Final(failure)) => return Err(failure),
                Err(Attempt::Again(why)) => {
                    if self.length() > before {
                        attempts.progressed();
                    }
                    attempts.failed(why).await?;
                }
            }
        }
    }

    /// Writes a blob that is in memory already.
    pub(super) async fn run_from(&mut self, content: &[u8]) -> Result<(), PullFailure> {
        self.restart().await?;
        self.append(content.into()).await?;
        match self.finish().await? {
            Ok(()) => Ok(()),
            Err(got) => {
                let why = format!("{} turned into {got} on its way to the disk", self.digest);
                Err(self.shared.disk_failure(io::Error::other(why)))
            }
        }
    }

    /// One request, for what is missing.
    async fn attempt(&mut self, registry: &RegistryEndpoint) -> Result<(), Attempt> {
        let have = self.length();
        if have == self.size {
            return Ok(());
        }
        let name = self.digest.to_string();
        let response = registry.get("blobs", &name, None, have).await?;
        match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.start_anew(registry).await?;
                return Err(Transient::CutOff { have: 0, size: self.size }.into());
            }
            StatusCode::OK if have > 0 => self.start_anew(registry).await?,
            StatusCode::PARTIAL_CONTENT if starts_at(&response) != Some(have) => {
                let why = "it sends another range than asked for".to_owned();
                let registry = registry.name().to_owned();
                return Err(PullFailure::Protocol { registry, why }.into());
            }
            _ => {}
        }
        self.receive(response, registry).await
    }

    async fn receive(
        &mut self,
        response: Response<Incoming>,
        registry: &RegistryEndpoint,
    ) -> Result<(), Attempt> {
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        let ended = loop {
            let frame = match timeout(self.shared.limits.idle, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_)) | None) => break None,
                Err(_) => break Some(Transient::Stalled),
            };
            let Ok(data) = frame.into_data() else { continue };
            if self.length() + (buffer.len() + data.len()) as u64 > self.size {
                self.restart().await?;
                let (registry, limit) = (registry.name().to_owned(), self.size);
                return Err(PullFailure::TooLarge { registry, limit }.into());
            }
            buffer.extend_from_slice(&data);
            if buffer.len() >= WRITE_BYTES {
                self.append(buffer.split()).await?;
            }
        };
        if !buffer.is_empty() {
            self.append(buffer).await?;
        }
        let have = self.length();
        match ended {
            _ if have == self.size => Ok(()),
            Some(why) => Err(why.into()),
            None => Err(Transient::CutOff { have, size: self.size }.into()),
        }
    }

    /// Forgets what there is, because the registry cannot continue from there.
    async fn start_anew(&mut self, registry: &RegistryEndpoint) -> Result<(), PullFailure> {
        tracing::debug!(digest = %self.digest, registry = registry.name(),
            "the registry cannot continue downloads; starting anew");
        self.resumed = false;
        self.restart().await
    }

    fn length(&self) -> u64 {
        lock(&self.file).partial.length()
    }

    async fn append(&self, content: BytesMut) -> Result<(), PullFailure> {
        self.write(move |partial| partial.append(&content)).await
    }

    async fn restart(&self) -> Result<(), PullFailure> {
        self.write(Partial::restart).await
    }

    async fn write(
        &self,
        work: impl FnOnce(&mut Partial) -> io::Result<()> + Send + 'static,
    ) -> Result<(), PullFailure> {
        let (file, shared, digest) =
            (Arc::clone(&self.file), Arc::clone(&self.shared), self.digest.clone());
        let written = blocking(move || {
            let mut writing = lock(&file);
            let result = work(&mut writing.partial);
            let full = result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::StorageFull);
            // Half a layer on a full disk is in everybody's way.
            if full && let Err(error) = writing.partial.restart() {
                tracing::warn!(%digest, %error, "the start of a layer cannot be given up");
            }
            shared.state().set_partial(&digest, writing.partial.length(), Instant::now());
            result
        });
        written.await.flatten().map_err(|error| self.shared.disk_failure(error))
    }

    /// Gives the content its name; the digest that it has instead, if it is not what it should be.
    async fn finish(&self) -> Result<Result<(), Digest>, PullFailure> {
        let (file, shared, digest, size) =
            (Arc::clone(&self.file), Arc::clone(&self.shared), self.digest.clone(), self.size);
        let finished = blocking(move || {
            let mut writing = lock(&file);
            let finished = writing.partial.finish(&shared.layout)?;
            let mut state = shared.state();
            match finished {
                Ok(()) => state.add_blob(digest, size, Instant::now()),
                Err(_) => state.set_partial(&digest, 0, Instant::now()),
            }
            Ok(finished)
        });
        finished.await.flatten().map_err(|error| self.shared.disk_failure(error))
    }
}

impl Shared {
    pub(super) fn disk_failure(&self, error: io::Error) -> PullFailure {
        PullFailure::of_disk(&self.layout.root, error)
    }
}

/// The first byte of a partial answer.
fn starts_at(response: &Response<Incoming>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
