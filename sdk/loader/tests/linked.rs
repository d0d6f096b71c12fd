//! A plugin that is linked in behaves as a loaded one; and one that is only started gives the same kind of provider.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::Memory;
use infranetes_loader::{Loader, PluginSpec};
use infranetes_sdk::pod::{GetRequest, Machine};
use infranetes_sdk::{
    CallContext, ErrorKind, Host, Plugin, PodProvider, Providers, Result, async_trait,
    export_provider,
};

struct Linked {
    host: Host,
}

#[derive(serde::Deserialize)]
struct Config {
    name: String,
}

#[async_trait]
impl Plugin for Linked {
    type Config = Config;

    async fn start(host: Host, config: Config) -> Result<Providers> {
        host.metric(&config.name, 1.0);
        Ok(Providers::default().with_pods(Self { host }))
    }
}

#[async_trait]
impl PodProvider for Linked {
    async fn get(&self, _: CallContext, request: GetRequest) -> Result<Machine> {
        assert!(request.id != "panic", "a linked provider that panics");
        if request.id == "slow" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let name = self.host.instance().to_owned();
        Ok(Machine { id: request.id, name, ..Machine::default() })
    }
}

// A program may hold any number of exports: their names end with the name of their crate.
export_provider!(Linked);

fn get(id: &str) -> GetRequest {
    GetRequest { id: id.into() }
}

#[tokio::test]
async fn a_linked_plugin_runs_like_a_loaded_one() {
    let memory = Arc::new(Memory::default());
    let spec = PluginSpec::new("l0", "")
        .with_config_json(r#"{"name":"linked_starts"}"#)
        .with_services(memory.clone());
    let plugin = Loader::new().link::<Linked>(spec).await.expect("it starts");
    memory.wait_for_sample("linked_starts").await;
    let pods = plugin.pods().expect("machines");

    let context = CallContext::new("r1");
    assert_eq!(pods.get(context.clone(), get("m1")).await.expect("an answer").name, "l0");
    let error = pods.get(context.clone(), get("panic")).await.expect_err("it panics");
    assert_eq!(error.kind, ErrorKind::Internal);
    let hurried = context.with_timeout(Duration::from_millis(20));
    let error = pods.get(hurried, get("slow")).await.expect_err("too slow");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
}

#[tokio::test]
async fn a_plugin_can_be_started_without_any_boundary() {
    let memory = Arc::new(Memory::default());
    let host = Host::new("direct", None, memory.clone());
    let config = Config { name: "direct_starts".into() };
    let providers = <Linked as Plugin>::start(host, config).await.expect("it starts");
    assert_eq!(memory.samples("direct_starts"), 1);
    let pods: Arc<dyn PodProvider> = providers.pods.expect("machines");
    let machine = pods.get(CallContext::new("r1"), get("m1")).await.expect("an answer");
    assert_eq!(machine.name, "direct");
}
