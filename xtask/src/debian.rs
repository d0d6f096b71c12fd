//! Debian packages: installed on this machine where a program of theirs must run here ([`ensure`]), or only fetched and unpacked
//! ([`store::Store`]) where their files travel into the guest. The ordinary client does both.

mod backports;
pub(crate) mod store;

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::program::{Program, is_installed};
use crate::workspace::Workspace;

/// The package of QEMU for machines of this architecture.
pub(crate) const QEMU: &str = "qemu-system-x86";

/// Installs what is missing of these packages, and says so; does nothing when all are there.
///
/// Removes nothing that is installed. When a package fits only in its backported version (because one of its siblings was
/// installed from there), it comes from the backports of this Debian, whether or not they are configured.
pub(crate) fn ensure(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().copied().filter(|package| !is_package_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing Debian packages: {}", missing.join(" "));
    if !is_installed("apt-get") {
        bail!("there is no apt-get here: install {} in this machine's way", missing.join(", "));
    }
    let source = source_that_fits(&missing, &workspace.target().join("apt"))?;
    let apt = as_root(Program::new("apt-get"))?.args(&source).args(INSTALL).args(&missing);
    let installed = apt.output();
    installed.with_context(|| format!("Debian packages are missing: {}", missing.join(", ")))?;
    Ok(())
}

fn is_package_installed(package: &str) -> bool {
    let query = Program::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]);
    query.outcome().is_ok_and(|output| output.stdout == b"installed")
}

/// The options of apt-get under which the packages can be installed and nothing else has to go.
fn source_that_fits(packages: &[&str], cache: &Path) -> Result<Vec<String>> {
    let Err(first) = simulate(packages, &[]) else { return Ok(Vec::new()) };
    println!("updating the lists of packages");
    as_root(Program::new("apt-get"))?
        .args(["-q", "-q", "update"])
        .run()
        .context("the lists of packages cannot be updated (no network?)")?;
    if simulate(packages, &[]).is_ok() {
        return Ok(Vec::new());
    }
    let backports = backports::options(cache)
        .with_context(|| format!("apt-get cannot install {}: {first:#}", packages.join(" ")))?;
    println!("they come from backports, for the sake of what is installed already");
    simulate(packages, &backports)?;
    Ok(backports)
}

fn simulate(packages: &[&str], options: &[String]) -> Result<()> {
    let simulation = Program::new("apt-get").arg("--simulate").args(options);
    simulation.args(INSTALL).args(packages).output().map(drop)
}

/// Packages are installed by root alone; who is not root needs sudo.
fn as_root(program: Program) -> Result<Program> {
    let uid = Program::new("id").arg("-u").output()?;
    if uid.trim() == "0" {
        return Ok(program.env("DEBIAN_FRONTEND", "noninteractive"));
    }
    if !is_installed("sudo") {
        bail!("installing packages needs root, and there is no sudo");
    }
    Ok(program.under(Program::new("sudo").arg("DEBIAN_FRONTEND=noninteractive")))
}

const INSTALL: [&str; 8] = [
    "install",
    "--yes",
    "-q",
    "-q",
    "--no-install-recommends",
    "--no-remove",
    // Another installation may be under way: wait for it, five minutes at most.
    "-o",
    "DPkg::Lock::Timeout=300",
];
