//! Cases that span the crates of infranetes, and their harness.
//!
//! What a case needs from outside stands in [`registry`] (a real one), [`image`], [`node`] (the real daemon as a process) and
//! [`footprint`] (what is left on the machine). The programs themselves are built before by `cargo xtask`.

pub mod anonymous;
pub mod author;
pub mod bench;
pub mod case;
pub mod client;
pub mod conformance;
pub mod containers;
pub mod demo;
pub mod footprint;
pub mod image;
pub mod kubelet;
pub mod layer;
pub mod namespaces;
pub mod network;
pub mod node;
pub mod registry;
pub mod sim;
pub mod streams;
pub mod stuck_kernel;
pub mod tutorial;
pub mod wait;
pub mod world;
