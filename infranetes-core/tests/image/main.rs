//! The image store against registries: a scripted one for what goes wrong, and Debian's for what is real.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod crash;
mod debian;
mod durable;
mod failures;
mod node;
mod pulls;
mod registry;
mod tls;
