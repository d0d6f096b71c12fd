//! `cargo xtask bench` runs this, with everything built before.

use clap::Parser;
use infranetes_tests::{bench, namespaces};

#[derive(Parser)]
#[command(about = "Measures infranetes against what it stands on.")]
enum Benchmark {
    /// A call of a plugin, in its host's process and in its own, against gRPC; and what an author waits for.
    Abi(bench::abi::Options),
    /// A sandbox until it is ready, against the bare boot of its machine.
    Boot(bench::boot::Options),
    /// The calls of CRI, against Debian's containerd.
    Cri(bench::cri::Options),
    /// What hostile clients of the streaming server take of the daemon's memory.
    Streaming(bench::streaming::Options),
}

fn main() -> anyhow::Result<()> {
    let benchmark = Benchmark::parse();
    if let Benchmark::Cri(_) = &benchmark {
        namespaces::enter()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match benchmark {
            Benchmark::Abi(options) => bench::abi::run(&options).await,
            Benchmark::Boot(options) => bench::boot::run(&options).await,
            Benchmark::Cri(options) => bench::cri::run(&options).await,
            Benchmark::Streaming(options) => bench::streaming::run(&options).await,
        }
    })
}
