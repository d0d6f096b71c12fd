//! Vets, loads and runs infranetes plugins.
//!
//! ```no_run
//! # async fn example() -> Result<(), infranetes_loader::LoadError> {
//! use infranetes_loader::{Loader, PluginSpec};
//!
//! let spec = PluginSpec::new("cheap", "/usr/lib/infranetes/libinfranetes_provider_qemu.so")
//!     .with_config_json(r#"{ "kernel": "/usr/lib/infranetes/guest/vmlinux" }"#);
//! let plugin = Loader::new().load(spec).await?;
//! let pods = plugin.pods().expect("qemu provides machines");
//! # drop(pods); Ok(()) }
//! ```
//!
//! # What it promises
//!
//! - A file is vetted before any of its code runs, in the order of [`LoadError`]'s variants; each refusal says what was
//!   expected, what was found and what to do.
//! - What comes out is `Arc<dyn PodProvider>` and so on: nobody can tell a loaded provider from a linked one.
//! - A provider that panics, blocks or forgets its deadline hurts nobody else; one that aborts the process, or corrupts
//!   memory, does: plugins are trusted code, unless they run in a process of their own ([`isolation`]).
//! - Code is never unmapped. Dropping a [`LoadedPlugin`] and all its providers ends the instance's threads.
//!
//! # What it does not do
//!
//! It reads no configuration files and has no list of plugins; that is the daemon's. It cannot prove that a damaged file
//! is harmless: pin its digest with [`PluginSpec::with_sha256`], or have it signed ([`Loader::with_trusted_keys`]).

mod elf;
mod error;
mod files;
pub mod isolation;
mod manifest;
#[cfg(test)]
mod mutation;
mod probe;
pub mod signature;
mod start;
mod vet;

pub use error::{LinkerSays, LoadError};
pub use manifest::Manifest;
pub use probe::{probe, probe_opened};
pub use start::{LoadedPlugin, Loader, PluginSpec};
pub use vet::{Trust, Vetted, sha256_of, vet, vet_with};
