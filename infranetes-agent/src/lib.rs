//! Runs the containers of a pod in its machine, for infranetes.
//!
//! The node dials; the agent serves. At first it knows a one-time token and nothing else, and serves enrolment alone
//! ([`identity`]); afterwards it serves the `Agent` service over mutual TLS to the node whose CA its user-data named.
//! Containers are run by a `ContainerProvider` of `infranetes-sdk`, loaded as a plugin ([`plugins`]) or handed in; this
//! crate dispatches and converts ([`server`]), and owns what belongs to the machine as a whole: hostname, DNS, sysctls,
//! orphaned processes, power.
//!
//! # Invariants
//! - Before enrolment nobody is answered who does not prove the token; after it nobody without a client certificate of the
//!   node's CA.
//! - The private key is born here and never leaves; the token is forgotten when it was used.
//! - Whatever a peer or a plugin can send has a bound.

pub mod args;
pub mod boot;
pub mod identity;
pub mod interfaces;
pub mod invitation;
pub mod isolate;
mod key;
pub mod lines;
pub mod listener;
pub mod machine;
mod meeting;
pub mod netlink;
pub mod pause;
pub mod plugins;
pub mod program;
pub mod reaper;
mod renewal;
pub mod run;
pub mod server;
pub mod times;
pub mod volumes;
