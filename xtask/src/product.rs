//! The product as a user has it: programs and plugins in release form, and the guest image.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::guest;
use crate::setup;
use crate::workspace::{Workspace, cargo};

/// Where the product lies after [`Product::build`].
pub(crate) struct Product {
    bin: PathBuf,
    guest: PathBuf,
}

impl Product {
    /// Installs what it needs of Debian, builds the programs, the plugins and the guest image. What is there already is kept.
    pub(crate) fn build(workspace: &Workspace) -> Result<Product> {
        Self::build_as(workspace, false)
    }

    /// As [`Product::build`], and fails if the guest image differs when it is made a second time from scratch.
    pub(crate) fn build_verified(workspace: &Workspace) -> Result<Product> {
        Self::build_as(workspace, true)
    }

    fn build_as(workspace: &Workspace, verify: bool) -> Result<Product> {
        setup::run(workspace)?;
        println!("building the programs and plugins (release)");
        let packages = RELEASED.iter().flat_map(|package| ["--package", package]);
        cargo()
            .dir(workspace.root())
            .args(["build", "--release", "--quiet"])
            .args(packages)
            .run()?;
        let guest = guest::build(workspace, verify)?;
        Ok(Product { bin: workspace.release(), guest })
    }

    /// What measures the boundary of plugins: no machine runs, so no guest image is needed.
    pub(crate) fn build_for_plugins(workspace: &Workspace) -> Result<Product> {
        println!("building the daemon and what measures plugins (release)");
        // The same packages as the product's, so that their dependencies are built once.
        let packages = RELEASED.iter().flat_map(|package| ["--package", package]);
        cargo()
            .dir(workspace.root())
            .args(["build", "--release", "--quiet", "--package", "infranetes-loader"])
            .args(packages)
            .args([
                "--bin",
                "infranetes-cri",
                "--example",
                "bench_host",
                "--example",
                "bench_plugin",
            ])
            .run()?;
        let bin = workspace.release();
        Ok(Product { guest: bin.join("no-guest"), bin })
    }

    /// What a program has to have in its environment to find the product.
    pub(crate) fn environment(&self) -> [(&'static str, &PathBuf); 2] {
        [("INFRANETES_BIN", &self.bin), ("INFRANETES_GUEST", &self.guest)]
    }

    /// Becomes one of the programs of `infranetes-tests`, so that signals reach it alone. Returns only on failure.
    pub(crate) fn become_program(
        &self,
        workspace: &Workspace,
        name: &str,
        arguments: &[String],
    ) -> Result<()> {
        become_program(workspace, name, Form::Debug, arguments, &self.environment())
    }

    /// As [`Product::become_program`], where the program's own time is part of what it measures.
    pub(crate) fn become_released_program(
        &self,
        workspace: &Workspace,
        name: &str,
        arguments: &[String],
    ) -> Result<()> {
        become_program(workspace, name, Form::Release, arguments, &self.environment())
    }
}

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Soon.
    Debug,
    /// To be fast.
    Release,
}

/// Builds and becomes one of the programs of `infranetes-tests`.
pub(crate) fn become_program(
    workspace: &Workspace,
    name: &str,
    form: Form,
    arguments: &[String],
    environment: &[(&str, &PathBuf)],
) -> Result<()> {
    let build = ["build", "--quiet", "--package", "infranetes-tests", "--bin", name];
    let (options, dir): (&[&str], _) = match form {
        Form::Debug => (&[], workspace.target().join("debug")),
        Form::Release => (&["--release"], workspace.release()),
    };
    cargo().dir(workspace.root()).args(build).args(options).run()?;
    let path = dir.join(name);
    let mut program = Command::new(&path);
    Err(program.args(arguments).envs(environment.iter().copied()).exec())
        .with_context(|| format!("{} cannot be run", path.display()))
}

const RELEASED: [&str; 6] = [
    "infranetes-cri",
    "infranetes-agent",
    "infranetes-provider-fake",
    "infranetes-provider-oci",
    "infranetes-provider-process",
    "infranetes-provider-qemu",
];
