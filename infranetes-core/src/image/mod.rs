//! The node's image store: an OCI content store with one pull per image.
//!
//! It promises: content is what its digest says before it counts; concurrent pulls of one image are one
//! download; a download that was cut off continues where it stopped, also after a restart; a crash at any
//! moment leaves a store that opens; credentials go to the registry that they are for and nowhere else, and
//! are never shown; everything has a limit.
//!
//! It does not unpack layers (machines do, and check the `diff_id`s there), and it does not decide when
//! images go: the kubelet does.

mod config;
mod credentials;
mod digest;
mod disk;
mod download;
mod index;
mod info;
mod manifest;
mod platform;
mod pull;
mod pull_error;
mod read;
mod reference;
mod registry;
mod source;
mod state;
mod store;

pub use self::config::{
    Endpoint, EndpointCredentials, EndpointError, ImageStoreConfig, Limits, RegistriesConfig,
    RegistryConfig,
};
pub use self::credentials::{AuthFields, Credentials, CredentialsError, Secret};
pub use self::digest::{Digest, ImageId, ParseDigestError};
pub use self::index::IndexError;
pub use self::info::{ImageInfo, ImageUser, StoreUsage};
pub use self::manifest::{ImageConfig, ImageManifest, Layer, ManifestError};
pub use self::platform::Platform;
pub use self::pull_error::{PullError, PullFailure, PullPhase};
pub use self::read::{LayerCheck, LayerReader, ReadImageError};
pub use self::reference::{Reference, ReferenceError};
pub use self::store::{ImageHold, ImageStore, OpenImageStoreError, RemoveImageError};
