//! Log lines, on standard error: for a terminal, or for whoever collects them.
//!
//! `error`: somebody has to act. `warn`: something is wrong and was handled. `info`: what an operator wants to know in normal
//! operation. `debug` and `trace` are for those who look for a fault.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts logging for the whole process. `INFRANETES_LOG`, where it is set, wins over the configuration.
pub fn start(log: &Log) {
    let level = std::env::var(VARIABLE).unwrap_or_else(|_| log.level.clone());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if started.is_err() {
        tracing::warn!("logging had been started before; the configuration of the log is not used");
    }
}

const VARIABLE: &str = "INFRANETES_LOG";
