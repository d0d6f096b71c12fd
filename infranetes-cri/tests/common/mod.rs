//! A node in a directory: its configuration, its daemon, and a client of its socket.

#![expect(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use infranetes_cri::api::v1::image_service_client::ImageServiceClient;
use infranetes_cri::api::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

pub(crate) type Runtime = RuntimeServiceClient<Channel>;
pub(crate) type Images = ImageServiceClient<Channel>;

/// A node's directory.
pub(crate) struct Node {
    dir: tempfile::TempDir,
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    process: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Node {
    /// A node whose configuration is its own paths and `rest`.
    pub(crate) fn new(rest: &str) -> Node {
        let node = Node { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(node.path("providers.d")).unwrap();
        node.configure(rest);
        node
    }

    pub(crate) fn configure(&self, rest: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "listen = \"unix://{dir}/cri.sock\"\nstate_dir = \"{dir}/state\"\n\
             providers_dir = \"{dir}/providers.d\"\nnode = \"test\"\n{rest}"
        );
        fs::write(self.path("config.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = program();
        command.arg("--config").arg(self.path("config.toml"));
        command
    }

    /// Runs the program to its end, which has to come by itself.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        to_the_end(self.command(), args)
    }

    /// Runs the program without a configuration; it has to fail. Answers what it says.
    pub(crate) fn fails_alone(&self, args: &[&str]) -> String {
        what_failed(&self.run_alone(args))
    }

    /// Runs the program without a configuration to its end, which has to come by itself.
    pub(crate) fn run_alone(&self, args: &[&str]) -> Output {
        to_the_end(program(), args)
    }

    /// As [`Node::run_alone`], with another standard output.
    pub(crate) fn run_alone_into(&self, args: &[&str], stdout: Stdio) -> Output {
        program().args(args).stdin(Stdio::null()).stdout(stdout).output().unwrap()
    }

    /// Runs the program, which has to fail; answers what it says.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        what_failed(&self.run(args))
    }

    /// Starts the daemon and does not wait.
    pub(crate) fn start_with(&self, change: impl FnOnce(&mut Command)) -> Daemon {
        let log = self.path("daemon.log");
        let file = fs::OpenOptions::new().append(true).create(true).open(&log).unwrap();
        let mut command = self.command();
        change(&mut command);
        let process = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Daemon { process, socket: self.path("cri.sock"), log }
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) async fn start(&self) -> Daemon {
        let mut daemon = self.start_with(|_| ());
        let deadline = Instant::now() + LIMIT;
        while daemon.try_runtime().await.is_none() {
            let ended = daemon.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}: {}", daemon.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        daemon
    }
}

impl Daemon {
    pub(crate) async fn try_runtime(&self) -> Option<Runtime> {
        Some(RuntimeServiceClient::new(channel(&self.socket).await?))
    }

    pub(crate) async fn runtime(&self) -> Runtime {
        self.try_runtime().await.unwrap()
    }

    pub(crate) async fn images(&self) -> Images {
        ImageServiceClient::new(channel(&self.socket).await.unwrap())
    }

    pub(crate) async fn channel(&self) -> Channel {
        channel(&self.socket).await.unwrap()
    }

    /// All that it logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal and waits for its end; answers whether it ended well.
    pub(crate) async fn end(&mut self, signal: rustix::process::Signal) -> bool {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < deadline, "the daemon does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infranetes-cri"));
    command.env_remove("INFRANETES_LOG").stdin(Stdio::null());
    command
}

fn to_the_end(mut command: Command, args: &[&str]) -> Output {
    let mut child =
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{args:?} does not end: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn what_failed(output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "it succeeded: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

async fn channel(socket: &Path) -> Option<Channel> {
    let socket = socket.to_owned();
    let connect = move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    // The address is not used, but has to be one.
    let endpoint = Endpoint::from_static("http://localhost").timeout(LIMIT);
    endpoint.connect_with_connector(tower::service_fn(connect)).await.ok()
}

const LIMIT: Duration = Duration::from_secs(30);
