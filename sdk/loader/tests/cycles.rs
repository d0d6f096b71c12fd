//! A thousand instances come and go. One test only, because it counts what this process has.

mod common;

use std::time::Duration;

use common::{fixture, wait_until};
use infranetes_loader::{Loader, PluginSpec};
use infranetes_sdk::CallContext;
use infranetes_sdk::pod::GetRequest;

#[test]
fn a_thousand_starts_leave_neither_threads_nor_memory_nor_files() {
    // The threads that this process reads files on end soon after their work, so that they are not taken for leaked ones.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_millis(100))
        .build()
        .expect("a runtime");
    runtime.block_on(a_thousand_starts());
}

async fn a_thousand_starts() {
    // The first ones fill caches of the allocator and map the library.
    cycle(100).await;
    let before = (threads(), files());
    let mut grown = vec![growth_of(500).await, growth_of(500).await];
    // The allocator takes more arenas when threads overlap, as they do on a busy machine, but not for ever. A leak shows each time.
    while grown.iter().min() >= Some(&1024) && grown.len() < 6 {
        grown.push(growth_of(500).await);
    }
    wait_until("the end of the threads", || threads() <= before.0).await;
    assert_eq!(files(), before.1, "a file of a plugin is opened once");
    assert!(grown.iter().min() < Some(&1024), "500 instances each left {grown:?} KiB");
}

/// What so many instances leave, in KiB.
async fn growth_of(times: usize) -> u64 {
    let before = resident_kib();
    cycle(times).await;
    resident_kib().saturating_sub(before)
}

async fn cycle(times: usize) {
    let loader = Loader::new();
    for _ in 0..times {
        let spec =
            PluginSpec::new("cycle", fixture("hello")).with_config_json(r#"{"network":"n"}"#);
        let plugin = loader.load(spec).await.expect("loads");
        let context = CallContext::new("r1").with_timeout(Duration::from_secs(20));
        let pods = plugin.pods().expect("machines");
        let machine = pods.get(context, GetRequest { id: "hello".into() }).await;
        assert_eq!(machine.expect("an answer").zone, "n");
    }
    wait_until("the end of the instances", || threads_named("p:cycle") == 0).await;
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("the list of threads").count()
}

fn threads_named(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("the list of threads").flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}

fn files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the list of files").count()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
