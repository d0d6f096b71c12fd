//! `cargo xtask bench` runs this, with everything built before.

use clap::Parser;
use infranetes_tests::bench;

#[derive(Parser)]
#[command(about = "Measures infranetes against what it stands on.")]
enum Benchmark {
    /// A sandbox until it is ready, against the bare boot of its machine.
    Boot(bench::boot::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Benchmark::parse() {
        Benchmark::Boot(options) => bench::boot::run(&options).await,
    }
}
