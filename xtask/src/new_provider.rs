//! `cargo xtask new-provider`: `infranetes-cri plugin new`, for a crate that builds against this checkout.

use std::path::PathBuf;

use anyhow::Result;

use crate::workspace::{Workspace, cargo};

/// As `infranetes-cri plugin new` takes them.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The provider's name: [a-z][a-z0-9]*(-[a-z0-9]+)*
    name: String,
    /// The directory to make [default: NAME beside this checkout]
    dir: Option<PathBuf>,
    /// Build against the published SDK instead of this checkout.
    #[arg(long)]
    published: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut program = cargo().args(["run", "--quiet", "--package", "infranetes-cri", "--"]);
    program = program.args(["plugin", "new"]);
    if !options.published {
        program = program.arg("--sdk-path").arg(workspace.root());
    }
    let beside = workspace.root().with_file_name(&options.name);
    program.arg("--").arg(&options.name).arg(options.dir.as_deref().unwrap_or(&beside)).run()
}
