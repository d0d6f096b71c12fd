//! `cargo xtask conformance` runs this, with everything built before.
//!
//! It runs itself once more in namespaces of its own for network and mounts, which end with it: hosts' ports, bridges and
//! mounts of a run are nobody else's, whatever happens.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Parser;
use infranetes_tests::conformance::{self, Options};

fn main() -> Result<()> {
    let options = Options::parse();
    if std::env::var_os(INSIDE).is_none() {
        return Err(enter()).context("`unshare` does not run; it is in Debian's util-linux");
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    anyhow::ensure!(up.context("`ip` does not run")?.success(), "loopback cannot be used");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(conformance::run(&options))
}

/// Returns only on failure.
fn enter() -> std::io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "--"]).arg(program);
    command.args(std::env::args_os().skip(1)).env(INSIDE, "1").exec()
}

const INSIDE: &str = "INFRANETES_CONFORMANCE_INSIDE";
