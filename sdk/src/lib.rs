//! Write a provider for infranetes: the traits, their types and the plugin export.
//!
//! A provider implements one or more of [`PodProvider`] (machines), [`ContainerProvider`] (containers in a machine)
//! and [`VolumeProvider`] (disks that outlive a pod), and is started by a [`Plugin`]. Each method's documentation
//! lists its promises; the conformance suite (`infranetes-conformance`) tests them.
//!
//! Messages live in [`pod`], [`container`] and [`volume`]; errors are [`ProviderError`]s with a kind and advice on
//! retries; a method that is not implemented answers [`ErrorKind::Unsupported`].
//!
//! This crate knows nothing of nodes, agents or CRI.

#[doc(hidden)]
pub mod bridge;
pub mod container;
mod context;
mod error;
mod plugin;
pub mod pod;
mod provider;
mod redact;
pub mod stream;
pub mod volume;

pub use async_trait::async_trait;
pub use context::CallContext;
pub use error::{ErrorKind, ProviderError, Result, RetryAdvice};
pub use futures::{Stream, StreamExt};
pub use plugin::{Host, HostServices, LogLevel, Plugin, Providers, Secret, TracingServices};
pub use provider::{ContainerProvider, PodProvider, VolumeProvider};
pub use stream::BoxStream;

/// Version 1 of the messages that cross the plugin boundary.
#[expect(missing_docs, reason = "generated from the commented definitions in `proto/`")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/infranetes.provider.v1.rs"));
}
