//! What the daemon does when it starts and ends, and what it refuses to start on.

#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use common::Node;
use infranetes_cri::api::v1;
use rustix::process::Signal;

#[tokio::test]
async fn it_serves_until_it_is_told_to_end_and_leaves_no_socket() {
    let node = Node::new("");
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = node.start().await;
        let mode = fs::metadata(node.path("cri.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let answer = daemon.runtime().await.version(v1::VersionRequest::default()).await.unwrap();
        let version = answer.into_inner();
        assert_eq!(version.version, "0.1.0");
        assert_eq!(version.runtime_name, "infranetes");
        assert_eq!(version.runtime_api_version, "v1");
        assert!(!version.runtime_version.is_empty());
        assert!(daemon.end(signal).await, "{}", daemon.log());
        assert!(!node.path("cri.sock").exists());
    }
}

#[tokio::test]
async fn a_killed_daemons_socket_and_state_are_taken_up() {
    let node = Node::new("");
    let mut daemon = node.start().await;
    daemon.end(Signal::KILL).await;
    assert!(node.path("cri.sock").exists());
    node.start().await;
}

#[tokio::test]
async fn an_idle_client_does_not_keep_it_from_ending() {
    let node = Node::new("shutdown_grace = \"1s\"\n");
    let mut daemon = node.start().await;
    let _idle = daemon.runtime().await;
    let _silent = std::os::unix::net::UnixStream::connect(node.path("cri.sock")).unwrap();
    assert!(daemon.end(Signal::TERM).await, "{}", daemon.log());
}

#[tokio::test]
async fn two_daemons_cannot_have_one_state_directory() {
    let node = Node::new("");
    let daemon = node.start().await;
    let other = format!("unix://{}", node.path("other.sock").display());
    let said = node.fails(&["--listen", &other]);
    assert!(said.contains("is in use by another infranetes-cri"), "{said}");
    assert!(said.contains(&format!("process {}", daemon.pid())), "{said}");
    assert!(daemon.try_runtime().await.is_some(), "the first one goes on");
}

#[tokio::test]
async fn two_daemons_cannot_have_one_socket() {
    let node = Node::new("");
    let daemon = node.start().await;
    let said = node.fails(&["--state-dir", node.path("other").to_str().unwrap()]);
    assert!(said.contains("another process listens on"), "{said}");
    assert!(daemon.try_runtime().await.is_some(), "the first one goes on");
}

#[tokio::test]
async fn a_path_that_is_no_socket_is_left_alone() {
    let node = Node::new("");
    fs::write(node.path("cri.sock"), "precious").unwrap();
    let said = node.fails(&[]);
    assert!(said.contains("is there and is no socket"), "{said}");
    assert_eq!(fs::read_to_string(node.path("cri.sock")).unwrap(), "precious");
}

#[tokio::test]
async fn systemd_is_told_when_it_serves() {
    let node = Node::new("");
    let path = node.path("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    let _daemon = node.start_with(|command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let mut buffer = [0; 64];
    let length = manager.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1");
}

#[test]
fn a_wrong_configuration_is_refused_with_file_line_and_hint() {
    let node = Node::new("[handlers.vm]\nprovider = \"x\"\nmemry = \"1Gi\"\n");
    for args in [&["serve"][..], &[], &["check-config"]] {
        let said = node.fails(args);
        let expected =
            "config.toml:7: unknown key \"memry\" in [handlers.vm]; did you mean \"memory\"?";
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let said = node.fails(&["--listen", "tcp://0.0.0.0:1"]);
    assert!(said.contains("unknown key"), "the file is read first: {said}");
    fs::remove_file(node.path("config.toml")).unwrap();
    let said = node.fails(&[]);
    assert!(said.contains("cannot read") && said.contains("No such file"), "{said}");
}

#[test]
fn check_config_says_what_is_wrong_and_what_is_meant() {
    let node = Node::new("default_handler = \"vm\"\n[handlers.vm]\nprovider = \"cloud\"\n");
    let said = node.fails(&["check-config"]);
    assert!(said.contains("providers.d/cloud.toml is missing"), "{said}");
    fs::write(node.path("providers.d/cloud.toml"), "plugin = \"/nonexistent.so\"\n").unwrap();
    let said = node.fails(&["check-config"]);
    assert!(said.contains("provider cloud: ") && said.contains("/nonexistent.so"), "{said}");
    assert!(!node.path("state").exists(), "nothing was started");
    node.configure("");
    let said = node.fails(&["check-config"]);
    assert!(said.contains("there is no handler"), "{said}");
}

#[test]
fn a_damaged_record_is_refused_and_left_as_it_is() {
    let node = Node::new("");
    fs::create_dir(node.path("state")).unwrap();
    let garbage = b"this is no record".repeat(1000);
    fs::write(node.path("state/records.redb"), &garbage).unwrap();
    let said = node.fails(&[]);
    assert!(said.contains("records.redb") && said.contains("damaged"), "{said}");
    assert_eq!(fs::read(node.path("state/records.redb")).unwrap(), garbage);
}

#[test]
fn a_socket_that_somebody_else_serves_is_refused() {
    let node = Node::new("");
    let _other = UnixListener::bind(node.path("cri.sock")).unwrap();
    let said = node.fails(&[]);
    assert!(said.contains("another process listens on"), "{said}");
}
