//! `plugin`: for those who write providers, and for operators who are given one. Neither daemon nor configuration of the node
//! is needed.

mod check;
mod host;
mod keygen;
mod new;
mod probe;
mod sign;
mod subject;
mod verify;

use clap::Subcommand;

/// What can be done with plugins.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Writes a crate with a provider that works, as a beginning for one of your own
    New(new::Arguments),
    /// Tests whether a plugin keeps the promises of the SDK
    Check(check::Arguments),
    /// Makes a key to sign plugins with
    Keygen(keygen::Arguments),
    /// Signs a plugin
    Sign(sign::Arguments),
    /// Says whether a trusted key signed a plugin
    Verify(verify::Arguments),
    /// Opens a plugin and ends: what `check` has a child process do first
    #[command(hide = true)]
    Probe(probe::Arguments),
    /// Runs a plugin for the daemon at the other end of standard input
    #[command(hide = true)]
    Host(host::Arguments),
}

/// Answers whether all is well; errors are what kept it from finding out.
pub(crate) fn run(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::New(arguments) => new::run(&arguments).map(|()| true),
        Command::Check(arguments) => check::run(&arguments),
        Command::Keygen(arguments) => keygen::run(&arguments),
        Command::Sign(arguments) => sign::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Probe(arguments) => probe::run(&arguments),
        Command::Host(arguments) => host::run(&arguments),
    }
}
