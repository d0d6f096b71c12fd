//! `plugin host`: the process of a plugin with `isolation = "process"`. The daemon runs its own program so: it is always there,
//! and of the daemon's version, whatever was installed meanwhile.

use anyhow::Context;
use clap::Args;
use infranetes_loader::isolation;

/// What the daemon says; everything else comes over the socket.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The instance's name
    instance: String,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    isolation::serve(&arguments.instance).context("cannot run a plugin")?;
    Ok(true)
}
