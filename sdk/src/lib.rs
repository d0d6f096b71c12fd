//! Write a provider for infranetes: the traits, their types and the plugin export.
//!
//! infranetes runs Kubernetes pods as machines. What makes the machines is a *provider*: a cloud, a hypervisor, anything that
//! can boot a guest. A provider implements one or more of [`PodProvider`] (machines), [`ContainerProvider`] (containers in a
//! machine) and [`VolumeProvider`] (disks that outlive a pod), and is started by a [`Plugin`], which
//! [`export_provider!`] makes a shared library of. `infranetes-cri plugin new NAME` writes such a crate, and
//! `infranetes-cri plugin check FILE.so` tests what comes out.
//!
//! # A provider
//!
//! This one has no machines yet, and is honest about it: what it leaves out answers [`ErrorKind::Unsupported`].
//!
//! ```
//! use infranetes_sdk::pod::{DescribePodRequest, GetRequest, Machine, PodCapabilities};
//! use infranetes_sdk::{
//!     CallContext, ErrorKind, Host, Plugin, PodProvider, ProviderError, Providers, Result, TracingServices,
//!     async_trait, export_provider,
//! };
//! use std::sync::Arc;
//!
//! /// The `[config]` table of an instance.
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     region: String,
//! }
//!
//! struct Cloud {
//!     region: String,
//! }
//!
//! #[async_trait]
//! impl Plugin for Cloud {
//!     type Config = Config;
//!
//!     async fn start(_host: Host, config: Config) -> Result<Providers> {
//!         if config.region.is_empty() {
//!             return Err(ProviderError::invalid("the region is empty"));
//!         }
//!         Ok(Providers::default().with_pods(Cloud { region: config.region }))
//!     }
//! }
//!
//! #[async_trait]
//! impl PodProvider for Cloud {
//!     async fn describe(&self, _: CallContext, _: DescribePodRequest) -> Result<PodCapabilities> {
//!         Ok(PodCapabilities { architectures: vec!["arm64".into()], ..PodCapabilities::default() })
//!     }
//!
//!     async fn get(&self, _: CallContext, request: GetRequest) -> Result<Machine> {
//!         let place = &self.region;
//!         Err(ProviderError::not_found(format!("there is no machine {:?} in {place}", request.id)))
//!     }
//! }
//!
//! export_provider!(Cloud);
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
//! # runtime.block_on(async {
//! // A test starts it without any plugin file.
//! let host = Host::new("test", None, Arc::new(TracingServices));
//! let config = Config { region: "north".into() };
//! let providers = <Cloud as Plugin>::start(host, config).await?;
//! let pods = providers.pods.expect("it provides machines");
//! let context = CallContext::new("request-1");
//! let error = pods.get(context, GetRequest { id: "m-1".into() }).await.unwrap_err();
//! assert_eq!(error.kind, ErrorKind::NotFound);
//! assert_eq!(error.message, "there is no machine \"m-1\" in north");
//! # Ok::<(), ProviderError>(()) }).unwrap();
//! ```
//!
//! # A tour
//!
//! - **Promises** stand in the documentation of each trait and method: what a repetition does, which error an unknown id
//!   gets, what a call that is cut off may leave behind. The suite `infranetes-conformance` tests them, one line each.
//! - **Messages** are in [`pod`], [`container`] and [`volume`]. Each field says its meaning; the unit is the end of its name
//!   (`memory_bytes`, `grace_ms`). An empty string, 0 or an absent message is "not said". A later SDK may have more fields:
//!   a message that ends with `..Default::default()` compiles there, too.
//! - **[`CallContext`]** travels beside every call: whose wish it is, and how long the caller waits. A call that is dropped, or
//!   past its deadline, ends at its next `.await`; what exists then has to show in `list` or `sweep`.
//! - **[`ProviderError`]** has a kind, which decides what the caller does next, advice on when to ask again, the cloud's own
//!   code, and the chain of causes.
//! - **[`stream`]** has what consoles, logs and exec answer with: bounded queues, which end at their first error, and whose producer
//!   is told when the reader is gone.
//! - **[`Host`]** is the other side: a state directory, log lines, metrics, secrets. `tracing` and `log` arrive there by themselves.
//! - **The runtime** of a loaded plugin is its own tokio runtime: spawn, timers, sockets and child processes work. What blocks
//!   belongs into `spawn_blocking`. A panic is an error of the call in which it happened.
//!
//! Methods are only ever added, and what a provider does not know it answers as `Unsupported`: a plugin need not be rebuilt
//! for a newer host. `docs/abi.md` in the repository says what is promised about versions.
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

/// Version 1 of the messages that cross the plugin boundary. Their documentation is that of the definitions in `proto/`, where a
/// message, field or value without a comment is a lint here.
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/infranetes.provider.v1.rs"));
}
