//! A store on a directory of its own, with one registry that references call `reg.test`.

use std::path::Path;
use std::time::Duration;

use infranetes_core::image::{
    Credentials, Endpoint, ImageId, ImageStore, ImageStoreConfig, Limits, PullError, RegistryConfig,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use crate::registry::{Image, PATIENCE, Registry};

pub(crate) struct Node {
    pub(crate) dir: TempDir,
    pub(crate) store: ImageStore,
    config: ImageStoreConfig,
}

pub(crate) const APP: &str = "reg.test/team/app:1";

impl Node {
    pub(crate) async fn new(registry: &Registry) -> Node {
        Node::with_endpoints(registry.endpoint(), vec![]).await
    }

    pub(crate) async fn with_endpoints(itself: Endpoint, mirrors: Vec<Endpoint>) -> Node {
        Node::with_limits(itself, mirrors, quick()).await
    }

    pub(crate) async fn with_limits(
        itself: Endpoint,
        mirrors: Vec<Endpoint>,
        limits: Limits,
    ) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ImageStoreConfig::new(dir.path().join("images"));
        let registry = RegistryConfig { mirrors, itself: Some(itself) };
        config.registries.hosts.insert("reg.test".into(), registry);
        config.limits = limits;
        let store = ImageStore::open(config.clone()).await.unwrap();
        Node { dir, store, config }
    }

    /// A node around a store that was opened elsewhere.
    pub(crate) fn reopened(dir: TempDir, store: ImageStore, config: ImageStoreConfig) -> Node {
        Node { dir, store, config }
    }

    pub(crate) fn config(&self) -> ImageStoreConfig {
        self.config.clone()
    }

    pub(crate) fn root(&self) -> &Path {
        &self.config.root
    }

    pub(crate) async fn pull(&self) -> Result<ImageId, PullError> {
        self.pull_as(None).await
    }

    pub(crate) async fn pull_as(
        &self,
        credentials: Option<Credentials>,
    ) -> Result<ImageId, PullError> {
        tokio::time::timeout(PATIENCE, self.store.pull(APP, credentials)).await.expect("in time")
    }

    /// Closes the store and opens it again.
    pub(crate) async fn restart(self) -> Node {
        let Node { dir, store, config } = self;
        drop(store);
        let store = open_when_free(&config).await;
        Node { dir, store, config }
    }

    /// Closes the store and leaves its directory.
    pub(crate) async fn close(self) -> TempDir {
        let Node { dir, store, config } = self;
        drop(store);
        drop(open_when_free(&config).await);
        dir
    }

    /// Checks that the image is there to its last byte.
    pub(crate) async fn expect_whole(&self, image: &Image) {
        let id: ImageId = image.id().parse().unwrap();
        let manifest = self.store.manifest_of(&id).await.unwrap();
        assert_eq!(manifest.layers.len(), image.layers.len());
        for (layer, expected) in manifest.layers.iter().zip(&image.layers) {
            let mut reader = self.store.open_layer(&layer.digest).await.unwrap();
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).await.unwrap();
            assert!(bytes == *expected, "layer {}", layer.digest);
            assert_eq!(reader.size_bytes(), expected.len() as u64);
        }
        self.expect_honest_usage();
    }

    /// Checks the counters against the disk.
    pub(crate) fn expect_honest_usage(&self) {
        let (mut bytes, mut inodes) = (0, 1);
        let mut todo = vec![self.root().to_owned()];
        while let Some(directory) = todo.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                inodes += 1;
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                } else {
                    bytes += entry.metadata().unwrap().len();
                }
            }
        }
        let usage = self.store.usage();
        assert_eq!((usage.bytes, usage.inodes), (bytes, inodes), "counted, and on disk");
    }
}

/// Opens the store as soon as what the last one still had under way is done.
pub(crate) async fn open_when_free(config: &ImageStoreConfig) -> ImageStore {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match ImageStore::open(config.clone()).await {
            Ok(store) => return store,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The limits of a hurried test.
pub(crate) fn quick() -> Limits {
    Limits {
        idle: Duration::from_millis(400),
        attempts: 3,
        first_backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(50),
        ..Limits::default()
    }
}
