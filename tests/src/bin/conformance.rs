//! `cargo xtask conformance` runs this, with everything built before.

use anyhow::Result;
use clap::Parser;
use infranetes_tests::conformance::{self, Options};
use infranetes_tests::namespaces;

fn main() -> Result<()> {
    let options = Options::parse();
    namespaces::enter()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(conformance::run(&options))
}
