//! `infranetes-cri`: reads its configuration, starts the daemon, and ends when it is told to.

mod check;
mod options;
mod output;
mod plugin;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use infranetes_cri::config::Config;
use infranetes_cri::daemon::Daemon;
use infranetes_cri::logging;
use options::Options;
use tokio::signal::unix::{SignalKind, signal};

/// A Kubernetes CRI v1 runtime whose pods are machines.
#[derive(Parser)]
#[command(name = "infranetes-cri", version, about)]
struct Cli {
    #[command(flatten)]
    options: Options,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon; this is what happens without a command, too
    Serve(Options),
    /// Says whether the configuration is right, and starts nothing
    CheckConfig(Options),
    /// Writes, tests and looks at provider plugins
    #[command(subcommand)]
    Plugin(plugin::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        // What is wrong is said already.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // There is nobody else to tell.
            let _ = writeln!(std::io::stderr(), "infranetes-cri: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Answers whether all is well.
fn run(cli: Cli) -> anyhow::Result<bool> {
    let Cli { options, command } = cli;
    match command {
        None => serve(options.load()?)?,
        Some(Command::Serve(own)) => serve(own.over(options).load()?)?,
        Some(Command::CheckConfig(own)) => check::check(&own.over(options).load()?)?,
        Some(Command::Plugin(command)) => {
            if options != Options::default() {
                let said = "options of the daemon mean nothing to `plugin`: give its own behind it";
                Cli::command().error(ErrorKind::ArgumentConflict, said).exit();
            }
            return plugin::run(command);
        }
    }
    Ok(true)
}

fn serve(config: Config) -> anyhow::Result<()> {
    logging::start(&config.log);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(workers()).thread_name("infranetes").enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        // From here on a signal ends the daemon in order, also while it starts.
        let end = end_signal().context("cannot listen for signals")?;
        tokio::pin!(end);
        let daemon = tokio::select! {
            daemon = Daemon::start(config, BTreeMap::new()) => daemon?,
            () = &mut end => return Ok(()),
        };
        daemon.serve(end).await?;
        anyhow::Ok(())
    });
    // What is left are plugins' calls and files being read: none of it is waited for.
    runtime.shutdown_background();
    result
}

/// The daemon waits for others nearly all of its time, so it needs few workers: a second one makes a short answer no sooner, and
/// on a small node it only takes a core from whoever asked.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2).clamp(1, WORKERS_MAX)
}

/// Ends with the first SIGTERM or SIGINT.
fn end_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

const WORKERS_MAX: usize = 2;
