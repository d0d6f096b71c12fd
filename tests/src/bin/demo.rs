//! `cargo xtask demo` runs this, with everything built before.

use clap::Parser;
use infranetes_tests::demo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    demo::run(&demo::Options::parse()).await
}
