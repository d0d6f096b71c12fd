//! Messages between an infranetes node and the agent in a machine, and nothing else.
//!
//! The definitions, with the meaning of every field, stand in `proto/infranetes/agent/v1/agent.proto`.
//!
//! # When you change the protocol
//! Only add fields and methods. When a node must not use a new thing with an older agent, raise [`PROTOCOL`] and let the
//! node look at the version that `Hello` agreed on. [`OLDEST_PROTOCOL`] stays two versions behind: machines outlive
//! upgrades of the daemon.

mod user_data;

pub use user_data::{USER_DATA_VERSION, UserData};

/// The newest version of the protocol that this crate speaks.
pub const PROTOCOL: u32 = 1;

/// The oldest version of the protocol that this crate still serves.
pub const OLDEST_PROTOCOL: u32 = 1;

/// TLS application protocol (ALPN) of the first connection to a machine, which enrols its agent.
pub const MEETING_PROTOCOL: &[u8] = b"infranetes-meeting/1";

/// TLS application protocol of every later connection: HTTP/2, for gRPC.
pub const SESSION_PROTOCOL: &[u8] = b"h2";

/// The most bytes that a message of the first connection may have, in either direction.
pub const MEETING_MESSAGE_BYTES_MAX: usize = 32 * 1024;

/// TLS exporter label that binds an enrolment to its connection (RFC 5705); 32 bytes, no context.
pub const ENROLMENT_EXPORTER_LABEL: &[u8] = b"EXPORTER-infranetes-enrolment";

/// What the node's enrolment proof covers before the channel's keying material.
pub const NODE_PROOF_PREFIX: &[u8] = b"infranetes node";

/// What the agent's enrolment proof covers before the channel's keying material.
pub const AGENT_PROOF_PREFIX: &[u8] = b"infranetes agent";

/// The most bytes that one message may have, in either direction.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Version 1 of the messages.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::large_enum_variant,
    clippy::allow_attributes_without_reason,
    reason = "generated from the commented definitions"
)]
pub mod v1 {
    tonic::include_proto!("infranetes.agent.v1");
}
