//! `cargo xtask demo`, `bench` and `conformance`: build the product, then become the program that shows, measures or proves it.

use anyhow::Result;

use crate::debian;
use crate::product::{Form, Product, become_program};
use crate::workspace::Workspace;

/// Goes to the program; `--help` tells what it takes.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn demo(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    Product::build(workspace)?.become_program(workspace, "infranetes-demo", &arguments.arguments)
}

pub(crate) fn conformance(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let program = "infranetes-conformance";
    Product::build(workspace)?.become_program(workspace, program, &arguments.arguments)
}

pub(crate) fn bench(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let (name, arguments) = ("infranetes-bench", &arguments.arguments);
    match arguments.first().map(String::as_str) {
        Some("abi") => {
            Product::build_for_plugins(workspace)?.become_program(workspace, name, arguments)
        }
        Some("cri") => {
            debian::ensure(workspace, &[CONTAINERD])?;
            let product = Product::build(workspace)?;
            // Its client is half of what a short call takes, on both sides.
            product.become_released_program(workspace, name, arguments)
        }
        _ => Product::build(workspace)?.become_program(workspace, name, arguments),
    }
}

pub(crate) fn sim(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    become_program(workspace, "infranetes-sim", Form::Debug, &arguments.arguments, &[])
}

/// What the daemon is measured against; nothing else needs it.
const CONTAINERD: &str = "containerd";
