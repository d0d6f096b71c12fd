//! Runs pods as machines: the embeddable engine of infranetes.
//!
//! A *pod sandbox* is backed by a *machine*; an *agent* in it runs the *containers*. [`engine::Engine`] is the way in: it
//! owns one task per sandbox, writes a durable record before every call to a provider, and takes up its work again after a
//! crash. It knows neither CRI nor any provider: machines come from an `Arc<dyn PodProvider>` of `infranetes-sdk`,
//! agents are reached through [`session::AgentConnector`], and time is tokio's, so that a whole node runs in one test.

pub mod engine;
pub mod error;
pub mod ids;
pub mod image;
pub mod logs;
pub mod mounts;
pub mod network;
pub mod record;
pub mod session;
pub mod spec;
pub mod stats;
pub mod status;

#[cfg(test)]
mod testing;
