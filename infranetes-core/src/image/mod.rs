//! The node's image store: an OCI content store with one pull per image.
//!
//! It promises: content is what its digest says before it counts; concurrent pulls of one image are one
//! download; a download that was cut off continues where it stopped, also after a restart; a crash at any
//! moment leaves a store that opens; credentials go to the registry that they are for and nowhere else, and
//! are never shown; everything has a limit.
//!
//! It does not unpack layers (machines do, and check the `diff_id`s there), and it does not decide when
//! images go: the kubelet does.
//!
//! The store itself, `ImageStore`, is a cheap handle to clone:
//!
//! ```text
//! async fn open(ImageStoreConfig) -> Result<ImageStore, OpenImageStoreError>
//! async fn pull(&self, reference: &str, Option<Credentials>) -> Result<ImageId, PullError>
//! fn status(&self, reference_or_id: &str) -> Option<ImageInfo>
//! fn list(&self) -> Vec<ImageInfo>
//! fn usage(&self) -> StoreUsage
//! async fn remove(&self, reference_or_id: &str) -> Result<(), RemoveImageError>
//! async fn manifest_of(&self, &ImageId) -> Result<ImageManifest, ReadImageError>
//! async fn open_layer(&self, &Digest) -> Result<LayerReader, ReadImageError>   // LayerReader: AsyncRead
//! fn hold(&self, &ImageId) -> Option<ImageHold>   // while it lives, removal keeps the image's layers
//! ```

#![expect(dead_code, reason = "the store that uses the rest lands next")]

mod config;
mod credentials;
mod digest;
mod info;
mod manifest;
mod platform;
mod pull_error;
mod reference;

pub use self::config::{
    Endpoint, EndpointCredentials, EndpointError, ImageStoreConfig, Limits, RegistriesConfig,
    RegistryConfig,
};
pub use self::credentials::{AuthFields, Credentials, CredentialsError, Secret};
pub use self::digest::{Digest, ImageId, ParseDigestError};
pub use self::info::{ImageInfo, ImageUser, StoreUsage};
pub use self::manifest::{ImageConfig, ImageManifest, Layer, ManifestError};
pub use self::platform::Platform;
pub use self::pull_error::{PullError, PullFailure, PullPhase};
pub use self::reference::{Reference, ReferenceError};
