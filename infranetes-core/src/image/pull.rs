//! Pulling one image: find its manifest, choose its platform, get what is missing, record it.

use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, Shared as SharedFuture, WeakShared};
use futures::stream::{self, StreamExt, TryStreamExt};
use http::header;
use tokio::sync::Semaphore;

use super::config::{Endpoint, EndpointCredentials, Limits};
use super::credentials::Credentials;
use super::digest::{Digest, ImageId};
use super::download::Download;
use super::index::ImageRecord;
use super::manifest::{
    ACCEPT, Descriptor, Document, ImageManifest, Manifest, ManifestError, choose,
};
use super::pull_error::{PullError, PullFailure, PullPhase};
use super::reference::Reference;
use super::registry::{Attempt, Attempts, HttpClients, RegistryEndpoint, read_bounded};
use super::store::{Shared, lock};

/// The pulls that run.
pub(super) struct Pulls {
    running: Mutex<Vec<Running>>,
    images: Semaphore,
    layers: Semaphore,
    clients: Mutex<Weak<HttpClients>>,
}

/// A pull that others may join. It lives in those who wait for it.
struct Running {
    reference: Reference,
    credentials: Option<Credentials>,
    pull: WeakShared<BoxFuture<'static, PullResult>>,
}

type PullResult = Result<ImageId, PullError>;

impl Pulls {
    pub(super) fn new(limits: &Limits) -> Pulls {
        Pulls {
            running: Mutex::default(),
            images: Semaphore::new(limits.parallel_pulls.max(1)),
            layers: Semaphore::new(limits.parallel_layers.max(1)),
            clients: Mutex::default(),
        }
    }

    /// The connections of the pulls that run, or new ones.
    fn clients(&self, limits: &Limits) -> Arc<HttpClients> {
        let mut shared = lock(&self.clients);
        shared.upgrade().unwrap_or_else(|| {
            let clients = Arc::new(HttpClients::new(limits.connect));
            *shared = Arc::downgrade(&clients);
            clients
        })
    }
}

impl Shared {
    /// Joins the pull of the same thing that runs already, or starts one.
    pub(super) async fn join_pull(
        self: &Arc<Self>,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> PullResult {
        let reference: Reference = reference.parse().map_err(|error| {
            PullError::new(reference, PullPhase::Preparing, PullFailure::Reference(error))
        })?;
        let pull = self.find_or_start(reference, credentials);
        pull.await
    }

    fn find_or_start(
        self: &Arc<Self>,
        reference: Reference,
        credentials: Option<Credentials>,
    ) -> SharedFuture<BoxFuture<'static, PullResult>> {
        let mut running = lock(&self.pulls.running);
        // A pull that ended answers those who joined it, and no newcomer.
        running.retain(|entry| entry.pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        let same =
            |entry: &&Running| entry.reference == reference && entry.credentials == credentials;
        if let Some(pull) = running.iter().find(same).and_then(|entry| entry.pull.upgrade()) {
            return pull;
        }
        let work = run(Arc::clone(self), reference.clone(), credentials.clone());
        let pull = work.boxed().shared();
        if let Some(weak) = pull.downgrade() {
            running.push(Running { reference, credentials, pull: weak });
        }
        pull
    }
}

/// One pull from its place in the queue to its end.
async fn run(
    shared: Arc<Shared>,
    reference: Reference,
    credentials: Option<Credentials>,
) -> PullResult {
    let image = reference.to_string();
    let limit = shared.limits.whole;
    let phase = Mutex::new(PullPhase::Preparing);
    let work = async {
        let _place = shared.pulls.images.acquire().await;
        Session::new(&shared, reference, credentials, &phase)?.pull().await
    };
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(id)) => {
            tracing::info!(%image, %id, "pulled");
            Ok(id)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let phase = lock(&phase).clone();
            Err(PullError::new(image, phase, PullFailure::TimedOut { limit }))
        }
    }
}

/// What one pull works with.
struct Session<'a> {
    shared: Arc<Shared>,
    reference: Reference,
    /// In the order in which they are tried; the registry itself is the last.
    endpoints: Vec<RegistryEndpoint>,
    /// What the pull does now, for whoever cuts it short.
    now: &'a Mutex<PullPhase>,
}

/// The endpoints of a pull in their turn, for one thing that is asked for.
struct Turns<'a> {
    session: &'a Session<'a>,
    phase: PullPhase,
    number: usize,
    before: Vec<(String, PullFailure)>,
}

/// A manifest as it came.
struct Fetched {
    bytes: Bytes,
    digest: Digest,
    document: Document,
    /// The number of the endpoint that had it: the blobs are asked for there first.
    endpoint: usize,
}

impl<'a> Session<'a> {
    fn new(
        shared: &Arc<Shared>,
        reference: Reference,
        credentials: Option<Credentials>,
        now: &'a Mutex<PullPhase>,
    ) -> Result<Session<'a>, PullError> {
        let host = reference.registry();
        let endpoints = shared.registries.endpoints(host).map_err(|error| {
            let failure = PullFailure::Endpoint(error);
            PullError::new(reference.to_string(), PullPhase::Preparing, failure)
        })?;
        let credentials = credentials.filter(|credentials| credentials.are_for(host));
        let clients = shared.pulls.clients(&shared.limits);
        let endpoints = endpoints.into_iter().map(|endpoint| {
            let known = known_to(&endpoint, credentials.as_ref());
            let (clients, limits) = (Arc::clone(&clients), shared.limits.clone());
            RegistryEndpoint::new(endpoint, reference.repository(), known, clients, limits)
        });
        Ok(Session { endpoints: endpoints.collect(), shared: Arc::clone(shared), reference, now })
    }

    async fn pull(&self) -> PullResult {
        let root = self.root().await?;
        let root_digest = root.digest.clone();
        let image = self.image_of(root).await?;
        let Document::Image(manifest) = &image.document else {
            let error = malformed("index", "it lists another index where an image is due");
            return Err(self.unusable(PullPhase::Manifest, error));
        };
        self.check_limits(manifest)?;
        let mut blobs: Vec<Digest> =
            manifest.blobs().into_iter().map(|blob| blob.digest.clone()).collect();
        blobs.push(image.digest.clone());
        // From here on nothing that the image needs is swept away, whether it was there before or comes now.
        let _hold = self.shared.hold(blobs);
        let described = self.config(manifest, image.endpoint).await?;
        self.store_document(&image.digest, &image.bytes, PullPhase::Manifest).await?;
        self.layers(manifest, image.endpoint).await?;
        self.record(&root_digest, &image, manifest, described).await
    }

    /// The manifest or index that the reference means.
    async fn root(&self) -> Result<Fetched, PullError> {
        match self.reference.digest() {
            Some(digest) => self.document(&digest.to_string(), Some(digest), 0).await,
            None => self.document(self.reference.tag().unwrap_or("latest"), None, 0).await,
        }
    }

    /// The manifest itself, or the one of an index that suits the machines.
    async fn image_of(&self, root: Fetched) -> Result<Fetched, PullError> {
        let Document::Index(entries) = &root.document else { return Ok(root) };
        let chosen = choose(entries, &self.shared.platform)
            .map_err(|error| self.unusable(PullPhase::Manifest, error))?;
        self.document(&chosen.digest.to_string(), Some(&chosen.digest), root.endpoint).await
    }

    async fn document(
        &self,
        name: &str,
        expected: Option<&Digest>,
        first: usize,
    ) -> Result<Fetched, PullError> {
        let mut turns = self.turns(PullPhase::Manifest, first);
        loop {
            let fetched = self.fetch_document(turns.next(), "manifests", name, expected).await;
            // What is no manifest may still be one elsewhere: some mirrors answer all with a login page.
            let read = fetched.and_then(|(bytes, digest, content_type)| {
                let document = Document::parse(&bytes, content_type.as_deref());
                let document = document.map_err(PullFailure::Unusable)?;
                Ok(Fetched { bytes, digest, document, endpoint: turns.number })
            });
            match read {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => turns.failed(failure)?,
            }
        }
    }

    /// Reads a document into memory and checks its digest, if it is known what it should be.
    async fn fetch_document(
        &self,
        (registry, attempts): (&RegistryEndpoint, u32),
        what: &str,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<(Bytes, Digest, Option<String>), PullFailure> {
        let limits = &self.shared.limits;
        let mut attempts = Attempts::new(registry.name(), attempts, limits);
        let accept = (what == "manifests").then_some(ACCEPT);
        loop {
            let read = async {
                let response = registry.get(what, name, accept, 0).await?;
                let text = |name| response.headers().get(name)?.to_str().ok().map(str::to_owned);
                let content_type = text(header::CONTENT_TYPE.as_str())
                    .and_then(|value| Some(value.split(';').next()?.trim().to_owned()));
                let promised: Option<Digest> =
                    text(DIGEST_HEADER).and_then(|text| text.parse().ok());
                let limit = limits.document_bytes;
                let bytes = read_bounded(response, limit, limits.idle, registry.name()).await?;
                Ok((bytes, promised, content_type))
            };
            match read.await {
                Ok((bytes, promised, content_type)) => {
                    let expected = expected.or(promised.as_ref());
                    let got = expected
                        .map_or_else(|| Digest::of(&bytes), |digest| digest.same_kind_of(&bytes));
                    if let Some(expected) = expected.filter(|expected| **expected != got) {
                        let (registry, expected) = (registry.name().to_owned(), expected.clone());
                        return Err(PullFailure::WrongDigest { registry, expected, got });
                    }
                    return Ok((bytes, got, content_type));
                }
                Err(Attempt::Final(failure)) => return Err(failure),
                Err(Attempt::Again(why)) => attempts.failed(why).await?,
            }
        }
    }

    fn check_limits(&self, manifest: &Manifest) -> Result<(), PullError> {
        let limits = &self.shared.limits;
        let largest = manifest.layers.iter().map(|layer| layer.size).max().unwrap_or_default();
        let checks = [
            ("a number of layers", manifest.layers.len() as u64, limits.layers as u64),
            ("a configuration", manifest.config.size, limits.document_bytes),
            ("a layer", largest, limits.layer_bytes),
        ];
        match checks.into_iter().find(|(_, size, limit)| size > limit) {
            Some((what, size, limit)) => {
                let error = ManifestError::TooLarge { what, size, limit };
                Err(self.unusable(PullPhase::Manifest, error))
            }
            None => Ok(()),
        }
    }

    /// The configuration, from the store or from the registry, checked against manifest and platform.
    async fn config(&self, manifest: &Manifest, first: usize) -> Result<ImageManifest, PullError> {
        let wanted = &manifest.config;
        let bytes = match self.shared.read_document(&wanted.digest).await {
            Ok(bytes) => Bytes::from(bytes),
            Err(_) => {
                let name = wanted.digest.to_string();
                let mut turns = self.turns(PullPhase::Config, first);
                loop {
                    let registry = turns.next();
                    match self.fetch_document(registry, "blobs", &name, Some(&wanted.digest)).await
                    {
                        Ok((bytes, ..)) => break bytes,
                        Err(failure) => turns.failed(failure)?,
                    }
                }
            }
        };
        let unusable = |error| self.unusable(PullPhase::Config, error);
        if bytes.len() as u64 != wanted.size {
            let why = "its size is not the one that the manifest says";
            return Err(unusable(malformed("image configuration", why)));
        }
        let described = manifest.with_config(&bytes).map_err(unusable)?;
        let offered = described.config.platform();
        if self.shared.platform.suits(&offered).is_none() {
            let wanted = self.shared.platform.clone();
            return Err(unusable(ManifestError::OtherPlatform { wanted, exists: vec![offered] }));
        }
        self.store_document(&wanted.digest, &bytes, PullPhase::Config).await?;
        Ok(described)
    }

    async fn store_document(
        &self,
        digest: &Digest,
        bytes: &[u8],
        phase: PullPhase,
    ) -> Result<(), PullError> {
        let (size, media_type) = (bytes.len() as u64, String::new());
        let blob = Descriptor { digest: digest.clone(), size, media_type };
        let stored = async {
            match Download::start(&self.shared, &blob).await? {
                Some(mut download) => download.run_from(bytes).await,
                None => Ok(()),
            }
        };
        stored.await.map_err(|failure| self.failed(phase, failure))
    }

    async fn layers(&self, manifest: &Manifest, first: usize) -> Result<(), PullError> {
        let layers =
            manifest.blobs().into_iter().filter(|blob| blob.digest != manifest.config.digest);
        let all = manifest.layers.len();
        let downloads: Vec<_> = layers
            .enumerate()
            .map(|(index, layer)| self.layer(layer, PullPhase::Layer(index + 1, all), first))
            .collect();
        // Those that still run when one fails are dropped: they continue with the next pull.
        let together = self.shared.limits.parallel_layers.max(1);
        stream::iter(downloads).buffer_unordered(together).try_collect::<()>().await
    }

    async fn layer(
        &self,
        layer: &Descriptor,
        phase: PullPhase,
        first: usize,
    ) -> Result<(), PullError> {
        let _place = self.shared.pulls.layers.acquire().await;
        let download = Download::start(&self.shared, layer).await;
        let Some(mut download) = download.map_err(|failure| self.failed(phase.clone(), failure))?
        else {
            return Ok(());
        };
        let mut turns = self.turns(phase, first);
        loop {
            let (registry, attempts) = turns.next();
            match download.run(registry, attempts).await {
                Ok(()) => return Ok(()),
                Err(failure) => turns.failed(failure)?,
            }
        }
    }

    async fn record(
        &self,
        root: &Digest,
        image: &Fetched,
        manifest: &Manifest,
        described: ImageManifest,
    ) -> PullResult {
        let mut blobs: std::collections::BTreeMap<Digest, u64> =
            manifest.blobs().into_iter().map(|blob| (blob.digest.clone(), blob.size)).collect();
        blobs.insert(image.digest.clone(), image.bytes.len() as u64);
        let id = described.id.clone();
        let record = ImageRecord {
            id: described.id,
            manifest: image.digest.clone(),
            blobs,
            // A reference by digest names no tag, even if it carries one: the tag may mean another image.
            tags: match self.reference.digest() {
                Some(_) => Vec::new(),
                None => self.reference.repo_tag().into_iter().collect(),
            },
            digests: vec![self.reference.repo_digest(root)],
            user: described.config.user,
            annotations: manifest.annotations.clone(),
        };
        let committed = self.shared.commit(move |state| state.after_pull(record)).await;
        committed
            .map_err(|error| self.failed(PullPhase::Recording, self.shared.disk_failure(error)))?;
        Ok(id)
    }

    /// Starts to ask the endpoints, from the number `first` on: those before it had not even the manifest.
    fn turns(&self, phase: PullPhase, first: usize) -> Turns<'_> {
        lock(self.now).clone_from(&phase);
        Turns { session: self, phase, number: first, before: Vec::new() }
    }

    fn failed(&self, phase: PullPhase, failure: PullFailure) -> PullError {
        PullError::new(self.reference.to_string(), phase, failure)
    }

    fn unusable(&self, phase: PullPhase, error: ManifestError) -> PullError {
        self.failed(phase, PullFailure::Unusable(error))
    }
}

impl<'a> Turns<'a> {
    /// Whose turn it is, and how many attempts it gets.
    fn next(&self) -> (&'a RegistryEndpoint, u32) {
        let all = self.session.shared.limits.attempts;
        let attempts = if self.is_last() { all } else { all.min(MIRROR_ATTEMPTS) };
        (&self.session.endpoints[self.number], attempts)
    }

    /// Goes on to the next endpoint. There is none after the registry itself, and none that could help
    /// when it is the own disk that fails: the error then tells also what the mirrors said before.
    fn failed(&mut self, failure: PullFailure) -> Result<(), PullError> {
        if self.is_last() || failure.is_of_this_node() {
            let before = std::mem::take(&mut self.before);
            let image = self.session.reference.to_string();
            return Err(PullError::after(before, image, self.phase.clone(), failure));
        }
        let mirror = self.session.endpoints[self.number].name();
        tracing::warn!(image = %self.session.reference, mirror, %failure,
            "a mirror failed; the next endpoint is tried");
        self.before.push((mirror.to_owned(), failure));
        self.number += 1;
        Ok(())
    }

    fn is_last(&self) -> bool {
        self.number + 1 >= self.session.endpoints.len()
    }
}

/// A mirror that does not answer is not waited for: there is another place to ask.
const MIRROR_ATTEMPTS: u32 = 2;
const DIGEST_HEADER: &str = "docker-content-digest";

/// What an endpoint is told about who asks.
fn known_to(endpoint: &Endpoint, pull: Option<&Credentials>) -> Option<Credentials> {
    match &endpoint.credentials {
        EndpointCredentials::Anonymous => None,
        EndpointCredentials::FromPull => pull.cloned(),
        EndpointCredentials::Own(own) => Some(own.clone()),
    }
}

fn malformed(what: &'static str, why: &str) -> ManifestError {
    ManifestError::Malformed { what, why: why.to_owned() }
}
