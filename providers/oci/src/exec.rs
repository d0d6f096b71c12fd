//! Runs programs in containers that run.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use infranetes_sdk::v1::exec_input::Input as Part;
use infranetes_sdk::v1::exec_output::Output;
use infranetes_sdk::v1::{ContainerState, ExecExit, ExecInput, ExecOutput, ExecStart};
use infranetes_sdk::{BoxStream, ProviderError, Result, stream};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::client::{RunFiles, Runtime, Streams, exit_code, failed_exec_code, runtime_failed};
use crate::console::{Console, ConsoleSocket};
use crate::container::Container;
use crate::error::io_error;
use crate::source::Source;
use crate::spool::CHUNK_BYTES;

/// Starts execs, and names their files.
pub(crate) struct Execs {
    runtime: Runtime,
    /// Console sockets are here: the path has to be short.
    run: PathBuf,
    next: Arc<AtomicU64>,
    limit: Duration,
}

type Sender = mpsc::Sender<Result<ExecOutput>>;

impl Execs {
    pub(crate) fn new(
        runtime: Runtime,
        run: PathBuf,
        next: Arc<AtomicU64>,
        limit: Duration,
    ) -> Self {
        Self { runtime, run, next, limit }
    }

    /// Runs what the first message asks for; the answer is its output and its exit.
    pub(crate) async fn start(
        &self,
        container: Arc<Container>,
        start: ExecStart,
        input: BoxStream<ExecInput>,
    ) -> Result<BoxStream<ExecOutput>> {
        if container.state() != ContainerState::Running {
            return Err(ProviderError::conflict(format!(
                "container {} does not run",
                container.id()
            )));
        }
        if start.args.is_empty() || start.args.iter().any(|arg| arg.contains('\0')) {
            return Err(ProviderError::invalid("there is no program to run"));
        }
        let (output, outputs) = stream::channel(OUTPUTS);
        let exec = self.spawn(&container, &start)?;
        tokio::spawn(exec.run(start, input, output));
        Ok(outputs)
    }

    fn spawn(&self, container: &Container, start: &ExecStart) -> Result<Exec> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let file = |what: &str| container.bundle.join(format!("exec{number}.{what}"));
        let files =
            Files { run: RunFiles { pid: file("pid"), log: file("log") }, process: file("json") };
        let mut process = container.process.clone();
        process.args.clone_from(&start.args);
        process.terminal = start.tty;
        if start.tty && !process.env.iter().any(|variable| variable.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        let text = serde_json::to_vec(&process).map_err(std::io::Error::from);
        text.and_then(|text| write_private(&files.process, &text))
            .map_err(io_error("cannot write down what to run"))?;
        let socket = self.run.join(format!("x{number}"));
        let socket = start.tty.then(|| ConsoleSocket::bind(socket)).transpose()?;
        let streams = match &socket {
            Some(socket) => Streams::Terminal { socket: socket.path() },
            None => Streams::Pipes { stdin: start.stdin },
        };
        let child = self.runtime.exec(container.id(), &files.process, &files.run, &streams)?;
        Ok(Exec { child, files, socket, limit: self.limit })
    }
}

/// The files of one exec; gone with it.
struct Files {
    run: RunFiles,
    process: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        self.run.remove();
        let _ = std::fs::remove_file(&self.process);
    }
}

/// One program that runs in a container.
struct Exec {
    child: Child,
    files: Files,
    socket: Option<ConsoleSocket>,
    limit: Duration,
}

impl Exec {
    async fn run(mut self, start: ExecStart, input: BoxStream<ExecInput>, output: Sender) {
        let limit = match start.timeout_ms {
            0 => FOR_EVER,
            limit => Duration::from_millis(limit),
        };
        let mut readers = Vec::new();
        let (over, is_over) = watch::channel(false);
        let drive = self.drive(input, &output, &is_over, &mut readers);
        let ended = tokio::select! {
            ended = timeout(limit, drive) => ended,
            // Whoever dropped the output wants the end of it.
            () = output.closed() => {
                self.kill().await;
                return;
            }
        };
        let exit = match ended {
            Ok(Ok(code)) => ExecExit { code, timed_out: false },
            Ok(Err(error)) => {
                self.kill().await;
                let _ = output.send(Err(error)).await;
                return;
            }
            Err(_) => {
                self.kill().await;
                ExecExit { code: KILLED, timed_out: true }
            }
        };
        // What the program left is read to its end, however slowly the client takes it.
        over.send_replace(true);
        futures::future::join_all(readers).await;
        let _ = output.send(Ok(ExecOutput { output: Some(Output::Exit(exit)) })).await;
    }

    async fn drive(
        &mut self,
        input: BoxStream<ExecInput>,
        output: &Sender,
        is_over: &watch::Receiver<bool>,
        readers: &mut Vec<tokio::task::JoinHandle<()>>,
    ) -> Result<i32> {
        let console = match &self.socket {
            Some(socket) => tokio::select! {
                console = socket.receive(self.limit) => Some(Arc::new(console?)),
                status = self.child.wait() => return self.code(status),
            },
            None => None,
        };
        if let Some(console) = &console {
            let (source, output) = (Source::console(console.clone()), output.clone());
            readers.push(tokio::spawn(read(source, Output::Stdout, output, is_over.clone())));
        }
        if let Some(stdout) = self.child.stdout.take() {
            let (source, output) = (Source::pipe(stdout), output.clone());
            readers.push(tokio::spawn(read(source, Output::Stdout, output, is_over.clone())));
        }
        if let Some(stderr) = self.child.stderr.take() {
            let (source, output) = (Source::pipe(stderr), output.clone());
            readers.push(tokio::spawn(read(source, Output::Stderr, output, is_over.clone())));
        }
        let writing = write_input(input, self.child.stdin.take(), console);
        let status = tokio::select! {
            status = self.child.wait() => status,
            error = writing => return Err(error),
        };
        self.code(status)
    }

    fn code(&self, status: std::io::Result<std::process::ExitStatus>) -> Result<i32> {
        let status = status.map_err(io_error("the exit status of the program is lost"))?;
        // Only the runtime's own failures are in its log; a program may well answer the same number.
        let Some(said) = self.files.run.error().filter(|_| self.files.run.read_pid().is_none())
        else {
            return Ok(exit_code(status));
        };
        match failed_exec_code(&said) {
            code @ (126 | 127) => Ok(code),
            _ => Err(runtime_failed(said)),
        }
    }

    /// Kills the program and all that it started.
    async fn kill(&mut self) {
        // The runtime may be about to start it: its process is known in a moment, or never.
        for _ in 0..KILL_ROUNDS {
            if self.files.run.read_pid().is_some() || !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            sleep(KILL_PAUSE).await;
        }
        if let Some(pid) = self.files.run.read_pid() {
            kill_tree(pid).await;
        }
        if timeout(DRAIN_LIMIT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// Passes input on until it ends; comes back only with an error.
async fn write_input(
    mut input: BoxStream<ExecInput>,
    mut stdin: Option<ChildStdin>,
    console: Option<Arc<Console>>,
) -> ProviderError {
    let has_input = stdin.is_some();
    while let Some(message) = input.next().await {
        let written = match (message, &console) {
            (Err(error), _) => return error,
            (Ok(ExecInput { input: Some(Part::Stdin(data)) }), Some(console)) => {
                console.write_all(&data).await
            }
            (Ok(ExecInput { input: Some(Part::Stdin(data)) }), None) => match &mut stdin {
                Some(pipe) => pipe.write_all(&data).await,
                // It closed its input, and whoever types may not know yet.
                None if has_input => Ok(()),
                None => return ProviderError::invalid("input came for a program without input"),
            },
            (Ok(ExecInput { input: Some(Part::StdinClosed(_)) }), Some(console)) => {
                console.close_input().await
            }
            (Ok(ExecInput { input: Some(Part::StdinClosed(_)) }), None) => {
                stdin = None;
                Ok(())
            }
            (Ok(ExecInput { input: Some(Part::Resize(size)) }), Some(console)) => {
                console.resize(&size)
            }
            (Ok(ExecInput { input: Some(Part::Resize(_)) }), None) => {
                return ProviderError::invalid("only a terminal has a size");
            }
            (Ok(_), _) => return ProviderError::invalid("an exec was started twice"),
        };
        if written.is_err() {
            // It closed its input, which is its right.
            stdin = None;
        }
    }
    // Nobody will write any more.
    drop(stdin);
    std::future::pending().await
}

/// Passes output on to its end. Once the program is over that is what it left: a process that it left behind may hold the pipe
/// for ever, and what that writes later is nobody's.
async fn read(
    mut source: Source,
    wrap: fn(Vec<u8>) -> Output,
    output: Sender,
    mut is_over: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut left_bytes = LEFT_BYTES;
    loop {
        let read = tokio::select! {
            biased;
            read = source.read(&mut buffer) => read,
            () = silence(&mut is_over) => return,
        };
        let Ok(count @ 1..) = read else { return };
        if *is_over.borrow() {
            left_bytes = left_bytes.saturating_sub(count);
        }
        let message = ExecOutput { output: Some(wrap(buffer[..count].to_vec())) };
        if output.send(Ok(message)).await.is_err() || left_bytes == 0 {
            return;
        }
    }
}

/// Waits until the program is over, and then a little.
async fn silence(is_over: &mut watch::Receiver<bool>) {
    let _ = is_over.wait_for(|is_over| *is_over).await;
    sleep(DRAIN_LIMIT).await;
}

/// Kills a process, its descendants, and all in their sessions, until none is left.
///
/// A process that began a session of its own and was orphaned before the first look gets away; it ends with the container.
async fn kill_tree(root: u32) {
    let ours = read_process(std::process::id()).map(|process| process.session);
    let (mut pids, mut sessions) = (HashSet::from([root]), HashSet::new());
    // The runtime gives each program a session of its own; its leader may be gone already.
    sessions
        .extend(read_process(root).map(|process| process.session).filter(|one| Some(*one) != ours));
    for _ in 0..KILL_ROUNDS {
        let found = tokio::task::spawn_blocking(processes).await.unwrap_or_default();
        let mut alive = 0;
        // Parents may come after their children in the list: look again until nothing is added.
        loop {
            let before = pids.len();
            for process in &found {
                if pids.contains(&process.pid)
                    || pids.contains(&process.parent)
                    || sessions.contains(&process.session)
                {
                    pids.insert(process.pid);
                    // Those that it began itself.
                    if pids.contains(&process.session) {
                        sessions.insert(process.session);
                    }
                }
            }
            if pids.len() == before {
                break;
            }
        }
        for process in found.iter().filter(|one| pids.contains(&one.pid) && !one.is_zombie) {
            alive += 1;
            kill_one(process);
        }
        if alive == 0 {
            return;
        }
        sleep(KILL_PAUSE).await;
    }
    tracing::warn!(pid = root, "processes of an exec stay alive after SIGKILL");
}

/// A process, as far as it matters here.
struct Found {
    pid: u32,
    parent: u32,
    session: u32,
    started: u64,
    is_zombie: bool,
}

fn processes() -> Vec<Found> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| read_process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn read_process(pid: u32) -> Option<Found> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses, and may hold any of them.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Found {
        pid,
        is_zombie: *fields.first()? == "Z",
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// Kills exactly the process that was found: its number may be another's by now.
fn kill_one(found: &Found) {
    let Some(pid) = Pid::from_raw(found.pid.cast_signed()) else { return };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if read_process(found.pid).is_some_and(|now| now.started == found.started) {
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
}

fn write_private(path: &std::path::Path, text: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text)
}

const OUTPUTS: usize = 16;
/// The exit code of what SIGKILL ended.
const KILLED: i32 = 137;
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// More than any pipe holds.
const LEFT_BYTES: usize = 2 << 20;
const KILL_ROUNDS: u32 = 200;
const KILL_PAUSE: Duration = Duration::from_millis(10);
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
