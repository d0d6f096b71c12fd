//! Calls, streams, cancellation and panics through a plugin that was really loaded.

mod common;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use common::{fixture, isolation, loader, trouble, wait_until};
use infranetes_loader::PluginSpec;
use infranetes_loader::isolation::Isolation;
use infranetes_sdk::container::{ExecInput, ExecInputPart, ExecOutputPart};
use infranetes_sdk::pod::{
    ConsoleRequest, CreateRequest, DescribePodRequest, EventsRequest, GetRequest,
};
use infranetes_sdk::volume::VolumeRef;
use infranetes_sdk::{
    CallContext, ErrorKind, LogLevel, PodProvider, ProviderError, RetryAdvice, StreamExt, stream,
};

fn ctx() -> CallContext {
    CallContext::new("r1").with_timeout(Duration::from_secs(10))
}

async fn pods() -> (Arc<dyn PodProvider>, Arc<common::Memory>) {
    let (plugin, memory) = trouble("{}").await;
    (plugin.pods().expect("the fixture provides machines"), memory)
}

fn get(id: &str) -> GetRequest {
    GetRequest { id: id.into() }
}

fn console(id: &str) -> ConsoleRequest {
    ConsoleRequest { id: id.into(), ..ConsoleRequest::default() }
}

#[tokio::test]
async fn an_answer_comes_back() {
    let (pods, _) = pods().await;
    assert_eq!(pods.get(ctx(), get("m1")).await.expect("an answer").id, "m1");
}

#[tokio::test]
async fn what_is_left_out_answers_unsupported() {
    let (pods, _) = pods().await;
    let error = pods.describe(ctx(), DescribePodRequest {}).await.expect_err("left out");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert_eq!(error.message, "this provider does not do pod/describe");
    let error = pods.events(ctx(), EventsRequest {}).await.err().expect("left out");
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

#[tokio::test]
async fn an_error_arrives_with_all_it_has() {
    let (pods, _) = pods().await;
    let error = pods.get(ctx(), get("throttled")).await.expect_err("an error");
    assert_eq!(error.kind, ErrorKind::Throttled);
    assert_eq!(error.retry, RetryAdvice::After(Duration::from_millis(1500)));
    assert_eq!(error.provider_code, "SlowDown");
    assert_eq!(error.to_string(), "the cloud is busy");
    let first = error.source().expect("a cause");
    assert_eq!(first.to_string(), "call the API");
    assert_eq!(first.source().expect("its cause").to_string(), "status 429");
}

#[tokio::test]
async fn the_context_arrives() {
    let (pods, _) = pods().await;
    let context = CallContext::new("req-7")
        .with_timeout(Duration::from_secs(5))
        .with_traceparent("00-aa-bb-01");
    let name = pods.get(context, get("context")).await.expect("an answer").name;
    let words: Vec<&str> = name.split(' ').collect();
    assert_eq!(words[..2], ["req-7", "00-aa-bb-01"]);
    let left: u64 = words[2].parse().expect("milliseconds");
    assert!((4000..=5000).contains(&left), "{left}");
}

#[tokio::test]
async fn calls_run_at_once_and_on_the_threads_of_the_plugin() {
    let (pods, _) = pods().await;
    let started = tokio::time::Instant::now();
    let naps = (0..200).map(|_| pods.get(ctx(), get("nap")));
    for answer in futures::future::join_all(naps).await {
        answer.expect("an answer");
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(pods.get(ctx(), get("spawn")).await.expect("an answer").name, "p:t0");
}

#[tokio::test]
async fn a_panic_is_an_answer_and_a_log_line_and_nothing_else() {
    let (pods, memory) = pods().await;
    let error = pods.get(ctx(), get("panic")).await.expect_err("a panic");
    assert_eq!(error.kind, ErrorKind::Internal);
    assert_eq!(error.message, "pod/get panicked: index out of range");
    memory.wait_for_line(LogLevel::Error, "fixture_trouble.rs").await;
    pods.get(ctx(), get("m1")).await.expect("it still answers");
}

#[tokio::test]
async fn a_host_service_that_panics_hurts_nobody() {
    let (pods, _) = pods().await;
    pods.get(ctx(), get("bad metric")).await.expect("it does not notice");
    pods.get(ctx(), get("m1")).await.expect("it still answers");
}

#[tokio::test]
async fn dropping_a_call_runs_its_destructors() {
    let (pods, memory) = pods().await;
    let call = pods.get(ctx(), get("sleep"));
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
    memory.wait_for_sample("get_dropped").await;
}

#[tokio::test]
async fn a_destructor_that_panics_hurts_nobody() {
    let (pods, memory) = pods().await;
    let call = pods.get(ctx(), get("bad drop"));
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
    memory.wait_for_line(LogLevel::Error, "a destructor went wrong").await;
    pods.get(ctx(), get("m1")).await.expect("it still answers");
}

#[tokio::test]
async fn the_deadline_ends_a_call_in_the_plugin() {
    let (pods, memory) = pods().await;
    let context = CallContext::new("r1").with_timeout(Duration::from_millis(30));
    let error = pods.get(context, get("sleep")).await.expect_err("too slow");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert!(error.message.starts_with("no answer within"), "{error}");
    memory.wait_for_sample("get_dropped").await;
}

#[tokio::test]
async fn a_plugin_that_blocks_its_thread_does_not_block_the_host() {
    let (pods, _) = pods().await;
    let started = tokio::time::Instant::now();
    let context = CallContext::new("r1").with_timeout(Duration::from_millis(30));
    let error = pods.get(context, get("block")).await.expect_err("stuck");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert_eq!(error.message, "t0 does not react to pod/get");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_stream_ends_after_its_last_item() {
    let (pods, _) = pods().await;
    let chunks: Vec<_> =
        pods.console(ctx(), console("three")).await.expect("opens").collect().await;
    let numbers: Vec<u8> =
        chunks.into_iter().map(|chunk| chunk.expect("an item").data[0]).collect();
    assert_eq!(numbers, [0, 1, 2]);
}

#[tokio::test]
async fn a_stream_that_is_refused_does_not_open() {
    let (pods, _) = pods().await;
    let error = pods.console(ctx(), console("refused")).await.err().expect("refused");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::NotFound, "no such console"));
}

#[tokio::test]
async fn a_stream_ends_at_its_first_error() {
    let (pods, _) = pods().await;
    for (id, kind, message) in [
        ("error", ErrorKind::Transient, "cut off"),
        ("panic", ErrorKind::Internal, "pod/console panicked: the console exploded"),
    ] {
        let mut items: Vec<_> =
            pods.console(ctx(), console(id)).await.expect("opens").collect().await;
        assert_eq!(items.len(), 4, "{id}");
        let error = items.pop().expect("four items").expect_err("the last is the error");
        assert_eq!((error.kind, error.message.as_str()), (kind, message));
    }
}

#[tokio::test]
async fn a_slow_reader_makes_the_producer_wait() {
    let (pods, memory) = pods().await;
    let mut chunks = pods.console(ctx(), console("endless")).await.expect("opens");
    chunks.next().await.expect("an item").expect("no error");
    wait_until("a full queue", || memory.samples("chunk_made") >= 16).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let made = memory.samples("chunk_made");
    // One queue, or one on each side of a socket.
    let queues = if isolation() == Isolation::Process { 2 } else { 1 };
    assert!(made <= queues * 20, "{made} chunks were made for a reader that took one");
    drop(chunks);
    memory.wait_for_sample("console_dropped").await;
}

#[tokio::test]
async fn dropping_a_stream_stops_an_idle_producer() {
    let (pods, memory) = pods().await;
    let mut chunks = pods.console(ctx(), console("idle")).await.expect("opens");
    chunks.next().await.expect("an item").expect("no error");
    drop(chunks);
    memory.wait_for_sample("console_dropped").await;
}

#[tokio::test]
async fn ten_thousand_chunks_arrive_in_order() {
    let (pods, _) = pods().await;
    let mut chunks = pods.console(ctx(), console("endless")).await.expect("opens");
    for expected in 0..10_000_u64 {
        let data = chunks.next().await.expect("an item").expect("no error").data;
        assert_eq!(data, expected.to_le_bytes());
    }
}

#[tokio::test]
async fn a_duplex_call_reads_and_writes_at_once() {
    let (plugin, _) = trouble("{}").await;
    let containers = plugin.containers().expect("the fixture provides containers");
    let (stdin, input) = stream::channel(1);
    let mut output = containers.exec(ctx(), input).await.expect("opens");
    for word in ["one", "two"] {
        let part = Some(ExecInputPart::Stdin(word.into()));
        stdin.send(Ok(ExecInput { input: part })).await.expect("it listens");
        let echoed = output.next().await.expect("an item").expect("no error");
        assert_eq!(echoed.output, Some(ExecOutputPart::Stdout(word.into())));
    }
    let part = Some(ExecInputPart::StdinClosed(true));
    stdin.send(Ok(ExecInput { input: part })).await.expect("it listens");
    let exit = output.next().await.expect("an item").expect("no error");
    assert!(matches!(exit.output, Some(ExecOutputPart::Exit(exit)) if exit.code == 6));
    assert!(output.next().await.is_none());
}

#[tokio::test]
async fn dropping_the_output_of_a_duplex_call_drops_its_input() {
    let (plugin, _) = trouble("{}").await;
    let containers = plugin.containers().expect("the fixture provides containers");
    let (stdin, input) = stream::channel(1);
    let output = containers.exec(ctx(), input).await.expect("opens");
    drop(output);
    let part = Some(ExecInputPart::Stdin(b"x".to_vec()));
    let item = ExecInput { input: part };
    tokio::time::timeout(Duration::from_secs(10), async {
        while stdin.send(Ok(item.clone())).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the input is dropped");
}

#[tokio::test]
async fn a_service_that_is_not_provided_is_not_there() {
    let (plugin, _) = trouble(r#"{"start":"nothing"}"#).await;
    assert!(plugin.pods().is_none() && plugin.containers().is_none() && plugin.volumes().is_none());

    let spec = PluginSpec::new("hello", fixture("hello"))
        .with_config_json(r#"{"network":"n"}"#)
        .with_isolation(isolation());
    let hello = loader().load(spec).await.expect("it starts");
    assert!(hello.volumes().is_none() && hello.containers().is_none());
    let pods = hello.pods().expect("the fixture provides machines");
    let error = pods.create(ctx(), CreateRequest::default()).await.expect_err("left out");
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

#[tokio::test]
async fn volumes_cross_the_boundary_like_machines() {
    let (plugin, _) = trouble("{}").await;
    let volumes = plugin.volumes().expect("the fixture provides volumes");
    let volume = volumes.get(ctx(), VolumeRef { id: "v1".into() }).await.expect("an answer");
    assert_eq!(volume.id, "v1");
    let error = volumes.delete(ctx(), VolumeRef::default()).await.expect_err("left out");
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

#[tokio::test]
async fn an_error_in_the_input_of_a_duplex_call_ends_that_input() {
    let (plugin, _) = trouble("{}").await;
    let containers = plugin.containers().expect("the fixture provides containers");
    let (stdin, input) = stream::channel(4);
    let part = Some(ExecInputPart::Stdin(b"abc".to_vec()));
    stdin.try_send(Ok(ExecInput { input: part.clone() })).expect("there is room");
    stdin.try_send(Err(ProviderError::transient("cut off"))).expect("there is room");
    stdin.try_send(Ok(ExecInput { input: part })).expect("there is room");
    let output: Vec<_> = containers.exec(ctx(), input).await.expect("opens").collect().await;
    let last = output.into_iter().last().expect("an exit").expect("no error").output;
    assert!(matches!(last, Some(ExecOutputPart::Exit(exit)) if exit.code == 3), "{last:?}");
}

#[tokio::test]
async fn megabytes_where_bytes_are_expected_are_an_error_with_the_name_of_the_plugin() {
    let (pods, _) = pods().await;
    let error = pods.get(ctx(), get("large")).await.expect_err("too large");
    assert_eq!(error.kind, ErrorKind::Internal);
    let text = error.to_string();
    assert!(text.contains("t0") && text.contains("more than the 16777216 of a message"), "{text}");

    let mut chunks = pods.console(ctx(), console("large")).await.expect("opens");
    chunks.next().await.expect("an item").expect("no error");
    let error = chunks.next().await.expect("an item").expect_err("too large");
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.to_string().contains("more than the 16777216 of a message"), "{error}");
    assert!(chunks.next().await.is_none());

    let error = pods.get(ctx(), get("large error")).await.expect_err("an error");
    assert_eq!(error.kind, ErrorKind::Quota);
    assert!(
        error.message.starts_with("yyy") && error.message.len() < 5000,
        "{}",
        error.message.len()
    );
    assert!(error.message.ends_with("(4190208 bytes more)"), "{error}");
    pods.get(ctx(), get("m1")).await.expect("it still answers");
}

#[tokio::test]
async fn a_flood_of_log_lines_is_cut_and_counted() {
    let (pods, memory) = pods().await;
    pods.get(ctx(), get("flood")).await.expect("an answer");
    memory.wait_for_line(LogLevel::Info, "line 100 ").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    pods.get(ctx(), get("one line")).await.expect("an answer");
    memory.wait_for_line(LogLevel::Warn, "log lines of this plugin were left out").await;
    let (lines, longest) = memory.lines();
    assert!(lines < 10_000 && longest < 9000, "{lines} lines, {longest} bytes");
}

#[tokio::test]
async fn a_stream_that_panics_before_it_opens_does_not_open() {
    let (pods, _) = pods().await;
    let error = pods.console(ctx(), console("panic early")).await.err().expect("a panic");
    assert_eq!(error.kind, ErrorKind::Internal);
    assert_eq!(error.message, "pod/console panicked: the console did not open");
    pods.get(ctx(), get("m1")).await.expect("it still answers");
}

#[tokio::test]
async fn a_stream_whose_destructor_panics_hurts_nobody() {
    let (pods, memory) = pods().await;
    let mut chunks = pods.console(ctx(), console("bad drop")).await.expect("opens");
    chunks.next().await.expect("an item").expect("no error");
    drop(chunks);
    memory.wait_for_sample("bomb_dropped").await;
    memory.wait_for_line(LogLevel::Error, "a destructor went wrong").await;
    pods.get(ctx(), get("m1")).await.expect("it still answers");
}

#[tokio::test]
async fn an_instance_whose_destructor_panics_hurts_nobody() {
    let (plugin, memory) = trouble(r#"{"start":"bad end"}"#).await;
    drop(plugin);
    memory.wait_for_sample("bomb_dropped").await;
    let (pods, _) = pods().await;
    pods.get(ctx(), get("m1")).await.expect("others still answer");
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_any_more_is_dropped() {
    let memory = Arc::new(common::Memory::default());
    let starting = common::load_trouble(r#"{"start":"wait"}"#, memory.clone());
    let starting = tokio::spawn(starting);
    memory.wait_for_sample("start_waits").await;
    starting.abort();
    if isolation() == Isolation::None {
        memory.wait_for_sample("start_dropped").await;
    }
    let (pods, _) = pods().await;
    pods.get(ctx(), get("m1")).await.expect("others still answer");
}
