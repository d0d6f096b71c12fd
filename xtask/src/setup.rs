//! Installs the Debian packages that the demo, the tests and the benchmarks run.

use anyhow::Result;

use crate::debian;
use crate::workspace::Workspace;

/// Does nothing when all are installed.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    debian::ensure(workspace, &PACKAGES)
}

/// The machines, the containers of the process provider, a registry to pull from, what is in the test image, and what the tests of
/// pod networks run: plugins, the firewall that one of them writes, and the programs that set up and show interfaces.
const PACKAGES: [&str; 7] = [
    debian::QEMU,
    "busybox-static",
    "containernetworking-plugins",
    "crun",
    "docker-registry",
    "iproute2",
    "iptables",
];
