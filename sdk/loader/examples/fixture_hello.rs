//! The smallest useful provider: what an author writes, and what the loader's tests load first.

use std::sync::Arc;

use infranetes_sdk::pod::{DescribePodRequest, GetRequest, Machine, PodCapabilities};
use infranetes_sdk::{
    CallContext, Host, Plugin, PodProvider, ProviderError, Providers, Result, async_trait,
    export_provider,
};
use serde::Deserialize;

/// The `[config]` table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    network: String,
}

struct Hello {
    config: Config,
}

#[async_trait]
impl Plugin for Hello {
    type Config = Config;

    async fn start(host: Host, config: Config) -> Result<Providers> {
        host.metric("hello_starts", 1.0);
        Ok(Providers { pods: Some(Arc::new(Self { config })), ..Providers::default() })
    }
}

#[async_trait]
impl PodProvider for Hello {
    async fn describe(&self, _: CallContext, _: DescribePodRequest) -> Result<PodCapabilities> {
        Ok(PodCapabilities { architectures: vec!["amd64".into()], ..PodCapabilities::default() })
    }

    async fn get(&self, _: CallContext, request: GetRequest) -> Result<Machine> {
        match request.id.as_str() {
            "hello" => Ok(Machine {
                id: request.id,
                zone: self.config.network.clone(),
                ..Machine::default()
            }),
            id => Err(ProviderError::not_found(format!("there is no machine {id:?}"))),
        }
    }
}

export_provider!(Hello);
