//! A plugin that is linked in behaves as a loaded one; and one that is only started gives the same kind of provider.
//!
//! No file is loaded here and all that crosses the boundary crosses it, so that `cargo xtask skew` runs this file under Miri.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Memory, chain};
use infranetes_loader::{LoadedPlugin, Loader, PluginSpec};
use infranetes_sdk::container::{ExecInput, ExecInputPart, ExecOutput, ExecOutputPart};
use infranetes_sdk::pod::{ConsoleChunk, ConsoleRequest, GetRequest, Machine};
use infranetes_sdk::{
    BoxStream, CallContext, ContainerProvider, ErrorKind, Host, Plugin, PodProvider, ProviderError,
    Providers, Result, StreamExt, async_trait, export_provider, stream,
};

#[derive(Clone)]
struct Linked {
    host: Host,
}

/// Tells when it is dropped.
struct Guard(Host);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.metric("dropped", 1.0);
    }
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
        let linked = Self { host };
        Ok(Providers::default().with_pods(linked.clone()).with_containers(linked))
    }
}

#[async_trait]
impl PodProvider for Linked {
    async fn get(&self, _: CallContext, request: GetRequest) -> Result<Machine> {
        match request.id.as_str() {
            "panic" => panic!("a linked provider that panics"),
            "slow" => {
                let _guard = Guard(self.host.clone());
                self.host.metric("begun", 1.0);
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            "lost" => {
                let cause = std::io::Error::other("the cable is cut");
                return Err(ProviderError::transient("the cloud is away").with_source(cause));
            }
            "secret" => drop(self.host.secret("known").await?),
            _ => {}
        }
        let name = self.host.instance().to_owned();
        Ok(Machine { id: request.id, name, ..Machine::default() })
    }

    async fn console(
        &self,
        _: CallContext,
        request: ConsoleRequest,
    ) -> Result<BoxStream<ConsoleChunk>> {
        let (sender, chunks) = stream::channel(1);
        tokio::spawn(async move {
            for number in 0..request.replay_bytes {
                let data = number.to_string().into_bytes();
                if sender.send(Ok(ConsoleChunk { data })).await.is_err() {
                    return;
                }
            }
            // The reader may be gone.
            let _ = sender.send(Err(ProviderError::capacity("that was all"))).await;
        });
        Ok(chunks)
    }
}

#[async_trait]
impl ContainerProvider for Linked {
    /// Answers what it hears.
    async fn exec(
        &self,
        _: CallContext,
        mut input: BoxStream<ExecInput>,
    ) -> Result<BoxStream<ExecOutput>> {
        let (sender, output) = stream::channel(1);
        tokio::spawn(async move {
            while let Some(Ok(ExecInput { input: Some(ExecInputPart::Stdin(data)) })) =
                input.next().await
            {
                let part = Some(ExecOutputPart::Stdout(data));
                if sender.send(Ok(ExecOutput { output: part })).await.is_err() {
                    return;
                }
            }
        });
        Ok(output)
    }
}

// A program may hold any number of exports: their names end with the name of their crate.
export_provider!(Linked);

fn get(id: &str) -> GetRequest {
    GetRequest { id: id.into() }
}

async fn link(memory: &Arc<Memory>) -> LoadedPlugin {
    let spec = PluginSpec::new("l0", "")
        .with_config_json(r#"{"name":"linked_starts"}"#)
        .with_services(memory.clone());
    Loader::new().link::<Linked>(spec).await.expect("it starts")
}

#[tokio::test]
async fn a_linked_plugin_runs_like_a_loaded_one() {
    let memory = Arc::new(Memory::default());
    let plugin = link(&memory).await;
    memory.wait_for_sample("linked_starts").await;
    let pods = plugin.pods().expect("machines");

    let context = CallContext::new("r1");
    assert_eq!(pods.get(context.clone(), get("m1")).await.expect("an answer").name, "l0");
    assert_eq!(pods.get(context.clone(), get("secret")).await.expect("an answer").name, "l0");
    let error = pods.get(context.clone(), get("lost")).await.expect_err("an error");
    assert_eq!(chain(&error), "the cloud is away <- the cable is cut");
    let error = pods.get(context.clone(), get("panic")).await.expect_err("it panics");
    assert_eq!(error.kind, ErrorKind::Internal);
    let hurried = context.with_timeout(Duration::from_millis(20));
    let error = pods.get(hurried, get("slow")).await.expect_err("too slow");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
}

#[tokio::test]
async fn a_call_of_a_linked_plugin_that_is_dropped_ends_there() {
    let memory = Arc::new(Memory::default());
    let plugin = link(&memory).await;
    let pods = plugin.pods().expect("machines");
    let call = tokio::spawn(async move { pods.get(CallContext::new("r1"), get("slow")).await });
    memory.wait_for_sample("begun").await;
    call.abort();
    memory.wait_for_sample("dropped").await;
}

#[tokio::test]
async fn streams_cross_to_a_linked_plugin_and_back() {
    let memory = Arc::new(Memory::default());
    let plugin = link(&memory).await;
    let context = CallContext::new("r1");
    let pods = plugin.pods().expect("machines");
    let replay = |replay_bytes| ConsoleRequest { replay_bytes, ..ConsoleRequest::default() };
    let mut chunks = pods.console(context.clone(), replay(3)).await.expect("it opens");
    for expected in [b"0", b"1", b"2"] {
        assert_eq!(chunks.next().await.expect("an item").expect("a chunk").data, expected);
    }
    let error = chunks.next().await.expect("an item").expect_err("the last one");
    assert_eq!(error.kind, ErrorKind::Capacity);
    assert!(chunks.next().await.is_none());
    // One that is dropped in the middle.
    let mut chunks = pods.console(context.clone(), replay(100)).await.expect("it opens");
    chunks.next().await.expect("an item").expect("a chunk");
    drop(chunks);

    let (sender, input) = stream::channel(1);
    let containers = plugin.containers().expect("containers");
    let mut output = containers.exec(context, input).await.expect("it opens");
    for word in [b"one", b"two"] {
        let part = Some(ExecInputPart::Stdin(word.to_vec()));
        sender.send(Ok(ExecInput { input: part })).await.expect("it listens");
        let heard = output.next().await.expect("an item").expect("an output").output;
        assert_eq!(heard, Some(ExecOutputPart::Stdout(word.to_vec())));
    }
    drop(sender);
    assert!(output.next().await.is_none(), "the end of the input is the end");
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
