//! One machine, from its record to its end.
//!
//! ```text
//! Creating ─► Running ─► Stopping ─► Stopped ─► (start) Creating
//!     │          │  │                   ▲
//!     │          │  └── agent shuts down ┘
//!     └──────────┴─► Failed          any ─► Destroying ─► Gone
//! ```
//!
//! One operation at a time holds `operation`; the processes are watched by a task of its own, which alone says how a run
//! ended. What has to survive a daemon is in the record before it happens.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use infranetes_sdk::pod::{MachineEvent, MachineEventKind};
use rustix::process::Signal;
use tokio::process::Child;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::cgroup::{Cgroups, Limits};
use crate::client;
use crate::config::Config;
use crate::console::Console;
use crate::dir::MachineDir;
use crate::ending;
use crate::error::ProcessError;
use crate::plan::Size;
use crate::plugins::{self, Words};
use crate::process::{self, Held};
use crate::record::{End, Power, Record};

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
    pub(crate) config: Config,
    pub(crate) cgroups: Cgroups,
    /// Goes before the id in names of cgroups, so that instances do not mistake each other's.
    pub(crate) cgroup_prefix: String,
    pub(crate) events: broadcast::Sender<MachineEvent>,
    /// True once the provider is dropped: watchers end, machines stay.
    pub(crate) closing: watch::Sender<bool>,
    /// The run directory is ours as long as anything works in it.
    pub(crate) _lock: File,
}

/// A machine of this node.
#[derive(Debug)]
pub(crate) struct Machine {
    shared: Arc<Shared>,
    dir: MachineDir,
    record: Mutex<Record>,
    phase: watch::Sender<Phase>,
    operation: tokio::sync::Mutex<()>,
    running: Mutex<Option<Arc<Processes>>>,
    watcher: Mutex<Option<JoinHandle<()>>>,
    console: Console,
}

/// What is held of a run. The agent is the first process of its namespace: the kernel ends all others there before it.
#[derive(Debug)]
struct Processes {
    keeper: Held,
    agent: Option<Held>,
}

impl Machine {
    /// The machine of a directory whose record is written.
    pub(crate) fn new(shared: Arc<Shared>, dir: MachineDir, record: Record, phase: Phase) -> Self {
        Self {
            console: Console::new(dir.console(), shared.config.console_kib * 1024),
            shared,
            dir,
            record: Mutex::new(record),
            phase: watch::Sender::new(phase),
            operation: tokio::sync::Mutex::new(()),
            running: Mutex::new(None),
            watcher: Mutex::new(None),
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

    /// True once the provider is dropped.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.shared.closing.subscribe()
    }

    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    pub(crate) fn dir(&self) -> &MachineDir {
        &self.dir
    }

    /// Boots it, and answers once the agent listens. A failure is the machine's: it is `Failed` with a reason.
    pub(crate) async fn launch(self: Arc<Self>) {
        let _operation = self.operation.lock().await;
        if self.phase() == Phase::Creating {
            self.launch_now().await;
        }
    }

    /// Takes up a machine that an earlier daemon left.
    pub(crate) async fn adopt(self: Arc<Self>) {
        let _operation = self.operation.lock().await;
        if !matches!(self.phase(), Phase::Creating | Phase::Running | Phase::Stopping) {
            return;
        }
        match self.hold() {
            Ok(Some(processes)) => self.take_up(processes).await,
            Ok(None) if self.phase() == Phase::Creating => self.launch_again().await,
            Ok(None) => self.found_dead().await,
            Err(error) => {
                let reason = error.chain();
                tracing::error!(machine = %self.id(), reason, "the machine cannot be watched");
            }
        }
    }

    /// Boots a machine that is off.
    pub(crate) async fn start(self: Arc<Self>) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        match self.phase() {
            Phase::Running | Phase::Creating => Ok(()),
            Phase::Stopped => {
                self.change(|record| {
                    record.wanted = Power::On;
                    record.end = None;
                })?;
                self.phase.send_replace(Phase::Creating);
                self.launch_now().await.map_or(Ok(()), Err)
            }
            phase => {
                let id = self.id();
                Err(ProcessError::Conflict(format!("machine {id} is {phase:?}, not stopped")))
            }
        }
    }

    /// Ends the run: asks the agent, and kills it once `grace` passed.
    pub(crate) async fn stop(self: Arc<Self>, grace: Duration) -> Result<(), ProcessError> {
        let _operation = self.operation.lock().await;
        match self.phase() {
            Phase::Stopped | Phase::Failed => return Ok(()),
            Phase::Destroying | Phase::Gone => {
                return Err(ProcessError::NoSuchMachine { id: self.id() });
            }
            Phase::Creating | Phase::Running | Phase::Stopping => {}
        }
        self.change(|record| record.wanted = Power::Off)?;
        let running = lock(&self.running).clone();
        let Some(running) = running else {
            self.found_dead().await;
            return Ok(());
        };
        self.phase.send_replace(Phase::Stopping);
        if !grace.is_zero() {
            self.send(&running.keeper, Signal::TERM)?;
            running.keeper.ended_within(grace).await;
        }
        self.kill(&running).await?;
        self.wait_for_the_watcher().await
    }

    /// Removes it and all that it owns.
    pub(crate) async fn destroy(self: Arc<Self>) -> Result<(), ProcessError> {
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
        if let Some(processes) = self.hold()? {
            self.kill(&processes).await?;
        }
        // It cleans up, too, and must not come late: the next machine may have the same name.
        let watcher = lock(&self.watcher).take();
        if let Some(watcher) = watcher
            && timeout(WATCHER_LIMIT, watcher).await.is_err()
        {
            return Err(ProcessError::StillThere { id: self.id(), waited: WATCHER_LIMIT });
        }
        self.remove_cgroups().await?;
        let dir = self.dir.clone();
        let removed = tokio::task::spawn_blocking(move || dir.remove()).await;
        removed.map_err(|_| ProcessError::Broken)??;
        self.phase.send_replace(Phase::Gone);
        tracing::info!(machine = %self.id(), "the machine is destroyed");
        self.emit("the machine was destroyed");
        Ok(())
    }

    /// Boots it. The answer is the failure that the machine's record has now.
    async fn launch_now(self: &Arc<Self>) -> Option<ProcessError> {
        let id = self.id();
        let started = Instant::now();
        match self.try_launch().await {
            Ok(()) => {
                let took_ms = started.elapsed().as_millis();
                tracing::info!(machine = %id, took_ms, "the machine runs");
                self.leave(Phase::Creating, Phase::Running);
                None
            }
            Err(ProcessError::Closing) => Some(ProcessError::Closing),
            Err(error) => {
                let message = error.chain();
                tracing::warn!(machine = %id, reason = message, "the machine could not be started");
                self.dir.forget_boot_user_data();
                let details = self.console.last_lines();
                self.end(End { failed: true, message, details });
                Some(error)
            }
        }
    }

    /// A daemon died before the agent listened, or even before it was started: nothing of it was used yet.
    async fn launch_again(self: &Arc<Self>) {
        match self.remove_cgroups().await {
            Ok(()) => drop(self.launch_now().await),
            Err(error) => self.end(End {
                failed: true,
                message: error.chain(),
                details: self.console.last_lines(),
            }),
        }
    }

    async fn try_launch(self: &Arc<Self>) -> Result<(), ProcessError> {
        let record = self.record();
        let config = &self.shared.config;
        client::check(config)?;
        self.dir.prepare_boot()?;
        let cgroup = self.shared.cgroups.of_containers(&self.cgroup_name());
        let words = Words { machine: self.dir.path(), cgroup: &cgroup };
        plugins::lay_out(config, &self.dir.plugins(), words)?;
        let mut child = client::spawn(config, &self.dir, &record)?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        let Some(identity) = process::identify(pid) else {
            return Err(self.ended_early(&mut child).await);
        };
        self.change(|record| {
            record.boot_id = process::boot_id();
            record.keeper = Some(identity);
            record.agent = None;
        })?;
        let Some(processes) = self.hold()? else {
            return Err(self.ended_early(&mut child).await);
        };
        self.enter_cgroups(&record, pid);
        let told = client::give_the_word(&mut child).await;
        let listens = match told {
            Ok(()) => self.wait_until_it_listens(&processes).await,
            Err(source) => Err(ProcessError::Spawn { source }),
        };
        match listens {
            Ok(processes) => {
                self.watch(Arc::new(processes), Some(child));
                Ok(())
            }
            // The next daemon takes it up.
            Err(ProcessError::Closing) => Err(ProcessError::Closing),
            Err(error) => {
                let early = processes.keeper.ended_within(Duration::ZERO).await;
                let error = if early { self.ended_early(&mut child).await } else { error };
                self.clean_up(&processes).await?;
                // It is dead; this takes its status from the process table.
                let _ = timeout(KILL_LIMIT, child.wait()).await;
                Err(error)
            }
        }
    }

    fn enter_cgroups(&self, record: &Record, pid: i32) {
        let cpu_millis = Size::parse(&record.machine_type).map_or(0, |size| size.cpu_millis);
        let limits = Limits { cpu_millis, pids: self.shared.config.max_pids };
        let hierarchies = self.shared.cgroups.enter(&self.cgroup_name(), pid, limits);
        tracing::debug!(machine = %record.id, pid, hierarchies, "the machine has its cgroups");
    }

    /// Waits until the agent accepts, and takes hold of it, too.
    async fn wait_until_it_listens(&self, begun: &Processes) -> Result<Processes, ProcessError> {
        let limit = Duration::from_secs(self.shared.config.start_timeout_s);
        let deadline = Instant::now() + limit;
        let socket = self.dir.socket();
        let agent = loop {
            let agent = process::child_of(begun.keeper.record.pid);
            if let Some(agent) = agent
                && client::listens(agent.pid, &socket)
            {
                break agent;
            }
            if self.phase() == Phase::Destroying {
                return Err(ProcessError::Destroyed { id: self.id() });
            }
            if *self.shared.closing.borrow() {
                return Err(ProcessError::Closing);
            }
            if Instant::now() >= deadline {
                return Err(ProcessError::NeverListened { waited: limit });
            }
            if begun.keeper.ended_within(POLL).await {
                return Err(ProcessError::EndedEarly {
                    how: "the agent ended".to_owned(),
                    last: self.console.last_lines().pop(),
                });
            }
        };
        self.change(|record| record.agent = Some(agent))?;
        self.hold()?.ok_or_else(|| ProcessError::EndedEarly {
            how: "the agent ended as soon as it listened".to_owned(),
            last: self.console.last_lines().pop(),
        })
    }

    /// Takes up processes that live.
    async fn take_up(self: &Arc<Self>, processes: Processes) {
        let id = self.id();
        let pid = processes.keeper.record.pid;
        if self.phase() != Phase::Creating {
            tracing::info!(machine = %id, pid, "a machine of an earlier daemon is taken up");
            self.watch(Arc::new(processes), None);
            return;
        }
        match self.wait_until_it_listens(&processes).await {
            Ok(processes) => {
                tracing::info!(machine = %id, pid, "a machine of an earlier daemon runs");
                self.watch(Arc::new(processes), None);
                self.leave(Phase::Creating, Phase::Running);
            }
            Err(ProcessError::Closing) => {}
            Err(error) => {
                let cleaned = self.clean_up(&processes).await;
                let error = cleaned.err().unwrap_or(error);
                self.dir.forget_boot_user_data();
                let details = self.console.last_lines();
                self.end(End { failed: true, message: error.chain(), details });
            }
        }
    }

    async fn found_dead(&self) {
        if let Err(error) = self.remove_cgroups().await {
            tracing::warn!(machine = %self.id(), reason = error.chain(), "something is left");
        }
        let end = ending::unseen(&self.record(), &process::boot_id(), self.console.last_lines());
        self.end(end);
    }

    /// Watches a run to its end.
    fn watch(self: &Arc<Self>, processes: Arc<Processes>, child: Option<Child>) {
        *lock(&self.running) = Some(processes.clone());
        let watcher = tokio::spawn(self.clone().watch_to_the_end(processes, child));
        *lock(&self.watcher) = Some(watcher);
    }

    async fn watch_to_the_end(self: Arc<Self>, processes: Arc<Processes>, child: Option<Child>) {
        let mut closing = self.shared.closing.subscribe();
        let mut tick = interval(TRIM_EVERY);
        loop {
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return,
                () = processes.keeper.ended() => break,
                _ = tick.tick() => {
                    if let Err(error) = self.console.trim() {
                        tracing::debug!(machine = %self.id(), %error, "the console cannot be cut");
                    }
                }
            }
        }
        let status = match child {
            Some(mut child) => timeout(LATE, child.wait()).await.ok().and_then(Result::ok),
            None => None,
        };
        // Somebody who destroys it does this, too, and hears of failures.
        if let Err(error) = self.clean_up(&processes).await {
            tracing::warn!(machine = %self.id(), reason = error.chain(), "something is left");
        }
        *lock(&self.running) = None;
        let end = ending::judge(self.record().wanted, status, self.console.last_lines());
        tracing::info!(machine = %self.id(), end = end.message, failed = end.failed, "the machine ended");
        self.end(end);
    }

    /// Notes how a run ended. A machine that is being destroyed stays so.
    fn end(&self, end: End) {
        let message = end.message.clone();
        let phase = if end.failed { Phase::Failed } else { Phase::Stopped };
        if matches!(self.phase(), Phase::Destroying | Phase::Gone) {
            return;
        }
        let changed = self.change(|record| {
            record.keeper = None;
            record.agent = None;
            record.wanted = Power::Off;
            record.end = Some(end);
        });
        if let Err(error) = changed {
            let reason = error.chain();
            tracing::error!(machine = %self.id(), reason, "the machine's end could not be recorded");
        }
        self.phase.send_if_modified(|now| {
            let stays = !matches!(now, Phase::Destroying | Phase::Gone);
            if stays {
                *now = phase;
            }
            stays
        });
        self.emit(&message);
    }

    async fn ended_early(&self, child: &mut Child) -> ProcessError {
        let status = timeout(LATE, child.wait()).await.ok().and_then(Result::ok);
        let how = status.map_or("the agent ended".to_owned(), ending::status_text);
        ProcessError::EndedEarly { how, last: self.console.last_lines().pop() }
    }

    async fn wait_for_the_watcher(&self) -> Result<(), ProcessError> {
        let mut phases = self.phases();
        let off = phases.wait_for(|phase| !matches!(phase, Phase::Stopping | Phase::Running));
        match timeout(KILL_LIMIT, off).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ProcessError::StillThere { id: self.id(), waited: KILL_LIMIT }),
        }
    }

    /// Takes hold of the processes that the record names; `None` if the keeper is gone and, with it, the agent.
    fn hold(&self) -> Result<Option<Processes>, ProcessError> {
        let record = self.record();
        let hold = |process| {
            Held::of(process)
                .map_err(|source| ProcessError::Process { id: record.id.clone(), source })
        };
        let agent = record.agent.map(hold).transpose()?.flatten();
        let Some(keeper) = record.keeper.map(hold).transpose()?.flatten() else {
            return Ok(None);
        };
        Ok(Some(Processes { keeper, agent }))
    }

    /// Kills everything of a run, and waits until it is dead.
    async fn kill(&self, processes: &Processes) -> Result<(), ProcessError> {
        let id = self.id();
        // The agent may have been started since we looked.
        let found = process::child_of(processes.keeper.record.pid).map(Held::of).transpose();
        let found = found.map_err(|source| ProcessError::Process { id: id.clone(), source })?;
        let agents = [processes.agent.as_ref(), found.as_ref().and_then(Option::as_ref)];
        for held in agents.into_iter().flatten().chain([&processes.keeper]) {
            self.send(held, Signal::KILL)?;
        }
        for held in agents.into_iter().flatten().chain([&processes.keeper]) {
            if !held.ended_within(KILL_LIMIT).await {
                return Err(ProcessError::StillThere { id, waited: KILL_LIMIT });
            }
        }
        Ok(())
    }

    async fn clean_up(&self, processes: &Processes) -> Result<(), ProcessError> {
        self.kill(processes).await?;
        self.remove_cgroups().await
    }

    /// Kills what is left in the machine's cgroups, and removes them.
    async fn remove_cgroups(&self) -> Result<(), ProcessError> {
        let name = self.cgroup_name();
        let deadline = Instant::now() + KILL_LIMIT;
        loop {
            let id = self.id();
            match self.shared.cgroups.remove(&name) {
                Ok(true) => return Ok(()),
                Ok(false) if Instant::now() >= deadline => {
                    return Err(ProcessError::StillThere { id, waited: KILL_LIMIT });
                }
                Ok(false) => sleep(POLL).await,
                Err(source) => return Err(ProcessError::Cgroup { id, source }),
            }
        }
    }

    fn send(&self, held: &Held, signal: Signal) -> Result<(), ProcessError> {
        held.signal(signal).map_err(|source| ProcessError::Process { id: self.id(), source })
    }

    /// Changes the record, on disk first.
    fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), ProcessError> {
        let mut record = lock(&self.record);
        let mut changed = record.clone();
        change(&mut changed);
        let path = self.dir.path();
        let saved = changed.save(path).map_err(ProcessError::io("write the record in", path));
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From SIGKILL to the end of everything: the kernel may have much memory to give back.
const KILL_LIMIT: Duration = Duration::from_secs(15);
/// From the end of all processes to the end of the task that watched them.
const WATCHER_LIMIT: Duration = Duration::from_secs(40);
/// How long to wait for what is already on its way.
const LATE: Duration = Duration::from_secs(1);
const TRIM_EVERY: Duration = Duration::from_millis(250);
const POLL: Duration = Duration::from_millis(5);
