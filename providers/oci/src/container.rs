//! One container: its state, its supervisor, its output.
//!
//! ```text
//! Created ── start ──► Running ── exit ──► Exited
//!    └── start that fails ────────────────────┘
//! ```
//!
//! The state is a watched value: whoever waits for an exit watches it. One supervisor task per running container waits for the
//! runtime process, reads the output to its end, finds out why it ended, and publishes that; nothing else changes a
//! running container's state.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use infranetes_sdk::v1::{
    ContainerState, ContainerStatus, CreateContainerRequest, LogStream, ProcessUser,
};
use infranetes_sdk::{ProviderError, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::{Child, ChildStdin};
use tokio::sync::{broadcast, watch};
use tokio::time::{sleep, timeout};

use crate::cgroup::{Cgroup, OomWatch};
use crate::client::{
    RunFiles, Runtime, Streams, cannot_run, exit_code, failed_exec_code, runtime_failed,
    said_at_the_last_moment,
};
use crate::console::{Console, ConsoleSocket};
use crate::convert::spec::Process;
use crate::error::io_error;
use crate::image::LayerPath;
use crate::live::Audience;
use crate::rootfs::Rootfs;
use crate::source::Source;
use crate::spool::{CHUNK_BYTES, Spool};
use crate::stats::LayerUsage;

/// A container, from its creation to its removal.
pub(crate) struct Container {
    pub(crate) request: CreateContainerRequest,
    pub(crate) layers: Vec<LayerPath>,
    pub(crate) process: Process,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Rootfs,
    pub(crate) cgroup: Cgroup,
    pub(crate) layer: LayerUsage,
    pub(crate) spool: Arc<Spool>,
    /// What attached clients see, from now on.
    pub(crate) live: Audience,
    pub(crate) status: watch::Sender<ContainerStatus>,
    pub(crate) input: tokio::sync::Mutex<Input>,
    /// One start at a time; also held while it is removed.
    pub(crate) turn: tokio::sync::Mutex<()>,
    running: Mutex<Option<Arc<OwnedFd>>>,
    /// What came on standard error before the program was seen running: it may be the runtime's.
    early: Mutex<Vec<u8>>,
}

/// Where standard input goes.
#[derive(Default)]
pub(crate) enum Input {
    /// There is none, or it was closed.
    #[default]
    Closed,
    Pipe(ChildStdin),
    Terminal(Arc<Console>),
}

/// What starting needs besides the container.
#[derive(Clone)]
pub(crate) struct Start {
    pub(crate) runtime: Runtime,
    pub(crate) events: broadcast::Sender<ContainerStatus>,
    pub(crate) limit: Duration,
    pub(crate) console: PathBuf,
}

/// The parts of a container that is created.
pub(crate) struct Parts {
    pub(crate) request: CreateContainerRequest,
    pub(crate) layers: Vec<LayerPath>,
    pub(crate) process: Process,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Rootfs,
    pub(crate) cgroup: Cgroup,
    pub(crate) spool: Spool,
}

impl Container {
    pub(crate) fn new(parts: Parts) -> Self {
        let user = &parts.process.user;
        let status = ContainerStatus {
            id: parts.request.id.clone(),
            state: ContainerState::Created as i32,
            created_unix_ns: now_unix_ns(),
            user: Some(ProcessUser {
                uid: user.uid,
                gid: user.gid,
                groups: user.additional_gids.clone(),
            }),
            ..Default::default()
        };
        Self {
            request: parts.request,
            layers: parts.layers,
            process: parts.process,
            bundle: parts.bundle,
            rootfs: parts.rootfs,
            cgroup: parts.cgroup,
            layer: LayerUsage::default(),
            spool: Arc::new(parts.spool),
            live: Audience::new(),
            status: watch::Sender::new(status),
            input: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            running: Mutex::default(),
            early: Mutex::default(),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.request.id
    }

    pub(crate) fn status(&self) -> ContainerStatus {
        self.status.borrow().clone()
    }

    pub(crate) fn state(&self) -> ContainerState {
        self.status.borrow().state()
    }

    pub(crate) fn files(&self) -> RunFiles {
        RunFiles { pid: self.bundle.join("pid"), log: self.bundle.join("log") }
    }

    /// Runs the program; answers once it runs or cannot.
    pub(crate) async fn start(self: &Arc<Self>, start: &Start) -> Result<()> {
        let _turn = self.turn.lock().await;
        if self.state() != ContainerState::Created {
            return Ok(());
        }
        let started = self.launch(start).await;
        if let Err(error) = &started {
            // Its supervisor may have said so already.
            if self.state() != ContainerState::Exited {
                let said = error.chain();
                self.exited(start, failed_exec_code(&said), "StartError", said);
                self.spool.end();
            }
        }
        started
    }

    /// Sends a signal to the first process; not running is success.
    pub(crate) async fn signal(&self, runtime: &Runtime, number: i32) -> Result<()> {
        let Some(process) = self.process_fd() else { return Ok(()) };
        let Some(signal) = Signal::from_named_raw(number) else {
            return runtime.kill(self.id(), number).await;
        };
        match pidfd_send_signal(process.as_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(io_error("cannot send a signal to the container")(error)),
        }
    }

    /// Lets it stand still, or go on.
    pub(crate) async fn set_paused(&self, paused: bool) -> Result<()> {
        let _turn = self.turn.lock().await;
        if self.state() != ContainerState::Running {
            return Err(ProviderError::conflict(format!("container {} does not run", self.id())));
        }
        let frozen = self.cgroup.set_frozen(paused).await;
        if paused && frozen.is_err() {
            let _ = self.cgroup.set_frozen(false).await;
        }
        pause_outcome(self.id(), paused, frozen)
    }

    /// Kills everything in it and waits for its end.
    pub(crate) async fn kill(&self) -> Result<()> {
        if let Some(process) = self.process_fd() {
            let _ = pidfd_send_signal(process.as_ref(), Signal::KILL);
        }
        self.cgroup.kill().await.map_err(io_error("cannot kill the container"))?;
        if self.wait_exited(KILL_LIMIT).await {
            return Ok(());
        }
        Err(ProviderError::deadline_exceeded("the container does not end, although it was killed"))
    }

    /// Waits for the end of a running container; `false` when the time is over.
    pub(crate) async fn wait_exited(&self, limit: Duration) -> bool {
        let mut status = self.status.subscribe();
        let ended = status.wait_for(|status| status.state() != ContainerState::Running);
        timeout(limit, ended).await.is_ok()
    }

    async fn launch(self: &Arc<Self>, start: &Start) -> Result<()> {
        self.cgroup.make().map_err(io_error("cannot make the container's cgroup"))?;
        let oom = self.cgroup.watch_oom();
        let files = self.files();
        files.remove();
        let asked = self.request.process.clone().unwrap_or_default();
        let socket = asked.tty.then(|| ConsoleSocket::bind(start.console.clone())).transpose()?;
        let streams = match &socket {
            Some(socket) => Streams::Terminal { socket: socket.path() },
            None => Streams::Pipes { stdin: asked.stdin },
        };
        let mut child = start.runtime.run(self.id(), &self.bundle, &files, &streams)?;
        let mut ended = None;
        let console = match &socket {
            Some(socket) => tokio::select! {
                console = socket.receive(start.limit) => match console {
                    Ok(console) => Some(Arc::new(console)),
                    Err(error) => {
                        let _ = child.kill().await;
                        let _ = self.cgroup.kill().await;
                        return Err(error);
                    }
                },
                status = child.wait() => { ended = Some(status); None }
            },
            None => None,
        };
        let output = self.read_output(&mut child, console.as_ref());
        *self.input.lock().await = match (&console, child.stdin.take()) {
            (Some(console), _) => Input::Terminal(console.clone()),
            (None, Some(stdin)) => Input::Pipe(stdin),
            (None, None) => Input::Closed,
        };
        let (told, started) = tokio::sync::oneshot::channel();
        let supervisor =
            Supervisor { container: self.clone(), start: start.clone(), files, oom, output };
        // Dropping the caller's future must not leave a process without its supervisor.
        tokio::spawn(supervisor.run(child, ended, told));
        match timeout(start.limit, started).await {
            Ok(Ok(started)) => started,
            Ok(Err(_)) => Err(ProviderError::internal("the container's supervisor is gone")),
            Err(_) => {
                let _ = self.kill().await;
                Err(ProviderError::deadline_exceeded("the container did not start in time"))
            }
        }
    }

    fn read_output(
        self: &Arc<Self>,
        child: &mut Child,
        console: Option<&Arc<Console>>,
    ) -> Vec<tokio::task::JoinHandle<()>> {
        let mut tasks = Vec::new();
        if let Some(console) = console {
            tasks.push(tokio::spawn(pump(
                Source::console(console.clone()),
                LogStream::Stdout,
                self.clone(),
            )));
        }
        if let Some(stdout) = child.stdout.take() {
            let source = Source::pipe(stdout);
            tasks.push(tokio::spawn(pump(source, LogStream::Stdout, self.clone())));
        }
        if let Some(stderr) = child.stderr.take() {
            let source = Source::pipe(stderr);
            tasks.push(tokio::spawn(pump(source, LogStream::Stderr, self.clone())));
        }
        tasks
    }

    fn process_fd(&self) -> Option<Arc<OwnedFd>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_process(&self, process: Option<OwnedFd>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = process.map(Arc::new);
    }

    fn keep_early(&self, stream: LogStream, data: &[u8]) {
        if stream == LogStream::Stderr && self.state() == ContainerState::Created {
            let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
            let room = EARLY_BYTES.saturating_sub(early.len()).min(data.len());
            early.extend_from_slice(&data[..room]);
        }
    }

    fn early(&self) -> Vec<u8> {
        std::mem::take(&mut *self.early.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn running(&self, start: &Start, pid: u32) {
        self.change(start, |status| {
            status.state = ContainerState::Running as i32;
            status.started_unix_ns = now_unix_ns();
            status.pid = pid;
        });
    }

    fn exited(&self, start: &Start, code: i32, reason: &str, message: String) {
        self.set_process(None);
        tracing::info!(container = self.id(), code, reason, "container exited");
        self.change(start, |status| {
            status.state = ContainerState::Exited as i32;
            status.finished_unix_ns = now_unix_ns();
            status.exit_code = code;
            status.reason = reason.to_owned();
            status.message = message;
            status.pid = 0;
        });
    }

    fn change(&self, start: &Start, change: impl FnOnce(&mut ContainerStatus)) {
        self.status.send_modify(change);
        // Nobody may be listening.
        let _ = start.events.send(self.status());
    }
}

/// Waits for the end of one run.
struct Supervisor {
    container: Arc<Container>,
    start: Start,
    files: RunFiles,
    oom: Option<OomWatch>,
    output: Vec<tokio::task::JoinHandle<()>>,
}

type Told = tokio::sync::oneshot::Sender<Result<()>>;

impl Supervisor {
    async fn run(
        mut self,
        mut child: Child,
        ended: Option<std::io::Result<std::process::ExitStatus>>,
        told: Told,
    ) {
        let mut told = Some(told);
        let status = match ended {
            Some(status) => status,
            None => self.follow(&mut child, &mut told).await,
        };
        let oom = self.container.cgroup.oom_kills().is_some_and(|count| count > 0)
            || self.oom.as_ref().is_some_and(OomWatch::seen);
        // The runtime may have died alone: then nothing of what it started may stay.
        if let Some(process) = self.container.process_fd() {
            let _ = pidfd_send_signal(process.as_ref(), Signal::KILL);
        }
        if let Err(error) = self.container.cgroup.kill().await {
            tracing::warn!(container = self.container.id(), %error, "something of the container is left");
        }
        let code = match status {
            Ok(status) => exit_code(status),
            Err(error) => {
                tracing::warn!(container = self.container.id(), %error, "the exit status is lost");
                LOST_STATUS
            }
        };
        // Whatever it wrote is read before its end is known. A spool that is full holds the rest back for as long as its
        // reader likes; the end is no secret meanwhile.
        let mut output = futures::future::join_all(self.output.drain(..));
        let _ = timeout(OUTPUT_LIMIT, &mut output).await;
        self.publish_exit(code, oom, told);
        output.await;
        self.container.spool.end();
    }

    fn publish_exit(&self, code: i32, oom: bool, mut told: Option<Told>) {
        let was_running = self.container.state() == ContainerState::Running;
        let failure = match was_running || code == 0 {
            true => None,
            false => {
                self.files.error().or_else(|| said_at_the_last_moment(&self.container.early()))
            }
        };
        match failure {
            // The runtime itself failed: the program never ran.
            Some(said) => {
                let code = failed_exec_code(&said);
                self.container.exited(&self.start, code, "StartError", said.clone());
                let error = if code == 128 { runtime_failed(said) } else { cannot_run(said) };
                tell(&mut told, Err(error));
            }
            None => {
                // It may have been quicker than we looked.
                if !was_running {
                    self.container.running(&self.start, 0);
                }
                let reason = match code {
                    _ if oom => "OOMKilled",
                    0 => "Completed",
                    _ => "Error",
                };
                self.container.exited(&self.start, code, reason, String::new());
                tell(&mut told, Ok(()));
            }
        }
    }

    /// Waits for the end of the runtime process, and announces the program in between.
    async fn follow(
        &self,
        child: &mut Child,
        told: &mut Option<Told>,
    ) -> std::io::Result<std::process::ExitStatus> {
        let runtime = child.id();
        let seen = tokio::select! {
            biased;
            status = child.wait() => return status,
            seen = self.until_seen(runtime) => seen,
        };
        match seen {
            Some(Seen::Running(pid, process)) => {
                let ended = process.try_clone().map(wait_process);
                self.container.set_process(Some(process));
                self.container.running(&self.start, pid);
                tell(told, Ok(()));
                let Ok(ended) = ended else { return child.wait().await };
                tokio::select! {
                    biased;
                    status = child.wait() => return status,
                    () = ended => {}
                }
            }
            Some(Seen::Ended) => {}
            None => return child.wait().await,
        }
        // In a shared pid namespace others may outlive the program, and the runtime would wait for them.
        if let Ok(status) = timeout(END_LIMIT, child.wait()).await {
            return status;
        }
        if let Err(error) = self.container.cgroup.kill().await {
            tracing::warn!(container = self.container.id(), %error, "something outlives its container");
        }
        child.wait().await
    }

    /// Waits until the program runs in place of the runtime, or has run already.
    async fn until_seen(&self, runtime: Option<u32>) -> Option<Seen> {
        let runtime = runtime?;
        let rounds = self.start.limit.as_millis() / START_POLL.as_millis();
        for _ in 0..rounds {
            if let Some(pid) = self.files.read_pid() {
                let seen = look(pid, runtime);
                if seen.is_some() {
                    return seen;
                }
            }
            sleep(START_POLL).await;
        }
        None
    }
}

/// What became of a container's first process.
enum Seen {
    Running(u32, OwnedFd),
    Ended,
}

fn look(pid: u32, runtime: u32) -> Option<Seen> {
    let number = Pid::from_raw(pid.cast_signed())?;
    let Ok(process) = pidfd_open(number, PidfdFlags::empty()) else { return Some(Seen::Ended) };
    match std::fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(path) if is_program(&path, runtime) => Some(Seen::Running(pid, process)),
        Ok(_) => None,
        // One that ended has no executable any more.
        Err(_) => Some(Seen::Ended),
    }
}

/// Waits for the end of a process.
async fn wait_process(process: OwnedFd) {
    // No pipe, but it is waited for like one: it becomes readable with the end of the process.
    if let Ok(process) = tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(process) {
        let _ = process.readable().await;
    }
}

fn tell(told: &mut Option<Told>, result: Result<()>) {
    if let Some(told) = told.take() {
        let _ = told.send(result);
    }
}

async fn pump(mut source: Source, stream: LogStream, container: Arc<Container>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match source.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                let data = &buffer[..count];
                container.keep_early(stream, data);
                container.live.show(stream, data).await;
                container.spool.push(stream, now_unix_ns(), data).await;
            }
            Err(error) => {
                tracing::warn!(container = container.id(), %error, "output cannot be read");
                return;
            }
        }
    }
}

/// Whether an executable is not the runtime's own: until the program takes over it is that, or a sealed copy of it.
fn is_program(executable: &std::path::Path, runtime: u32) -> bool {
    let own = std::fs::read_link(format!("/proc/{runtime}/exe")).ok();
    !executable.to_string_lossy().starts_with("/memfd:") && own.as_deref() != Some(executable)
}

pub(crate) fn now_unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

const EARLY_BYTES: usize = 1024;
const START_POLL: Duration = Duration::from_millis(2);
/// Within this the runtime ends, when nothing outlives the program.
const END_LIMIT: Duration = Duration::from_millis(200);
const OUTPUT_LIMIT: Duration = Duration::from_secs(2);
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// What a shell answers for a status out of range.
const LOST_STATUS: i32 = 255;

/// What came of pausing or resuming a container that ran, by what came of its cgroup.
fn pause_outcome(id: &str, paused: bool, frozen: std::io::Result<()>) -> Result<()> {
    match frozen {
        Err(error) if is_gone(&error) && paused => {
            Err(ProviderError::conflict(format!("container {id} has exited")))
        }
        // It ended as soon as it might: it does not stand still.
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            Err(ProviderError::unsupported("this machine has no cgroup hierarchy that freezes"))
        }
        frozen => frozen.map_err(io_error("cannot pause or resume the container")),
    }
}

/// Whether a cgroup is not there any more. The second is of one that went while its file was open.
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::io;

    use infranetes_sdk::ErrorKind;

    use super::*;

    #[test]
    fn who_ended_as_soon_as_it_might_run_again_was_resumed_but_never_paused() {
        let left_out = io::Error::from_raw_os_error(rustix::io::Errno::NODEV.raw_os_error());
        for gone in [io::ErrorKind::NotFound.into(), left_out] {
            let again = io::Error::from_raw_os_error(gone.raw_os_error().unwrap_or(2));
            pause_outcome("c", false, Err(gone)).unwrap();
            let paused = pause_outcome("c", true, Err(again)).unwrap_err();
            assert_eq!(paused.kind, ErrorKind::Conflict);
        }
        for paused in [false, true] {
            pause_outcome("c", paused, Ok(())).unwrap();
            let denied = pause_outcome("c", paused, Err(io::ErrorKind::Unsupported.into()));
            assert_eq!(denied.unwrap_err().kind, ErrorKind::Unsupported);
        }
    }
}
