//! Instances and their host: services, threads, several of one file. One test only, because it counts the threads of
//! this process.

mod common;

use std::time::Duration;

use common::{fixture, load_trouble, trouble, wait_until};
use infranetes_loader::{Loader, PluginSpec};
use infranetes_sdk::pod::{GetRequest, ListRequest};
use infranetes_sdk::{CallContext, LogLevel};

fn ctx() -> CallContext {
    CallContext::new("r1").with_timeout(Duration::from_secs(10))
}

fn threads_named(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("the list of threads");
    let names =
        tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}

#[tokio::test]
async fn an_instance_uses_its_host_and_ends_without_a_trace() {
    let (plugin, memory) = trouble(r#"{"start":"secret","secret":"known"}"#).await;
    memory.wait_for_sample("secret_known").await;
    memory.wait_for_line(LogLevel::Info, "trouble starts").await;
    memory.wait_for_line(LogLevel::Warn, "from tracing answer=42").await;
    memory.wait_for_line(LogLevel::Info, "from log").await;

    let pods = plugin.pods().expect("machines");
    pods.list(ctx(), ListRequest::default()).await.expect("an answer");
    assert!(!memory.has_line(LogLevel::Debug, "a debug line"), "nobody asked for debug lines");
    plugin.set_log_level(LogLevel::Debug);
    pods.list(ctx(), ListRequest::default()).await.expect("an answer");
    memory.wait_for_line(LogLevel::Debug, "a debug line").await;

    // Another instance of the same file has its own host.
    let (second, other) = trouble("{}").await;
    second
        .pods()
        .expect("machines")
        .get(ctx(), GetRequest { id: "panic".into() })
        .await
        .unwrap_err();
    other.wait_for_line(LogLevel::Error, "index out of range").await;
    assert!(!memory.has_line(LogLevel::Error, "index out of range"));

    assert_eq!(threads_named("p:t0"), 2);
    // A call in flight does not keep an instance.
    let call = {
        let pods = plugin.pods().expect("machines");
        tokio::spawn(async move { pods.get(ctx(), GetRequest { id: "sleep".into() }).await })
    };
    memory.wait_for_sample("get_started").await;
    drop((plugin, pods, second));
    call.abort();
    wait_until("the end of the threads", || threads_named("p:t0") == 0).await;
    memory.wait_for_sample("get_dropped").await;

    for config in [r#"{"start":"error"}"#, r#"{"start":"panic"}"#, r#"{"start":"hang"}"#, "{"] {
        load_trouble(config, memory.clone()).await.expect_err("it does not start");
    }
    wait_until("the end of failed starts", || threads_named("p:t0") == 0).await;

    for _ in 0..20 {
        let spec = PluginSpec::new("again", fixture("hello"))
            .with_config_json(r#"{"network":"n"}"#)
            .with_worker_threads(2);
        let plugin = Loader::new().load(spec).await.expect("loads");
        let pods = plugin.pods().expect("machines");
        let machine = pods.get(ctx(), GetRequest { id: "hello".into() }).await;
        assert_eq!(machine.expect("an answer").zone, "n");
    }
    wait_until("the end of the threads", || threads_named("p:again") == 0).await;
}
