//! Installs the Debian packages that the demo, the tests and the benchmarks run.

use anyhow::Result;

use crate::debian;
use crate::workspace::Workspace;

/// Does nothing when all are installed.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    debian::ensure(workspace, &PACKAGES)
}

/// The machines, the containers of the process provider, a registry to pull from, and what is in the test image.
const PACKAGES: [&str; 4] = [debian::QEMU, "busybox-static", "crun", "docker-registry"];
