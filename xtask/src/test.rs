//! `cargo xtask test`: everything that has to pass, real machines included.

use anyhow::Result;

use crate::guest;
use crate::product::Product;
use crate::workspace::{Workspace, cargo};

/// Which tests to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Goes to `cargo test`: packages, names, `-- --nocapture`. Nothing means the whole workspace, and that a second guest image is
    /// byte by byte the first.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let all = options.arguments.is_empty();
    let product =
        if all { Product::build_verified(workspace)? } else { Product::build(workspace)? };
    guest::build_with_plugin(workspace)?;
    let mut test = cargo().dir(workspace.root()).arg("test");
    if all {
        test = test.arg("--workspace");
    }
    for (name, value) in product.environment() {
        test = test.env(name, value);
    }
    test.args(&options.arguments).run()
}
