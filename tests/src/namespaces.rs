//! Namespaces of a run's own: its addresses, ports, bridges and mounts are nobody else's, and end with it, whatever happens.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Returns within new namespaces for network and mounts, with loopback up. The program is run once more for that, so this
/// has to come before anything else.
pub fn enter() -> Result<()> {
    if std::env::var_os(INSIDE).is_none() {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "private", "--"]);
        command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
        return Err(command.exec()).context("`unshare` does not run; it is in Debian's util-linux");
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    ensure!(up.context("`ip` does not run; it is in Debian's iproute2")?.success(), "no loopback");
    Ok(())
}

const INSIDE: &str = "INFRANETES_INSIDE_ITS_NAMESPACES";
