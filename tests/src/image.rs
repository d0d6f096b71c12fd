//! Small images made here, and the push that brings them to a registry.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sha2::{Digest, Sha256};

use crate::layer::Layer;

/// An image in parts, ready to be pushed.
#[derive(Clone)]
pub struct TestImage {
    layers: Vec<(String, Vec<u8>)>,
    config: serde_json::Value,
    architecture: String,
}

impl TestImage {
    /// An image without a layer and without defaults.
    pub fn empty() -> TestImage {
        TestImage {
            layers: Vec::new(),
            config: serde_json::json!({}),
            architecture: "amd64".to_owned(),
        }
    }

    /// An image with one layer: Debian's static busybox with all its applets, and a few users.
    pub fn busybox() -> Result<TestImage> {
        let mut layer = Layer::busybox(&[])?;
        layer.file("etc/passwd", 0o644, PASSWD)?;
        layer.file("etc/group", 0o644, GROUP)?;
        let config = serde_json::json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
        TestImage::empty().with_config(config).with_layer(layer.finish()?)
    }

    /// Adds a layer on top, given as an uncompressed tar.
    pub fn with_layer(mut self, tar: Vec<u8>) -> Result<TestImage> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        gzip.write_all(&tar)?;
        self.layers.push((digest(&tar), gzip.finish()?));
        Ok(self)
    }

    /// Replaces the defaults for containers (`Env`, `Cmd`, `Entrypoint`, `User`, …).
    pub fn with_config(mut self, config: serde_json::Value) -> TestImage {
        self.config = config;
        self
    }

    /// Claims to be for another architecture.
    pub fn for_architecture(mut self, architecture: &str) -> TestImage {
        self.architecture = architecture.to_owned();
        self
    }

    /// Pushes to `HOST/REPOSITORY:TAG` and returns the manifest's digest.
    pub async fn push(&self, host: &str, repository: &str, tag: &str) -> Result<String> {
        let push = Push::new(host, repository);
        let manifest = self.write(async |blob: &[u8]| push.blob(blob).await).await?;
        push.manifest(tag, manifest).await
    }

    /// Writes an OCI image layout into an empty directory.
    pub async fn write_layout(&self, directory: &Path) -> Result<()> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let write = |blob: &[u8]| -> Result<String> {
            let digest = digest(blob);
            fs::write(blobs.join(digest.trim_start_matches("sha256:")), blob)?;
            Ok(digest)
        };
        let manifest = self.write(async |blob: &[u8]| write(blob)).await?;
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{ "mediaType": MANIFEST, "digest": write(&manifest)?, "size": manifest.len() }],
        });
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(fs::write(directory.join("index.json"), index.to_string())?)
    }

    /// Hands out layers and configuration, each of which gets a digest, and returns the manifest.
    async fn write(&self, mut put: impl AsyncFnMut(&[u8]) -> Result<String>) -> Result<Vec<u8>> {
        let mut layers = Vec::new();
        for (_, blob) in &self.layers {
            layers.push(serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": put(blob).await?, "size": blob.len(),
            }));
        }
        let config = serde_json::to_vec(&serde_json::json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": self.layers.iter().map(|(id, _)| id).collect::<Vec<_>>() },
        }))?;
        Ok(serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
                        "digest": put(&config).await?, "size": config.len() },
            "layers": layers,
        }))?)
    }
}

struct Push {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Push {
    fn new(host: &str, repository: &str) -> Push {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Push { base: format!("http://{host}/v2/{repository}"), client }
    }

    async fn blob(&self, blob: &[u8]) -> Result<String> {
        let digest = digest(blob);
        let begun =
            self.send("POST", &format!("{}/blobs/uploads/", self.base), "", Vec::new()).await?;
        let location = begun.context("the registry named no place for the upload")?;
        let joint = if location.contains('?') { '&' } else { '?' };
        let target = format!("{location}{joint}digest={digest}");
        self.send("PUT", &target, "application/octet-stream", blob.to_vec()).await?;
        Ok(digest)
    }

    async fn manifest(&self, tag: &str, manifest: Vec<u8>) -> Result<String> {
        let digest = digest(&manifest);
        self.send("PUT", &format!("{}/manifests/{tag}", self.base), MANIFEST, manifest).await?;
        Ok(digest)
    }

    /// Sends a request and returns the answer's Location.
    async fn send(
        &self,
        method: &str,
        uri: &str,
        kind: &str,
        body: Vec<u8>,
    ) -> Result<Option<String>> {
        let mut request = http::Request::builder().method(method).uri(uri);
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        let answer = tokio::time::timeout(PUSH_LIMIT, self.client.request(request)).await??;
        let status = answer.status();
        let location =
            answer.headers().get("location").and_then(|v| v.to_str().ok()).map(str::to_owned);
        if !status.is_success() {
            let body = answer.into_body().collect().await?.to_bytes();
            bail!("{method} {uri} answered {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(location)
    }
}

/// "sha256:…" of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &[u8] = b"root:x:0:\nwww-data:x:33:\nstaff:x:50:www-data\nnogroup:x:65534:\n";
const PUSH_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
