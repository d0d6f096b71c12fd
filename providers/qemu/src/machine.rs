//! One machine, from its record to its end.
//!
//! ```text
//! Creating ─► Running ─► Stopping ─► Stopped ─► (start) Creating
//!     │          │  │                   ▲
//!     │          │  └── guest powers off┘
//!     └──────────┴─► Failed          any ─► Destroying ─► Gone
//! ```
//!
//! One operation at a time holds `operation`; the process is watched by a task of its own, which alone says how a run
//! ended. What has to survive a daemon is in the record before it happens.

mod checkpoint;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use infranetes_sdk::pod::{MachineEvent, MachineEventKind};
use tokio::process::Child;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, interval, sleep};

use crate::cgroup::{Cgroups, Limits};
use crate::client::{Qmp, QmpEvent};
use crate::console::Console;
use crate::dir::MachineDir;
use crate::ending::{self, Seen};
use crate::error::{QemuError, QmpError};
use crate::files::Files;
use crate::launch::{self, Launcher};
use crate::process::{self, Process};
use crate::record::{End, Power, ProcessRecord, Record};
use crate::taps::{self, Frames};

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Creating,
    Running,
    Stopping,
    Stopped,
    Failed,
    Destroying,
    Gone,
}

/// What all machines of an instance share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) launcher: Launcher,
    pub(crate) files: Files,
    pub(crate) cgroups: Cgroups,
    /// Goes before the id in names of cgroups, so that instances do not mistake each other's.
    pub(crate) cgroup_prefix: String,
    pub(crate) events: broadcast::Sender<MachineEvent>,
    /// True once the provider is dropped: watchers end, machines stay.
    pub(crate) closing: watch::Sender<bool>,
}

/// A machine of this node.
#[derive(Debug)]
pub(crate) struct Machine {
    shared: Arc<Shared>,
    dir: MachineDir,
    record: Mutex<Record>,
    phase: watch::Sender<Phase>,
    operation: tokio::sync::Mutex<()>,
    control: Mutex<Option<Control>>,
    console: Console,
}

/// The hold on a run.
#[derive(Clone, Debug)]
struct Control {
    process: Arc<Process>,
    /// `None` where a daemon of later could not connect.
    qmp: Option<Qmp>,
}

impl Machine {
    /// The machine of a directory whose record is written.
    pub(crate) fn new(shared: Arc<Shared>, dir: MachineDir, record: Record, phase: Phase) -> Self {
        let console_max = shared.launcher.config.console_kib * 1024;
        Self {
            console: Console::new(dir.path().join(launch::CONSOLE), console_max),
            shared,
            dir,
            record: Mutex::new(record),
            phase: watch::Sender::new(phase),
            operation: tokio::sync::Mutex::new(()),
            control: Mutex::new(None),
        }
    }

    pub(crate) fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it was created with.
    pub(crate) fn user_data(&self) -> std::io::Result<Vec<u8>> {
        self.dir.user_data()
    }

    /// Boots it, and answers once QEMU runs. A failure is the machine's: it is `Failed` with a reason.
    pub(crate) async fn launch(self: Arc<Self>) {
        let _operation = self.operation.lock().await;
        if self.phase() == Phase::Creating {
            self.launch_now().await;
        }
    }

    /// Takes up a machine that an earlier daemon left.
    pub(crate) async fn adopt(self: Arc<Self>) {
        let _operation = self.operation.lock().await;
        let record = self.record();
        let Some(process) = record.process else {
            if self.phase() == Phase::Creating {
                self.launch_now().await;
            }
            return;
        };
        match Process::hold(process) {
            Ok(Some(process)) => self.take_up(Arc::new(process)).await,
            Ok(None) => self.found_dead(&record),
            Err(error) => {
                let id = &record.id;
                tracing::error!(machine = %id, %error, "the machine's process cannot be watched");
            }
        }
    }

    /// Boots a machine that is off.
    pub(crate) async fn start(self: Arc<Self>) -> Result<(), QemuError> {
        let _operation = self.operation.lock().await;
        match self.phase() {
            Phase::Running | Phase::Creating => Ok(()),
            Phase::Stopped => {
                self.change(|record| {
                    record.wanted = Power::On;
                    record.end = None;
                })?;
                self.phase.send_replace(Phase::Creating);
                self.launch_now().await;
                match self.record().end {
                    Some(end) => Err(QemuError::EndedEarly { reason: end.message }),
                    None => Ok(()),
                }
            }
            phase => {
                let id = self.id();
                Err(QemuError::Conflict(format!("machine {id} is {phase:?}, not stopped")))
            }
        }
    }

    /// Powers it off: asks the guest, and cuts the power once `grace` passed.
    pub(crate) async fn stop(self: Arc<Self>, grace: Duration) -> Result<(), QemuError> {
        let _operation = self.operation.lock().await;
        match self.phase() {
            Phase::Stopped | Phase::Failed => return Ok(()),
            Phase::Destroying | Phase::Gone => {
                return Err(QemuError::NoSuchMachine { id: self.id() });
            }
            Phase::Creating | Phase::Running | Phase::Stopping => {}
        }
        self.change(|record| record.wanted = Power::Off)?;
        let control = lock(&self.control).clone();
        let Some(control) = control else {
            return self.nothing_runs();
        };
        self.phase.send_replace(Phase::Stopping);
        if let Some(qmp) = &control.qmp {
            if !grace.is_zero() && self.ask(qmp.power_down().await) {
                control.process.ended_within(grace).await;
            }
            if !control.process.ended_within(Duration::ZERO).await && self.ask(qmp.quit().await) {
                control.process.ended_within(QUIT_LIMIT).await;
            }
        }
        self.kill(&control.process).await?;
        self.wait_for_the_watcher().await
    }

    /// Removes it and all that it owns.
    pub(crate) async fn destroy(self: Arc<Self>) -> Result<(), QemuError> {
        // Seen by a launch that is under way, which then gives up.
        self.phase.send_if_modified(|phase| {
            let goes = !matches!(phase, Phase::Destroying | Phase::Gone);
            if goes {
                *phase = Phase::Destroying;
            }
            goes
        });
        let _operation = self.operation.lock().await;
        if self.phase() == Phase::Gone {
            return Ok(());
        }
        if let Some(process) = self.record().process {
            let id = self.id();
            let held =
                Process::hold(process).map_err(|source| QemuError::Process { id, source })?;
            if let Some(process) = held {
                self.kill(&process).await?;
            }
        }
        let cgroup = self.cgroup_name();
        let deadline = Instant::now() + CGROUP_LIMIT;
        while !self.shared.cgroups.remove(&cgroup) && Instant::now() < deadline {
            // The kernel lets go of a cgroup shortly after its last process.
            sleep(POLL).await;
        }
        self.dir.remove()?;
        self.phase.send_replace(Phase::Gone);
        self.emit("the machine was destroyed");
        Ok(())
    }

    async fn launch_now(self: &Arc<Self>) {
        let id = self.id();
        match self.try_launch().await {
            Ok(()) => {
                let port = self.record().port;
                tracing::info!(machine = %id, port, "the machine runs");
                self.leave(Phase::Creating, Phase::Running);
            }
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(machine = %id, reason, "the machine could not be started");
                self.dir.forget_boot_user_data();
                let details = launch::last_words(self.dir());
                let end = End { failed: true, message: reason, details };
                self.end(end, Phase::Failed);
            }
        }
    }

    async fn try_launch(self: &Arc<Self>) -> Result<(), QemuError> {
        let record = self.record();
        let files = self.shared.files.ready(record.uid.is_some())?;
        let user_data = self.dir.prepare_boot(record.uid)?;
        let frames = if record.checkpoint.is_some() { Frames::Own } else { Frames::All };
        let taps = match &record.namespace {
            Some(namespace) => taps::open(namespace, frames).await?,
            None => Vec::new(),
        };
        let names: Vec<String> = taps.iter().map(|tap| tap.name.clone()).collect();
        if names != record.interfaces {
            self.change(|now| now.interfaces.clone_from(&names))?;
        }
        let record = Record { interfaces: names, ..record };
        let mut child =
            self.shared.launcher.spawn(self.dir(), &record, &files, &user_data, taps)?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        let Some(start_time) = process::start_time(pid) else {
            return Err(QemuError::EndedEarly { reason: "its shell did not start".to_owned() });
        };
        let process = ProcessRecord { pid, start_time };
        let held = Process::hold(process)
            .map_err(|source| QemuError::Process { id: record.id.clone(), source })?;
        let Some(held) = held.map(Arc::new) else {
            return Err(QemuError::EndedEarly { reason: "its shell did not stay".to_owned() });
        };
        // The kernel waits until all CPUs have seen the move, 10 to 20 ms; QEMU takes twice as long until it has loaded itself and
        // touches the guest's memory.
        let entering = self.enter_cgroup(&record, pid);
        let told = match self.change(|record| {
            record.process = Some(process);
            record.boot_id = process::boot_id();
            record.port = None;
        }) {
            Ok(()) => launch::give_the_word(&mut child).await,
            Err(error) => {
                let _ = entering.await;
                return Err(error);
            }
        };
        let _ = entering.await;
        told.map_err(|source| QemuError::Spawn { source })?;
        let connected = match self.connect(&held).await {
            Ok(connected) => self.continued(connected, &held, &record).await,
            failed => failed,
        };
        match connected {
            Ok((qmp, events)) => {
                self.watch(Control { process: held, qmp: Some(qmp) }, Some(child), Some(events));
                Ok(())
            }
            Err(error) => {
                let ended = held.ended_within(Duration::ZERO).await;
                self.kill(&held).await?;
                let status = child.wait().await.ok();
                self.change(|record| record.process = None)?;
                Err(match (ended, status) {
                    (true, Some(status)) => {
                        QemuError::EndedEarly { reason: ending::status_text(status) }
                    }
                    _ => error,
                })
            }
        }
    }

    /// Lets a machine that goes on from a checkpoint do so.
    async fn continued(
        &self,
        connected: Connected,
        process: &Process,
        record: &Record,
    ) -> Result<Connected, QemuError> {
        if let Some(path) = &record.checkpoint {
            self.take_in(&connected.0, process, path).await?;
            // From here on it is a machine like others: it boots when it is started again.
            self.change(|record| record.checkpoint = None)?;
        }
        Ok(connected)
    }

    /// Begins to put a process into the machine's cgroup.
    fn enter_cgroup(&self, record: &Record, pid: i32) -> JoinHandle<()> {
        let limits = Limits {
            memory_bytes: self.shared.launcher.memory_bytes(record),
            cpu_millis: record.cpu_millis,
            threads: THREADS,
        };
        let (shared, id, name) = (Arc::clone(&self.shared), self.id(), self.cgroup_name());
        spawn_blocking(move || {
            let hierarchies = shared.cgroups.enter(&name, pid, limits);
            tracing::debug!(machine = %id, pid, hierarchies, "the process has its cgroup");
        })
    }

    /// Connects to a QEMU that starts, learns the agent's port, and forgets the user-data.
    async fn connect(&self, process: &Process) -> Result<Connected, QemuError> {
        let deadline = Instant::now() + CONNECT_LIMIT;
        let (qmp, events) = loop {
            match self.dir.connect(process.record.pid, QMP_LIMIT).await {
                Ok(connected) => break connected,
                Err(source) => {
                    let ended = process.ended_within(Duration::ZERO).await;
                    if ended || self.phase() == Phase::Destroying || Instant::now() >= deadline {
                        return Err(QemuError::Control { source });
                    }
                }
            }
            sleep(POLL).await;
        };
        // QEMU reads its files before it answers.
        self.dir.forget_boot_user_data();
        let guest_port = self.shared.launcher.config.agent_port;
        let port = qmp.forwarded_port(guest_port).await;
        let port = port.map_err(|source| QemuError::Control { source })?;
        if port.is_none() {
            return Err(QemuError::NoForward { port: guest_port });
        }
        self.change(|record| record.port = port)?;
        Ok((qmp, events))
    }

    /// Takes up a process that lives.
    async fn take_up(self: &Arc<Self>, process: Arc<Process>) {
        let id = self.id();
        let pid = process.record.pid;
        if self.record().checkpoint.is_some() {
            return self.give_up(&process).await;
        }
        match self.connect(&process).await {
            Ok((qmp, events)) => {
                let status = qmp.status().await.unwrap_or_default();
                tracing::info!(machine = %id, pid, status, "a machine of an earlier daemon is taken up");
                // That daemon may have died before it had its cgroup.
                let _ = self.enter_cgroup(&self.record(), pid).await;
                if matches!(status.as_str(), "paused" | "postmigrate" | "finish-migrate") {
                    // The daemon died over a checkpoint.
                    let _ = qmp.cancel_migration().await;
                    if let Err(error) = qmp.go_on().await {
                        tracing::warn!(machine = %id, %error, "the guest stands still");
                    }
                }
                self.watch(Control { process, qmp: Some(qmp) }, None, Some(events));
                self.leave(Phase::Creating, Phase::Running);
            }
            Err(_) if process.ended_within(Duration::ZERO).await => self.found_dead(&self.record()),
            // It may be a guest that hangs, or a QEMU that is stuck: it is watched and can be killed.
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(machine = %id, pid, reason, "its QEMU cannot be talked to");
                self.watch(Control { process, qmp: None }, None, None);
            }
        }
    }

    /// Ends a machine that took in a part of a checkpoint while its daemon died. Nobody can say how far it came.
    async fn give_up(&self, process: &Process) {
        if let Err(error) = self.kill(process).await {
            tracing::error!(machine = %self.id(), error = chain(&error), "a machine that is of no use cannot be ended");
        }
        let message = "the daemon ended while the machine took its checkpoint in".to_owned();
        self.end(End { failed: true, message, details: Vec::new() }, Phase::Failed);
    }

    fn found_dead(&self, record: &Record) {
        let end = ending::unseen(record, &process::boot_id(), launch::last_words(self.dir()));
        let phase = if end.failed { Phase::Failed } else { Phase::Stopped };
        self.end(end, phase);
    }

    /// Watches a run to its end.
    fn watch(
        self: &Arc<Self>,
        control: Control,
        child: Option<Child>,
        events: Option<mpsc::Receiver<QmpEvent>>,
    ) {
        let process = control.process.clone();
        *lock(&self.control) = Some(control);
        tokio::spawn(self.clone().watch_to_the_end(process, child, events));
    }

    async fn watch_to_the_end(
        self: Arc<Self>,
        process: Arc<Process>,
        child: Option<Child>,
        events: Option<mpsc::Receiver<QmpEvent>>,
    ) {
        let mut closing = self.shared.closing.subscribe();
        let mut seen = Seen::new(events);
        let mut tick = interval(TRIM_EVERY);
        loop {
            tokio::select! {
                () = process.ended() => break,
                () = seen.listen() => {}
                _ = tick.tick() => {
                    if let Err(error) = self.console.trim() {
                        tracing::debug!(machine = %self.id(), %error, "the console cannot be cut");
                    }
                }
                _ = closing.wait_for(|closing| *closing) => return,
            }
        }
        let end = seen.end(child, self.record().wanted, || launch::last_words(self.dir())).await;
        *lock(&self.control) = None;
        let phase = if end.failed { Phase::Failed } else { Phase::Stopped };
        tracing::info!(machine = %self.id(), end = end.message, failed = end.failed, "the machine ended");
        self.end(end, phase);
    }

    /// Notes how a run ended. A machine that is being destroyed stays so.
    fn end(&self, end: End, phase: Phase) {
        let message = end.message.clone();
        let changed = self.change(|record| {
            record.process = None;
            record.port = None;
            if !end.failed {
                record.wanted = Power::Off;
            }
            record.end = Some(end);
        });
        let going = matches!(self.phase(), Phase::Destroying | Phase::Gone);
        if let Err(error) = changed.as_ref().map_err(chain)
            && !going
        {
            tracing::error!(machine = %self.id(), error, "the machine's end could not be recorded");
        }
        if !going {
            self.phase.send_replace(phase);
            self.emit(&message);
        }
    }

    fn nothing_runs(&self) -> Result<(), QemuError> {
        self.phase.send_replace(Phase::Stopped);
        Ok(())
    }

    async fn wait_for_the_watcher(&self) -> Result<(), QemuError> {
        let mut phases = self.phases();
        let off = phases.wait_for(|phase| !matches!(phase, Phase::Stopping | Phase::Running));
        match tokio::time::timeout(KILL_LIMIT, off).await {
            Ok(_) => Ok(()),
            Err(_) => Err(QemuError::StillThere { id: self.id(), waited: KILL_LIMIT }),
        }
    }

    async fn kill(&self, process: &Process) -> Result<(), QemuError> {
        let id = self.id();
        process.kill().map_err(|source| QemuError::Process { id: id.clone(), source })?;
        match process.ended_within(KILL_LIMIT).await {
            true => Ok(()),
            false => Err(QemuError::StillThere { id, waited: KILL_LIMIT }),
        }
    }

    /// Whether a command was taken. One that was not is followed by a harder one.
    fn ask(&self, answer: Result<(), QmpError>) -> bool {
        if let Err(error) = &answer {
            tracing::debug!(machine = %self.id(), %error, "QEMU did not take the command");
        }
        answer.is_ok()
    }

    /// Changes the record, on disk first.
    fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), QemuError> {
        let mut record = lock(&self.record);
        let mut changed = record.clone();
        change(&mut changed);
        let saved =
            changed.save(self.dir()).map_err(QemuError::io("write the record in", self.dir()));
        // What is true stays true when it cannot be written; the caller decides whether to go on.
        *record = changed;
        saved
    }

    fn leave(&self, from: Phase, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let leaves = *phase == from;
            if leaves {
                *phase = to;
            }
            leaves
        });
    }

    fn emit(&self, message: &str) {
        // Nobody listens: then nobody misses it.
        let _ = self.shared.events.send(MachineEvent {
            machine_id: self.id(),
            kind: MachineEventKind::Gone as i32,
            message: message.to_owned(),
        });
    }

    fn cgroup_name(&self) -> String {
        format!("{}-{}", self.shared.cgroup_prefix, self.id())
    }

    fn id(&self) -> String {
        lock(&self.record).id.clone()
    }
}

/// A QEMU that answers, and what it says by itself.
type Connected = (Qmp, mpsc::Receiver<QmpEvent>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with its causes in one line.
fn chain(error: &QemuError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// QEMU takes a while to start on a busy node.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
const QMP_LIMIT: Duration = Duration::from_secs(5);
const QUIT_LIMIT: Duration = Duration::from_secs(2);
const KILL_LIMIT: Duration = Duration::from_secs(10);
const CGROUP_LIMIT: Duration = Duration::from_secs(2);
const TRIM_EVERY: Duration = Duration::from_millis(250);
const POLL: Duration = Duration::from_millis(10);
/// CPUs, I/O threads, and what QEMU's pools may start.
const THREADS: u64 = 512;
