//! `infranetes-cri`: reads its configuration, starts the daemon, and ends when it is told to.

mod check;
mod plugin;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use infranetes_cri::config::{Config, Overrides};
use infranetes_cri::daemon::Daemon;
use infranetes_cri::logging;
use tokio::signal::unix::{SignalKind, signal};

/// A Kubernetes CRI v1 runtime whose pods are machines.
#[derive(Parser)]
#[command(name = "infranetes-cri", version, about)]
struct Cli {
    /// The configuration file [default: /etc/infranetes/config.toml, which may be missing]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The socket that the kubelet dials, like unix:///run/infranetes/cri.sock
    #[arg(long, global = true, value_name = "URL")]
    listen: Option<String>,

    /// Directory of what has to survive the daemon
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Directory of provider instances
    #[arg(long, global = true, value_name = "DIR")]
    providers_dir: Option<PathBuf>,

    /// error, warn, info, debug, trace, or filter directives
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon; this is what happens without a command, too
    Serve,
    /// Says whether the configuration is right, and starts nothing
    CheckConfig,
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
            eprintln!("infranetes-cri: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Answers whether all is well.
fn run(cli: Cli) -> anyhow::Result<bool> {
    let command = match cli.command.unwrap_or(Command::Serve) {
        Command::Plugin(command) => return plugin::run(command),
        command => command,
    };
    let overrides = Overrides {
        listen: cli.listen,
        state_dir: cli.state_dir,
        providers_dir: cli.providers_dir,
        log_level: cli.log_level,
    };
    let config = Config::load(cli.config.as_deref(), &overrides)?;
    match command {
        Command::CheckConfig => check::check(&config)?,
        _ => serve(config)?,
    }
    Ok(true)
}

/// Two workers: the daemon waits for others nearly all of its time.
fn serve(config: Config) -> anyhow::Result<()> {
    logging::start(&config.log);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(WORKERS).thread_name("infranetes").enable_all().build();
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

const WORKERS: usize = 2;
