//! A provider of containers in which nothing runs, and that can tell one lie.

mod program;
mod streams;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use infranetes_sdk::container::{
    ContainerCapabilities, ContainerEvent, ContainerEventsRequest, ContainerRef, ContainerState,
    ContainerStats, ContainerStatus, CreateContainerRequest, DescribeContainerRequest, Empty,
    ExecInput, ExecOutput, ImportChunk, ImportProgress, KillContainerRequest,
    ListContainersRequest, ListContainersResponse, ListImagesRequest, ListImagesResponse, LogChunk,
    LogsInput, MissingRequest, MissingResponse, RemoveImageRequest, StatsRequest, StatsResponse,
    StopContainerRequest, UpdateContainerRequest, UsageRequest, UsageResponse,
};
use infranetes_sdk::{BoxStream, CallContext, ContainerProvider, ProviderError, Result};
use program::{End, Program};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lie {
    None,
    WrongKindForUnknownId,
    RemoveOfNothingFails,
    DeniesStats,
    RunsWithoutImage,
    TakesWrongBytes,
    KeepsHalves,
    ForgetsLayers,
    RemovesUsedImage,
    KeepsUnusedImage,
    RemoveImageOfNothingFails,
    RunsAtOnce,
    IgnoresShapes,
    HasNoProcess,
    ListsOtherwise,
    HasNoCounters,
    RunsWhilePaused,
    StaysPaused,
    UpdateFails,
    UpdatesOnce,
    AllIsWell,
    MixesStreams,
    LosesInput,
    IgnoresTimeout,
    SurvivesDrop,
    OneAtATime,
    LosesEnvironment,
    ForgetsTimes,
    RunsTheDead,
    LosesOutput,
    BeginsAgain,
    HoldsOutput,
    StartsNothing,
    KillsAtOnce,
    NeverKills,
    TakesAnySignal,
    TellsOnlyChanges,
    RemoveDoesNothing,
    GrantsAttach,
    CreatesOnce,
    StartsHalf,
    LateIsInternal,
    Panics,
}

/// Cheap to clone; all clones are one provider.
#[derive(Clone)]
pub(crate) struct Liar {
    lie: Lie,
    state: Arc<Mutex<State>>,
    /// Goes up with everything that a stream may wait for.
    changed: watch::Sender<u64>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct State {
    /// What layers truly are.
    blobs: HashMap<String, Vec<u8>>,
    layers: BTreeSet<String>,
    images: BTreeSet<String>,
    containers: BTreeMap<String, Container>,
    events: Vec<ContainerStatus>,
    /// Programs of exec that live.
    alive: BTreeSet<u32>,
    /// Containers whose limits were changed.
    updated: BTreeSet<String>,
    clock: u64,
    pids: u32,
}

struct Container {
    request: CreateContainerRequest,
    status: ContainerStatus,
    end: End,
    chunks: Vec<LogChunk>,
    paused: bool,
}

impl Liar {
    pub(crate) fn new(lie: Lie, blobs: HashMap<String, Vec<u8>>) -> Self {
        let state = State {
            blobs,
            layers: BTreeSet::new(),
            images: BTreeSet::new(),
            containers: BTreeMap::new(),
            events: Vec::new(),
            alive: BTreeSet::new(),
            updated: BTreeSet::new(),
            clock: 0,
            pids: 100,
        };
        let state = Arc::new(Mutex::new(state));
        Self { lie, state, changed: watch::Sender::new(0), turn: Arc::default() }
    }

    fn tells(&self, lie: Lie) -> bool {
        self.lie == lie
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    fn none(&self, id: &str) -> ProviderError {
        let message = format!("there is no container {id:?}");
        match self.tells(Lie::WrongKindForUnknownId) {
            true => ProviderError::invalid(message),
            false => ProviderError::not_found(message),
        }
    }

    /// A caller without patience gets an answer that says something else.
    fn look_at_the_clock(&self, context: &CallContext) -> Result<()> {
        let hurried = context.remaining().is_some_and(|left| left < Duration::from_secs(1));
        match hurried && self.tells(Lie::LateIsInternal) {
            true => Err(ProviderError::internal("that took too long")),
            false => Ok(()),
        }
    }

    /// Changes a container's status, and tells everybody.
    fn change(&self, id: &str, change: impl FnOnce(&mut ContainerStatus, u64)) {
        let mut state = self.lock();
        state.clock += 1;
        let now = state.clock;
        let Some(container) = state.containers.get_mut(id) else { return };
        change(&mut container.status, now);
        let status = container.status.clone();
        state.events.push(status);
        drop(state);
        self.changed.send_modify(|version| *version += 1);
    }

    fn finish(&self, id: &str, code: i32, reason: &str) {
        let forgets = self.tells(Lie::ForgetsTimes);
        self.change(id, |status, now| {
            if status.state() != ContainerState::Exited {
                status.set_state(ContainerState::Exited);
                status.exit_code = code;
                status.reason = reason.to_owned();
                status.finished_unix_ns = if forgets { 0 } else { now };
                status.pid = 0;
            }
        });
    }

    fn write(&self, id: &str, stream: infranetes_sdk::container::LogStream, text: &str) {
        if self.tells(Lie::LosesOutput) && text == "out-250\n" {
            return;
        }
        let mut state = self.lock();
        state.clock += 1;
        let now = state.clock;
        let Some(container) = state.containers.get_mut(id) else { return };
        let sequence = container.chunks.len() as u64 + 1;
        let data = text.as_bytes().to_vec();
        container.chunks.push(LogChunk {
            sequence,
            stream: stream.into(),
            timestamp_unix_ns: now,
            data,
        });
        drop(state);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Lives the life of a container's program.
    async fn live(self, id: String, program: Program) {
        for (pause, stream, text) in program.output {
            sleep(pause).await;
            self.write(&id, stream, &text);
        }
        if let End::Exit(after, code) = program.end {
            sleep(after).await;
            self.wait_while_paused(&id).await;
            self.finish(&id, code, if code == 0 { "Completed" } else { "Error" });
        }
    }

    fn signal(&self, id: &str, signal: &str) -> Result<()> {
        let end = self.lock().containers.get(id).map(|container| container.end);
        let end = end.ok_or_else(|| self.none(id))?;
        match (signal, end) {
            ("SIGKILL" | "KILL" | "9", _) => self.finish(id, 137, "Error"),
            ("SIGTERM" | "TERM" | "15" | "", End::Endless(Some(code))) => {
                self.finish(id, code, "Error");
            }
            ("SIGTERM" | "TERM" | "15" | "" | "SIGCONT", _) => {}
            _ if self.tells(Lie::TakesAnySignal) => {}
            _ => return Err(ProviderError::invalid(format!("{signal:?} is no signal"))),
        }
        Ok(())
    }

    fn make(&self, request: CreateContainerRequest) -> Result<()> {
        let mut state = self.lock();
        if let Some(made) = state.containers.get(&request.id) {
            let is_same = made.request == request && !self.tells(Lie::CreatesOnce);
            return match is_same || self.tells(Lie::IgnoresShapes) {
                true => Ok(()),
                false => Err(ProviderError::conflict("another container has this id")),
            };
        }
        let image = request.image.clone().unwrap_or_default();
        let whole = image.layers.iter().all(|layer| state.layers.contains(&layer.digest));
        if !whole && !self.tells(Lie::RunsWithoutImage) {
            return Err(ProviderError::not_found("the image is not here"));
        }
        state.images.insert(image.id);
        state.clock += 1;
        let mut status = ContainerStatus {
            id: request.id.clone(),
            created_unix_ns: state.clock,
            ..ContainerStatus::default()
        };
        status.set_state(match self.tells(Lie::RunsAtOnce) {
            true => ContainerState::Running,
            false => ContainerState::Created,
        });
        state.events.push(status.clone());
        let id = request.id.clone();
        let end = End::Endless(None);
        state
            .containers
            .insert(id, Container { request, status, end, chunks: Vec::new(), paused: false });
        Ok(())
    }

    fn set_paused(&self, id: &str, paused: bool) -> Result<()> {
        let mut state = self.lock();
        let container = state.containers.get_mut(id).ok_or_else(|| self.none(id))?;
        if container.status.state() != ContainerState::Running {
            return Err(ProviderError::conflict("it does not run"));
        }
        container.paused = paused;
        drop(state);
        self.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    async fn wait_while_paused(&self, id: &str) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let paused = self.lock().containers.get(id).is_some_and(|it| it.paused);
            if !paused || changed.changed().await.is_err() {
                return;
            }
        }
    }

    async fn wait_for_exit(&self, id: &str) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let state = self.lock().containers.get(id).map(|it| it.status.state());
            if state != Some(ContainerState::Running) || changed.changed().await.is_err() {
                return;
            }
        }
    }
}

#[async_trait]
impl ContainerProvider for Liar {
    async fn describe(
        &self,
        _: CallContext,
        _: DescribeContainerRequest,
    ) -> Result<ContainerCapabilities> {
        Ok(ContainerCapabilities {
            import: true,
            exec: true,
            logs: true,
            update: true,
            pause: true,
            stats: !self.tells(Lie::DeniesStats),
            own_root: true,
            attach: self.tells(Lie::GrantsAttach),
            ..ContainerCapabilities::default()
        })
    }

    async fn missing(&self, _: CallContext, request: MissingRequest) -> Result<MissingResponse> {
        let layers = request.image.unwrap_or_default().layers.into_iter();
        let state = self.lock();
        let absent = |digest: &String| !state.layers.contains(digest);
        Ok(MissingResponse { digests: layers.map(|layer| layer.digest).filter(absent).collect() })
    }

    async fn list_images(
        &self,
        _: CallContext,
        _: ListImagesRequest,
    ) -> Result<ListImagesResponse> {
        Ok(ListImagesResponse { image_ids: self.lock().images.iter().cloned().collect() })
    }

    async fn remove_image(&self, _: CallContext, request: RemoveImageRequest) -> Result<Empty> {
        let mut state = self.lock();
        let uses = |it: &Container| {
            it.request.image.as_ref().is_some_and(|image| image.id == request.image_id)
        };
        if state.containers.values().any(uses) && !self.tells(Lie::RemovesUsedImage) {
            return Err(ProviderError::conflict("a container uses it"));
        }
        if self.tells(Lie::KeepsUnusedImage) {
            return Ok(Empty {});
        }
        match state.images.remove(&request.image_id) {
            false if self.tells(Lie::RemoveImageOfNothingFails) => {
                Err(ProviderError::not_found("there is no such image"))
            }
            _ => Ok(Empty {}),
        }
    }

    async fn usage(&self, _: CallContext, _: UsageRequest) -> Result<UsageResponse> {
        let used_bytes = self.lock().layers.len() as u64 * 100_000;
        Ok(UsageResponse { used_bytes, ..UsageResponse::default() })
    }

    async fn create(&self, ctx: CallContext, request: CreateContainerRequest) -> Result<Empty> {
        self.look_at_the_clock(&ctx)?;
        // A place at which a caller may go away, before anything happened and after all did.
        sleep(Duration::from_millis(3)).await;
        self.make(request)?;
        sleep(Duration::from_millis(3)).await;
        Ok(Empty {})
    }

    async fn start(&self, ctx: CallContext, request: ContainerRef) -> Result<Empty> {
        self.look_at_the_clock(&ctx)?;
        let id = request.id;
        let program = {
            let mut state = self.lock();
            state.pids += 1;
            let pid = state.pids;
            let container = state.containers.get_mut(&id).ok_or_else(|| self.none(&id))?;
            if container.status.state() != ContainerState::Created {
                return Ok(Empty {});
            }
            let mut wish = container.request.clone();
            if self.tells(Lie::LosesEnvironment) {
                wish.process.get_or_insert_default().env.clear();
            }
            let args = wish.process.clone().unwrap_or_default().args;
            let program = Program::new(&args, &wish, pid);
            container.end = program.end;
            container.status.pid = pid;
            program
        };
        if program.end == End::NotFound && !self.tells(Lie::StartsNothing) {
            self.finish(&id, 127, "StartError");
            return Err(ProviderError::invalid("there is no such program"));
        }
        if self.tells(Lie::StartsHalf) {
            // Whoever goes away here leaves a container that counts as started, and never runs.
            self.change(&id, |status, _| status.set_state(ContainerState::Exited));
        }
        sleep(Duration::from_millis(3)).await;
        let has_process = !self.tells(Lie::HasNoProcess);
        self.change(&id, |status, now| {
            status.set_state(ContainerState::Running);
            status.started_unix_ns = now;
            status.pid *= u32::from(has_process);
        });
        tokio::spawn(self.clone().live(id, program));
        Ok(Empty {})
    }

    async fn stop(&self, ctx: CallContext, request: StopContainerRequest) -> Result<Empty> {
        self.look_at_the_clock(&ctx)?;
        let signal = if self.tells(Lie::KillsAtOnce) { "SIGKILL" } else { &request.signal };
        self.signal(&request.id, signal)?;
        let grace = Duration::from_millis(request.grace_ms);
        let ended = timeout(grace, self.wait_for_exit(&request.id)).await.is_ok();
        if !ended && !self.tells(Lie::NeverKills) {
            self.signal(&request.id, "SIGKILL")?;
        }
        Ok(Empty {})
    }

    async fn kill(&self, _: CallContext, request: KillContainerRequest) -> Result<Empty> {
        self.signal(&request.id, &request.signal)?;
        Ok(Empty {})
    }

    async fn remove(&self, ctx: CallContext, request: ContainerRef) -> Result<Empty> {
        self.look_at_the_clock(&ctx)?;
        if self.tells(Lie::RemoveDoesNothing) {
            return Ok(Empty {});
        }
        self.finish(&request.id, 137, "Error");
        let gone = self.lock().containers.remove(&request.id);
        match gone.is_none() && self.tells(Lie::RemoveOfNothingFails) {
            true => Err(ProviderError::not_found("there is no such container")),
            false => Ok(Empty {}),
        }
    }

    async fn update(&self, _: CallContext, request: UpdateContainerRequest) -> Result<Empty> {
        let mut state = self.lock();
        match state.containers.contains_key(&request.id) {
            true if self.tells(Lie::UpdatesOnce) && !state.updated.insert(request.id.clone()) => {
                Err(ProviderError::conflict("it has such limits"))
            }
            true if self.tells(Lie::UpdateFails) => Err(ProviderError::internal("no")),
            true => Ok(Empty {}),
            false => Err(self.none(&request.id)),
        }
    }

    async fn pause(&self, _: CallContext, request: ContainerRef) -> Result<Empty> {
        match self.tells(Lie::RunsWhilePaused) {
            true => Ok(Empty {}),
            false => self.set_paused(&request.id, true).map(|()| Empty {}),
        }
    }

    async fn resume(&self, _: CallContext, request: ContainerRef) -> Result<Empty> {
        match self.tells(Lie::StaysPaused) {
            true => Ok(Empty {}),
            false => self.set_paused(&request.id, false).map(|()| Empty {}),
        }
    }

    async fn status(&self, ctx: CallContext, request: ContainerRef) -> Result<ContainerStatus> {
        self.look_at_the_clock(&ctx)?;
        let found = self.lock().containers.get(&request.id).map(|it| it.status.clone());
        found.ok_or_else(|| self.none(&request.id))
    }

    async fn list(
        &self,
        _: CallContext,
        _: ListContainersRequest,
    ) -> Result<ListContainersResponse> {
        let state = self.lock();
        let mut containers: Vec<_> =
            state.containers.values().map(|it| it.status.clone()).collect();
        if self.tells(Lie::ListsOtherwise) {
            containers.iter_mut().for_each(|status| status.message.push_str("otherwise"));
        }
        Ok(ListContainersResponse { containers })
    }

    async fn stats(&self, _: CallContext, request: StatsRequest) -> Result<StatsResponse> {
        let state = self.lock();
        let asked = |id: &str| request.id.is_empty() || request.id == id;
        if !request.id.is_empty() && !state.containers.contains_key(&request.id) {
            return Err(self.none(&request.id));
        }
        let runs = |it: &&Container| it.status.state() == ContainerState::Running;
        let running = state.containers.values().filter(runs).filter(|it| asked(&it.status.id));
        let panics = self.tells(Lie::Panics);
        // A shell and its child, and what exec runs.
        let alive = 2 + state.alive.len() as u64;
        let processes = if self.tells(Lie::HasNoCounters) { 0 } else { alive };
        let stats: Vec<_> = running
            .map(|it| ContainerStats {
                id: it.status.id.clone(),
                timestamp_unix_ns: 1,
                processes,
                ..ContainerStats::default()
            })
            .collect();
        drop(state);
        assert!(!panics || stats.is_empty(), "a provider that panics");
        Ok(StatsResponse { stats })
    }

    async fn events(
        &self,
        _: CallContext,
        _: ContainerEventsRequest,
    ) -> Result<BoxStream<ContainerEvent>> {
        Ok(self.event_stream())
    }

    async fn import(
        &self,
        _: CallContext,
        input: BoxStream<ImportChunk>,
    ) -> Result<BoxStream<ImportProgress>> {
        Ok(self.import_stream(input))
    }

    async fn exec(
        &self,
        ctx: CallContext,
        input: BoxStream<ExecInput>,
    ) -> Result<BoxStream<ExecOutput>> {
        self.look_at_the_clock(&ctx)?;
        self.exec_stream(input).await
    }

    async fn logs(
        &self,
        _: CallContext,
        input: BoxStream<LogsInput>,
    ) -> Result<BoxStream<LogChunk>> {
        self.log_stream(input).await
    }
}
