//! The documents of an image, read once and checked: what comes out needs no more doubts.
//!
//! Reads OCI manifests, indexes and configurations and those of Docker's schema 2. Artifacts that are no
//! container images, foreign layers and Docker's schema 1 are refused by name.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::digest::{Digest, ImageId};
use super::platform::Platform;

/// An image as a machine needs it: the layers and the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// The digest of the image's configuration.
    pub id: ImageId,
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// What the image says about the program in it.
    pub config: ImageConfig,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the layer as it is stored and sent.
    pub digest: Digest,
    /// The digest of the unpacked tar archive; checked where it is unpacked.
    pub diff_id: Digest,
    /// Bytes as stored and sent.
    pub size_bytes: u64,
    /// Says how the layer is compressed.
    pub media_type: String,
}

/// What an image says about the program in it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// The operating system that the program is for.
    pub os: String,
    /// The architecture that the program is for.
    pub architecture: String,
    /// The variant of the architecture, where it has variants.
    pub variant: Option<String>,
    /// The first words of the command line.
    pub entrypoint: Vec<String>,
    /// The words after them, or the whole command line if there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value` each. Not shown by `Debug`, because people do put secrets here.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or empty.
    pub user: String,
    /// Where the program starts; empty means `/`.
    pub working_dir: String,
    /// The signal that asks the program to end, if it is not SIGTERM.
    pub stop_signal: Option<String>,
    /// Directories that the image wants on volumes.
    pub volumes: Vec<String>,
    /// Free-form.
    pub labels: BTreeMap<String, String>,
}

/// Why documents make no image that can be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that it should be.
    #[error("the {what} is not valid: {why}")]
    Malformed {
        /// The document.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Docker's first format, which has no digests of its own.
    #[error(
        "the image is in Docker's schema 1, which is obsolete and not supported: push it again with a current tool"
    )]
    Schema1,
    /// Something else than a container image.
    #[error(
        "{what} of the media type {media_type:?} is not supported: it is no part of a container image"
    )]
    MediaType {
        /// The document or the layer.
        what: &'static str,
        /// Its type.
        media_type: String,
    },
    /// An image for other machines.
    #[error("the image is for {}, and the machines here are {wanted}", list(.exists))]
    OtherPlatform {
        /// What the machines are.
        wanted: Platform,
        /// What the image is for.
        exists: Vec<Platform>,
    },
    /// Over a limit.
    #[error("the image has {what} of {size}, and at most {limit} are accepted")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        size: u64,
        /// How much there may be.
        limit: u64,
    },
}

/// A manifest document: an image, or a list of images.
#[derive(Debug)]
pub(crate) enum Document {
    Image(Manifest),
    Index(Vec<IndexEntry>),
}

/// The manifest of one image, checked but not yet paired with its configuration.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) media_type: String,
}

#[derive(Debug, Clone)]
pub(crate) struct IndexEntry {
    pub(crate) target: Descriptor,
    pub(crate) platform: Option<Platform>,
}

/// What manifests are asked for with.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+";

const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

const LAYERS: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

impl Document {
    /// Reads a manifest or an index. `content_type` is what the registry called it; the document's own
    /// word, if it has one, decides.
    pub(crate) fn parse(
        bytes: &[u8],
        content_type: Option<&str>,
    ) -> Result<Document, ManifestError> {
        let wire: wire::Document = from_json("manifest", bytes)?;
        let media_type = wire.media_type.as_deref().or(content_type).unwrap_or_default();
        if wire.schema_version == 1 || media_type.starts_with(DOCKER_SCHEMA1) {
            return Err(ManifestError::Schema1);
        }
        match media_type {
            OCI_INDEX | DOCKER_LIST => Document::index(wire),
            OCI_MANIFEST | DOCKER_MANIFEST => Document::image(wire),
            // OCI lets the media type be absent, and plain JSON is what simple servers say.
            "" | "application/json" | "application/octet-stream" if wire.manifests.is_some() => {
                Document::index(wire)
            }
            "" | "application/json" | "application/octet-stream" => Document::image(wire),
            other => Err(unsupported("a manifest", other)),
        }
    }

    fn image(wire: wire::Document) -> Result<Document, ManifestError> {
        let (Some(config), Some(layers)) = (wire.config, wire.layers) else {
            return Err(malformed("manifest", "it has no config or no layers"));
        };
        if !CONFIGS.contains(&config.media_type.as_str()) {
            return Err(unsupported("a config", &config.media_type));
        }
        let layers = layers.into_iter().map(Descriptor::parse).collect::<Result<Vec<_>, _>>()?;
        if let Some(odd) = layers.iter().find(|layer| !LAYERS.contains(&layer.media_type.as_str()))
        {
            return Err(unsupported("a layer", &odd.media_type));
        }
        let annotations = wire.annotations.unwrap_or_default();
        Ok(Document::Image(Manifest { config: Descriptor::parse(config)?, layers, annotations }))
    }

    fn index(wire: wire::Document) -> Result<Document, ManifestError> {
        let entries = wire.manifests.ok_or_else(|| malformed("index", "it lists no manifests"))?;
        let entry = |entry: wire::Descriptor| {
            let platform = entry.platform.clone().map(|platform| Platform {
                os: platform.os,
                architecture: platform.architecture,
                variant: platform.variant.filter(|variant| !variant.is_empty()),
            });
            Ok(IndexEntry { target: Descriptor::parse(entry)?, platform })
        };
        Ok(Document::Index(entries.into_iter().map(entry).collect::<Result<_, _>>()?))
    }
}

/// The entry of an index that suits `wanted` best.
pub(crate) fn choose<'a>(
    entries: &'a [IndexEntry],
    wanted: &Platform,
) -> Result<&'a Descriptor, ManifestError> {
    // Earlier entries win among equals, as everywhere else.
    let best = entries.iter().rev().filter_map(|entry| {
        let score = wanted.suits(entry.platform.as_ref()?)?;
        Some((score, &entry.target))
    });
    if let Some((_, target)) = best.max_by_key(|(score, _)| *score) {
        return Ok(target);
    }
    // One image without a platform: its configuration will tell.
    if let [IndexEntry { target, platform: None }] = entries {
        return Ok(target);
    }
    let known = |platform: &Platform| platform.os != "unknown";
    let exists = entries.iter().filter_map(|entry| entry.platform.clone()).filter(known).collect();
    Err(ManifestError::OtherPlatform { wanted: wanted.clone(), exists })
}

impl Manifest {
    /// Pairs the manifest with the bytes of its configuration.
    pub(crate) fn with_config(&self, bytes: &[u8]) -> Result<ImageManifest, ManifestError> {
        let config: wire::Config = from_json("image configuration", bytes)?;
        if config.rootfs.diff_ids.len() != self.layers.len() {
            let why = "it names another number of layers than the manifest";
            return Err(malformed("image configuration", why));
        }
        let layers = self.layers.iter().zip(&config.rootfs.diff_ids).map(|(layer, diff_id)| {
            let diff_id = diff_id
                .parse()
                .map_err(|_| malformed("image configuration", "a diff_id is not a digest"))?;
            Ok(Layer {
                digest: layer.digest.clone(),
                diff_id,
                size_bytes: layer.size,
                media_type: layer.media_type.clone(),
            })
        });
        Ok(ImageManifest {
            id: ImageId::new(self.config.digest.clone()),
            layers: layers.collect::<Result<_, _>>()?,
            config: config.into(),
        })
    }

    /// Every blob that the image needs besides its manifest, each once.
    pub(crate) fn blobs(&self) -> Vec<&Descriptor> {
        let mut blobs: Vec<&Descriptor> = Vec::with_capacity(self.layers.len() + 1);
        for blob in std::iter::once(&self.config).chain(&self.layers) {
            if !blobs.iter().any(|known| known.digest == blob.digest) {
                blobs.push(blob);
            }
        }
        blobs
    }
}

impl ImageConfig {
    /// The platform that the image is for.
    pub(crate) fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

impl Descriptor {
    fn parse(wire: wire::Descriptor) -> Result<Descriptor, ManifestError> {
        let digest =
            wire.digest.parse().map_err(|_| malformed("manifest", "it has a bad digest"))?;
        let size =
            wire.size.try_into().map_err(|_| malformed("manifest", "it has a negative size"))?;
        Ok(Descriptor { digest, size, media_type: wire.media_type })
    }
}

impl fmt::Debug for ImageConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageConfig")
            .field("platform", &format_args!("{}", self.platform()))
            .field("entrypoint", &self.entrypoint)
            .field("cmd", &self.cmd)
            .field("env", &format_args!("({} hidden)", self.env.len()))
            .field("user", &self.user)
            .field("working_dir", &self.working_dir)
            .finish_non_exhaustive()
    }
}

impl From<wire::Config> for ImageConfig {
    fn from(wire: wire::Config) -> ImageConfig {
        let run = wire.config.unwrap_or_default();
        ImageConfig {
            os: wire.os,
            architecture: wire.architecture,
            variant: wire.variant.filter(|variant| !variant.is_empty()),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: run.volumes.unwrap_or_default().into_keys().collect(),
            labels: run.labels.unwrap_or_default(),
        }
    }
}

fn from_json<'a, T: Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T, ManifestError> {
    // Where, and not what: serde's sentences quote values, and those may be secrets of the image.
    serde_json::from_slice(bytes).map_err(|error| ManifestError::Malformed {
        what,
        why: format!("line {}, column {}", error.line(), error.column()),
    })
}

fn malformed(what: &'static str, why: &str) -> ManifestError {
    ManifestError::Malformed { what, why: why.to_owned() }
}

fn unsupported(what: &'static str, media_type: &str) -> ManifestError {
    ManifestError::MediaType { what, media_type: media_type.chars().take(128).collect() }
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "no platform that it names".to_owned();
    }
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The JSON as it travels. Unknown fields are skipped: the formats grow.
mod wire {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Document {
        pub(super) schema_version: u32,
        pub(super) media_type: Option<String>,
        pub(super) config: Option<Descriptor>,
        pub(super) layers: Option<Vec<Descriptor>>,
        pub(super) manifests: Option<Vec<Descriptor>>,
        pub(super) annotations: Option<BTreeMap<String, String>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Descriptor {
        #[serde(default)]
        pub(super) media_type: String,
        pub(super) digest: String,
        pub(super) size: i64,
        pub(super) platform: Option<Platform>,
    }

    #[derive(Deserialize, Clone)]
    pub(super) struct Platform {
        #[serde(default)]
        pub(super) os: String,
        #[serde(default)]
        pub(super) architecture: String,
        pub(super) variant: Option<String>,
    }

    #[derive(Deserialize)]
    pub(super) struct Config {
        #[serde(default)]
        pub(super) os: String,
        #[serde(default)]
        pub(super) architecture: String,
        pub(super) variant: Option<String>,
        pub(super) config: Option<Run>,
        pub(super) rootfs: RootFs,
    }

    #[derive(Deserialize)]
    pub(super) struct RootFs {
        pub(super) diff_ids: Vec<String>,
    }

    #[derive(Deserialize, Default)]
    #[serde(rename_all = "PascalCase")]
    pub(super) struct Run {
        pub(super) user: Option<String>,
        pub(super) env: Option<Vec<String>>,
        pub(super) entrypoint: Option<Vec<String>>,
        pub(super) cmd: Option<Vec<String>>,
        pub(super) working_dir: Option<String>,
        pub(super) stop_signal: Option<String>,
        pub(super) volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
        pub(super) labels: Option<BTreeMap<String, String>>,
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
