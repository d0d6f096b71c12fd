//! What `cargo xtask bench abi` calls: a provider that does next to nothing, so that the way to it is what costs.

use infranetes_sdk::pod::{ConsoleChunk, ConsoleRequest, GetRequest, Machine};
use infranetes_sdk::{
    BoxStream, CallContext, Host, Plugin, PodProvider, Providers, Result, async_trait,
    export_provider,
};

/// The provider; `bench_host` links it, too, for the direct call.
pub(crate) struct Bench;

#[async_trait]
impl Plugin for Bench {
    type Config = serde_json::Value;

    async fn start(_: Host, _: serde_json::Value) -> Result<Providers> {
        Ok(Providers::default().with_pods(Self))
    }
}

#[async_trait]
impl PodProvider for Bench {
    async fn get(&self, _: CallContext, request: GetRequest) -> Result<Machine> {
        Ok(Machine {
            id: request.id,
            name: "infranetes-bench-machine".into(),
            zone: "zone-a".into(),
            tags: [("cluster".into(), "bench".into()), ("node".into(), "n1".into())].into(),
            ..Machine::default()
        })
    }

    /// Chunks of 16 KiB without end.
    async fn console(&self, _: CallContext, _: ConsoleRequest) -> Result<BoxStream<ConsoleChunk>> {
        let chunks = futures::stream::repeat_with(|| Ok(ConsoleChunk { data: vec![7; 16 << 10] }));
        Ok(Box::pin(chunks))
    }
}

export_provider!(Bench);
