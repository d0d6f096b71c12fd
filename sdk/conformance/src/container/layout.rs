//! An image for the suite out of an OCI image layout, as `skopeo copy docker://busybox oci:DIR` writes it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use infranetes_sdk::container::{Image, Layer};
use serde_json::Value;

use super::ContainerSubject;

/// Why a directory is no image layout that the suite can use.
#[derive(Debug)]
pub enum LayoutError {
    /// A file of it cannot be read.
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of it says something else than expected.
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl std::fmt::Display for LayoutError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read { file, .. } => write!(f, "cannot read {}", file.display()),
            Self::Content { file, problem } => write!(f, "{}: {problem}", file.display()),
        }
    }
}

impl std::error::Error for LayoutError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Content { .. } => None,
        }
    }
}

impl ContainerSubject {
    /// The image of an OCI image layout that has exactly one: an `index.json` that names one manifest, and its blobs. An
    /// index of several platforms is refused, because nobody says which one is meant. Shell and path are as in
    /// [`ContainerSubject::new`].
    pub fn from_oci_layout(directory: &Path) -> Result<Self, LayoutError> {
        let index = Document::read(directory.join("index.json"))?;
        let manifests = index.array("manifests")?;
        let [manifest] = manifests else {
            return Err(
                index.wrong(format!("it names {} manifests instead of one", manifests.len()))
            );
        };
        let manifest = Document::read(blob(directory, &index, manifest)?)?;
        let config_digest = manifest.text(&manifest.value["config"], "digest")?.to_owned();
        let config = Document::read(blob(directory, &manifest, &manifest.value["config"])?)?;
        let diff_ids = match config.value["rootfs"]["diff_ids"].as_array() {
            Some(diff_ids) => diff_ids,
            None => return Err(config.wrong("it has no rootfs.diff_ids")),
        };
        let layers = manifest.array("layers")?;
        if layers.len() != diff_ids.len() {
            let counts = format!("{} layers have {} diff_ids", layers.len(), diff_ids.len());
            return Err(config.wrong(counts));
        }
        let mut image = Image { id: config_digest, layers: Vec::new() };
        let mut blobs = HashMap::new();
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let bytes = read(blob(directory, &manifest, layer)?)?;
            let layer = Layer {
                digest: manifest.text(layer, "digest")?.to_owned(),
                diff_id: diff_id.as_str().unwrap_or_default().to_owned(),
                size_bytes: bytes.len() as u64,
                media_type: manifest.text(layer, "mediaType")?.to_owned(),
            };
            blobs.insert(layer.digest.clone(), bytes);
            image.layers.push(layer);
        }
        Ok(Self::new(image, blobs))
    }
}

struct Document {
    file: PathBuf,
    value: Value,
}

impl Document {
    fn read(file: PathBuf) -> Result<Self, LayoutError> {
        let bytes = read(file.clone())?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Self { file, value }),
            Err(error) => Err(LayoutError::Content { file, problem: format!("no JSON: {error}") }),
        }
    }

    fn array(&self, key: &str) -> Result<&[Value], LayoutError> {
        let array = self.value[key].as_array();
        array.map(Vec::as_slice).ok_or_else(|| self.wrong(format!("it has no {key}")))
    }

    fn text<'v>(&self, value: &'v Value, key: &str) -> Result<&'v str, LayoutError> {
        value[key].as_str().ok_or_else(|| self.wrong(format!("a descriptor has no {key}")))
    }

    fn wrong(&self, problem: impl Into<String>) -> LayoutError {
        LayoutError::Content { file: self.file.clone(), problem: problem.into() }
    }
}

/// Where the blob of a descriptor lies.
fn blob(directory: &Path, of: &Document, descriptor: &Value) -> Result<PathBuf, LayoutError> {
    let digest = of.text(descriptor, "digest")?;
    // It becomes a path: nothing but a digest may do so.
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(directory.join("blobs/sha256").join(hex))
        }
        _ => Err(of.wrong(format!("{digest:?} is no SHA-256 digest"))),
    }
}

fn read(file: PathBuf) -> Result<Vec<u8>, LayoutError> {
    std::fs::read(&file).map_err(|source| LayoutError::Read { file, source })
}
