//! How typed calls travel through the boundary: the plugin's side, the host's side, and what both share.
//!
//! Not for authors: the loader uses it, and [`export_provider!`](crate::export_provider) expands to it. It follows the
//! SDK's version, not the ABI's.
//!
//! ```text
//!   Arc<dyn PodProvider> (proxy, made by `provider!`)
//!        │ typed messages
//!     Remote ── encode, header, backstop of the deadline
//!        │ RawRequest, FfiFuture, StreamBox           ═══ the boundary ═══
//!     Served ── decode, route, spawn on the plugin's own runtime, deadline, panics
//!        │ typed messages
//!   Arc<dyn PodProvider> (the author's)
//! ```
//!
//! Host services take the same way in the other direction.

mod entry;
mod forward;
mod host;
mod remote;
mod served;
mod stream;
mod task;
mod wire;

pub use entry::{Entry, Export, MANIFEST_RUSTC, MANIFEST_TARGET, SDK_VERSION, start_linked};
pub use host::HostEndpoint;
pub use infranetes_abi as abi;
pub use remote::{MESSAGE_BYTES_MAX, Remote};

pub(crate) use served::unknown;
pub(crate) use wire::{decode, decode_stream, encode_stream};

pub use crate::provider::{RemoteContainers, RemotePods, RemoteVolumes};
