//! The pod network of a node, made by its CNI plugins.
//!
//! [`CniNetwork`] is the engine's [`PodNetwork`](infranetes_core::network::PodNetwork): for each sandbox it makes a network
//! namespace, pins it to a file, and runs the chain of plugins that the node's CNI configuration names, as a client of CNI's
//! specification 0.3.0 to 1.1 does (<https://www.cni.dev/docs/spec/>): ADD, CHECK and DEL, and of 1.1 STATUS and GC.
//!
//! # What it promises
//! - What a DEL needs is durable before the ADD begins: the configuration, the arguments, later the result. A DEL works after a
//!   crash at any moment, and when the node's configuration or the namespace is gone.
//! - A call to a plugin has a deadline, its output a bound; with its end, however it comes, its whole process group is gone. A
//!   plugin that outlived a daemon is ended before another is run for the same sandbox.
//! - Errors carry the plugin's name, code and words.
//! - The configuration is read anew for each sandbox: what changes counts from the next one on.
//!
//! # What it does not do
//! It attaches one network, the first configuration by name. A GC runs once after a start, and not where nothing is known that is to
//! stay: what a DEL has to remove is known from records, and a lost record must never cause a deletion.

mod capabilities;
mod care;
mod chain;
mod error;
mod layout;
mod list;
mod namespace;
mod network;
mod orphans;
mod plugin;
mod result;
mod state;
mod unhurried;

pub use network::{CniNetwork, CniSettings};
