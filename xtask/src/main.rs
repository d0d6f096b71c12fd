//! Builds, runs and checks infranetes: `cargo xtask help`.
//!
//! One file per command; what several commands need stands beside them under its own noun.

mod check;
mod cpio;
mod debian;
mod demo;
mod guest;
mod new_provider;
mod product;
mod program;
mod progress;
mod setup;
mod skew;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

use crate::workspace::Workspace;

fn main() -> ExitCode {
    let command = Command::parse();
    match Workspace::find().and_then(|workspace| command.run(&workspace)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds, runs and checks infranetes.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Measures, side by side with what we stand on: `bench boot`, `bench abi`.
    Bench(demo::Arguments),
    /// Checks format, lints, the map of the crates and licences: the quick part of what CI runs.
    Check,
    /// Runs the conformance specs of CRI on the daemon: `conformance --provider process`.
    Conformance(demo::Arguments),
    /// Runs a pod in a real virtual machine, from nothing.
    Demo(demo::Arguments),
    /// Builds the guest image: a kernel and the initramfs with the agent.
    Guest(guest::Options),
    /// Writes a crate with a provider that works, to begin with: `new-provider NAME [DIR]`.
    NewProvider(new_provider::Options),
    /// Installs the Debian packages that the demo and the tests run; needs root, or sudo.
    Setup,
    /// Runs the simulated world: crashes at every point of a sandbox's life.
    Sim(demo::Arguments),
    /// Runs plugins of other compilers, profiles, dependencies and ABI minors in this host, as far as rustup has them.
    Skew(skew::Options),
    /// Runs all tests, real machines included.
    Test(test::Options),
    /// Checks what compilers do not: crate edges, the top level, file sizes, links, unfinished code.
    Tidy,
}

impl Command {
    fn run(&self, workspace: &Workspace) -> anyhow::Result<()> {
        match self {
            Command::Bench(arguments) => demo::bench(workspace, arguments),
            Command::Conformance(arguments) => demo::conformance(workspace, arguments),
            Command::Demo(arguments) => demo::demo(workspace, arguments),
            Command::Sim(arguments) => demo::sim(workspace, arguments),
            Command::Test(options) => test::run(workspace, options),
            Command::Check => check::run(workspace),
            Command::Guest(options) => guest::run(workspace, options),
            Command::NewProvider(options) => new_provider::run(workspace, options),
            Command::Setup => setup::run(workspace),
            Command::Skew(options) => skew::run(workspace, options),
            Command::Tidy => tidy::run(workspace),
        }
    }
}
