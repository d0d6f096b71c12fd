//! The only place that knows both CRI's words and the engine's.
//!
//! Requests are parsed here once: what comes out is valid, and what goes wrong names the field of CRI that is wrong. A wish
//! that cannot be granted is a [`Refusal`] that says so, never something that is left out: no container runs without a
//! mount, a device or a namespace that it asked for. Answers are made from what the node holds.

mod check;
mod container;
mod error;
mod event;
mod filter;
mod image;
mod info;
mod metrics;
mod mounts;
mod resources;
mod sandbox;
mod security;
mod signal;
mod stats;
mod status;
mod streams;

pub use self::container::{container_spec, exec_args, exec_timeout, stop_grace};
pub use self::error::{Refusal, fit_output, from_engine, from_kind, from_refusal};
pub use self::event::event;
pub use self::filter::{ContainerFilter, IdText, SandboxFilter};
pub use self::image::{credentials, image, image_reference, image_usage, pull_failed};
pub use self::info::{container_info, runtime_info, sandbox_info};
pub use self::metrics::{ContainerMetricsOf, metric_descriptors, sandbox_metrics};
pub use self::resources::{changed_resources, changed_size};
pub use self::sandbox::{pod_ranges, sandbox_spec};
pub use self::security::SeccompSource;
pub use self::stats::{ContainerUsage, SandboxUsage, container_stats, sandbox_stats};
pub use self::status::{container_item, container_status, nanos, sandbox_item, sandbox_status};
pub use self::streams::{attach_target, exec_target, port_forward_target};

#[cfg(test)]
mod tests;
