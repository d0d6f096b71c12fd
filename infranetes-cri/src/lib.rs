//! The infranetes daemon: a Kubernetes CRI v1 runtime whose pods are machines.
//!
//! - [`api`]: CRI as it is on the wire.
//! - [`config`]: what an operator says, as types.
//! - [`convert`]: the only place that knows both CRI's words and the engine's.
//! - [`service`]: CRI's two services, one line for each RPC.
//! - [`streaming`]: exec, attach and port-forward, for whoever has a link.
//! - [`daemon`]: what is started in which order.
//!
//! All that is done with machines is `infranetes-core`'s; this crate wires and translates.

pub mod api;
pub mod config;
pub mod convert;
pub mod daemon;
pub mod logging;
pub mod service;
pub mod streaming;

/// An error and its causes in one line, as people are used to read them: "cannot X: cannot Y: no such file".
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    for _ in 0..MAX_CAUSES {
        let Some(cause) = next else { break };
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// A chain of causes is cut here, so that a cycle cannot make it endless.
const MAX_CAUSES: usize = 16;
