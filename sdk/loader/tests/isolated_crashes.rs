//! What a plugin in a process of its own cannot do to its host: it ends, and only its calls end with it.

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{Memory, chain, fixture, load_trouble, loader, trouble, wait_until};
use infranetes_loader::isolation::Isolation;
use infranetes_loader::{LoadError, LoadedPlugin, Loader, PluginSpec};
use infranetes_sdk::container::{ExecInput, ExecInputPart};
use infranetes_sdk::pod::{ConsoleRequest, GetRequest, Machine};
use infranetes_sdk::{CallContext, ErrorKind, ProviderError, Result, StreamExt, stream};

fn ctx() -> CallContext {
    CallContext::new("r1").with_timeout(Duration::from_secs(20))
}

async fn get(plugin: &LoadedPlugin, id: &str) -> Result<Machine> {
    plugin.pods().expect("machines").get(ctx(), GetRequest { id: id.into() }).await
}

async fn wait_until_up(plugin: &LoadedPlugin) {
    wait_until("the plugin to run again", || plugin.problem().is_none()).await;
}

fn lives(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // A dead one that nobody has waited for is no process any more.
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

fn check_is_the_end_of_the_process(error: &ProviderError, expected: &str) {
    assert_eq!(error.kind, ErrorKind::Transient, "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("the process of the plugin t0 "), "{text}");
    assert!(text.contains(expected), "{expected:?} is missing in {text}");
}

#[tokio::test]
async fn a_plugin_in_a_process_of_its_own_is_another_process() {
    let (plugin, _) = trouble("{}").await;
    let process = plugin.process().expect("it runs");
    assert_ne!(process, std::process::id());
    assert_eq!(get(&plugin, "process").await.expect("an answer").name, process.to_string());
    assert_eq!(plugin.manifest().name, "infranetes-loader");
    drop(plugin);
    wait_until("the end of the process", || !lives(process)).await;
}

#[tokio::test]
async fn a_relative_path_is_one_of_the_host() {
    let here = std::env::current_dir().expect("a directory");
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let file = fixture("trouble");
    let relative = up.join(file.strip_prefix("/").expect("an absolute path"));
    let spec =
        PluginSpec::new("t0", relative).with_config_json("{}").with_isolation(Isolation::Process);
    let plugin = loader().load(spec).await.expect("it starts");
    get(&plugin, "m1").await.expect("it answers");
}

#[tokio::test]
async fn a_crash_is_an_error_of_what_was_in_flight_and_a_restart() {
    let (plugin, memory) = trouble("{}").await;
    let crashes = [
        ("crash", "was ended by signal 6 (SIGABRT)"),
        ("exit", "ended with exit code 3; its last words: there is no way out"),
        ("overflow", "was ended by signal 11 (SIGSEGV)"),
    ];
    for (before_it, (id, expected)) in crashes.into_iter().enumerate() {
        let before = plugin.process().expect("it runs");
        let bystander = plugin.pods().expect("machines");
        let bystander =
            tokio::spawn(
                async move { bystander.get(ctx(), GetRequest { id: "sleep".into() }).await },
            );
        wait_until("the call", || memory.samples("get_started") > before_it).await;
        let mut console = plugin
            .pods()
            .expect("machines")
            .console(ctx(), ConsoleRequest { id: "idle".into(), ..ConsoleRequest::default() })
            .await
            .expect("opens");
        console.next().await.expect("an item").expect("no error");
        let crashed = get(&plugin, id).await.expect_err("a crash");
        check_is_the_end_of_the_process(&crashed, expected);
        let bystander = bystander.await.expect("it ends").expect_err("a crash");
        check_is_the_end_of_the_process(&bystander, expected);
        let last = console.next().await.expect("an item").expect_err("a crash");
        check_is_the_end_of_the_process(&last, expected);
        assert!(console.next().await.is_none(), "a stream ends at its first error");

        wait_until_up(&plugin).await;
        assert_ne!(plugin.process(), Some(before));
        get(&plugin, "m1").await.expect("it answers again");
    }
}

#[tokio::test]
async fn while_it_is_down_calls_are_told_why_at_once_and_it_is_tried_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let bomb = directory.path().join("bomb");
    let config = serde_json::json!({ "crash_while": bomb }).to_string();
    let (plugin, _) = trouble(&config).await;
    std::fs::write(&bomb, "").expect("written");
    get(&plugin, "crash").await.expect_err("a crash");
    let problem = || plugin.problem().unwrap_or_default();
    wait_until("a failed start", || problem().contains("while the plugin started")).await;
    assert!(problem().contains("SIGABRT"), "{}", problem());
    let started = tokio::time::Instant::now();
    let error = get(&plugin, "m1").await.expect_err("it is down");
    assert_eq!((error.kind, error.is_retryable()), (ErrorKind::Transient, true));
    assert!(error.to_string().contains("while the plugin started"), "{error}");
    assert!(started.elapsed() < Duration::from_millis(200));
    std::fs::remove_file(&bomb).expect("removed");
    wait_until_up(&plugin).await;
    get(&plugin, "m1").await.expect("it answers again");
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_duplex_call_ends_both_streams() {
    let (plugin, _) = trouble("{}").await;
    let (stdin, input) = stream::channel(1);
    let mut output =
        plugin.containers().expect("containers").exec(ctx(), input).await.expect("opens");
    get(&plugin, "crash").await.expect_err("a crash");
    let error = output.next().await.expect("an item").expect_err("a crash");
    check_is_the_end_of_the_process(&error, "SIGABRT");
    // What fed it is let go, too.
    let word = || ExecInput { input: Some(ExecInputPart::Stdin(b"x".to_vec())) };
    tokio::time::timeout(Duration::from_secs(10), async {
        while stdin.send(Ok(word())).await.is_ok() {}
    })
    .await
    .expect("the input is dropped");
}

#[tokio::test]
async fn a_crash_while_it_starts_is_a_refusal() {
    let error = load_trouble(r#"{"start":"crash"}"#, Arc::new(Memory::default())).await;
    let error = error.expect_err("it crashes");
    assert!(matches!(error, LoadError::HelperEnded { .. }), "{}", chain(&error));
    let text = error.to_string();
    assert!(text.contains("libfixture_trouble.so was ended by signal 6 (SIGABRT)"), "{text}");
}

#[tokio::test]
async fn a_refusal_has_the_words_that_it_has_within_one_process() {
    for (config, expected) in [
        (r#"{"start":"error"}"#, "failed to start <- the cloud does not know us <- 401"),
        (r#"{"start":"panic"}"#, "plugin/start panicked: start went wrong"),
        (r#"{"start":"hang"}"#, "did not start within 0.7 s"),
        (r#"{"start":"block"}"#, "did not start within 0.7 s"),
        (r#"{"strat":""}"#, "unknown field `strat`"),
    ] {
        let error = load_trouble(config, Arc::new(Memory::default())).await.expect_err("refused");
        let text = chain(&error);
        assert!(text.contains(expected), "{expected:?} is missing in {text}");
        assert!(text.contains("the provider t0"), "{text}");
    }
}

#[tokio::test]
async fn a_child_of_the_plugin_neither_holds_its_end_nor_is_ended() {
    let (plugin, _) = trouble("{}").await;
    let process = plugin.process().expect("it runs");
    let child: u32 = get(&plugin, "orphan").await.expect("an answer").name.parse().expect("an id");
    get(&plugin, "crash").await.expect_err("a crash");
    assert!(!lives(process));
    wait_until_up(&plugin).await;
    assert!(lives(child), "what a plugin started lives on, as it does when a host ends");
    let child = rustix::process::Pid::from_raw(child.cast_signed()).expect("an id");
    rustix::process::kill_process(child, rustix::process::Signal::KILL).expect("ended");
}

#[tokio::test]
async fn a_process_that_is_killed_from_outside_is_started_again() {
    let (plugin, _) = trouble("{}").await;
    for _ in 0..2 {
        let process = plugin.process().expect("it runs");
        let pid = rustix::process::Pid::from_raw(process.cast_signed()).expect("an id");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        wait_until("another process", || plugin.process().is_some_and(|other| other != process))
            .await;
        get(&plugin, "m1").await.expect("it answers again");
    }
}

#[tokio::test]
async fn one_that_does_not_start_the_first_time_is_tried_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let bomb = directory.path().join("bomb");
    std::fs::write(&bomb, "").expect("written");
    let config = serde_json::json!({ "crash_while": bomb }).to_string();
    let spec = PluginSpec::new("t0", fixture("trouble"))
        .with_config_json(config)
        .with_isolation(Isolation::Process);
    let plugin = loader().load_or_retry(spec.clone()).await.expect("it is there");
    let problem = plugin.problem().expect("it does not run");
    assert!(
        problem.contains("SIGABRT") && problem.contains("while the plugin started"),
        "{problem}"
    );
    let error = get(&plugin, "m1").await.expect_err("it is down");
    assert_eq!((error.kind, error.to_string()), (ErrorKind::Transient, problem));
    std::fs::remove_file(&bomb).expect("removed");
    wait_until_up(&plugin).await;
    get(&plugin, "m1").await.expect("it answers");

    // Where trying again cannot help, it fails as ever.
    let spec = PluginSpec { isolation: Isolation::None, path: "/no/such.so".into(), ..spec };
    let error = loader().load_or_retry(spec.clone()).await.expect_err("it is not there");
    assert!(matches!(error, LoadError::Open { .. }), "{}", chain(&error));
    let spec = spec.with_isolation(Isolation::Process);
    let error = Loader::new().load_or_retry(spec).await.expect_err("nobody runs it");
    assert!(matches!(error, LoadError::NoIsolation { .. }), "{}", chain(&error));
}

#[tokio::test]
async fn a_process_that_hangs_is_killed_and_started_again() {
    let spec = PluginSpec::new("t0", fixture("trouble"))
        .with_config_json("{}")
        .with_isolation(Isolation::Process);
    let limit = Duration::from_secs(1);
    let plugin = loader().with_hang_timeout(limit).load(spec).await.expect("it starts");
    // Slow calls are no hang.
    let before = plugin.process().expect("it runs");
    let slow = CallContext::new("r1").with_timeout(limit * 3);
    let pods = plugin.pods().expect("machines");
    let error = pods.get(slow, GetRequest { id: "sleep".into() }).await.expect_err("its deadline");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert_eq!(plugin.process(), Some(before), "a call may take long");

    // Its only thread is lost, as by a lock that nobody gives back; or the whole process is.
    for hang in [true, false] {
        let before = plugin.process().expect("it runs");
        let call = match hang {
            true => get(&plugin, "block for ever"),
            false => {
                let pid = rustix::process::Pid::from_raw(before.cast_signed()).expect("an id");
                rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stopped");
                get(&plugin, "m1")
            }
        };
        let error = call.await.expect_err("it hangs");
        check_is_the_end_of_the_process(&error, "was killed: its threads answered nothing for 1 s");
        wait_until("the end of the process", || !lives(before)).await;
        wait_until_up(&plugin).await;
        get(&plugin, "m1").await.expect("it answers again");
    }
}
