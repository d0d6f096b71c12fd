//! Talking to registries: HTTP, who asks, and what is worth another try.

mod attempt;
mod auth;
mod endpoint;
mod http;

pub(super) use self::attempt::{Attempt, Attempts, Transient};
pub(super) use self::endpoint::{RegistryEndpoint, read_bounded};
pub(super) use self::http::HttpClients;
