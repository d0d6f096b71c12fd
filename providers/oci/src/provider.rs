//! The provider: finds the container that a call is about, and lets it act.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use infranetes_sdk::v1::attach_input::Input as AttachPart;
use infranetes_sdk::v1::exec_input::Input as ExecPart;
use infranetes_sdk::v1::logs_input::Input as LogsPart;
use infranetes_sdk::v1::{
    AttachInput, AttachOutput, ContainerCapabilities, ContainerEvent, ContainerEventsRequest,
    ContainerRef, ContainerState, ContainerStatus, CreateContainerRequest,
    DescribeContainerRequest, Empty, ExecInput, ExecOutput, ImportChunk, ImportProgress,
    KillContainerRequest, ListContainersRequest, ListContainersResponse, ListImagesRequest,
    ListImagesResponse, LogChunk, LogsInput, MissingRequest, MissingResponse, RemoveImageRequest,
    StatsRequest, StatsResponse, StopContainerRequest, UpdateContainerRequest, UsageRequest,
    UsageResponse,
};
use infranetes_sdk::{
    BoxStream, CallContext, ContainerProvider, ProviderError, Result, async_trait, stream,
};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::attach;
use crate::cgroup::Cgroups;
use crate::client::Runtime;
use crate::container::{Container, Start};
use crate::convert;
use crate::create::Creator;
use crate::error::io_error;
use crate::exec::Execs;
use crate::image::{ImageStore, import};
use crate::pause::Pause;
use crate::spool::SpoolLimits;
use crate::stats;
use crate::update::update;

/// Containers by an OCI runtime. See the crate's documentation.
pub struct OciProvider {
    inner: Arc<Inner>,
}

/// What [`OciProvider`] is made of, resolved from its configuration.
pub(crate) struct Setup {
    pub(crate) images: ImageStore,
    pub(crate) root: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) cgroups: Cgroups,
    pub(crate) cgroup_parent: String,
    pub(crate) spool: SpoolLimits,
    pub(crate) pause: Pause,
    pub(crate) start_limit: Duration,
}

struct Inner {
    images: Arc<ImageStore>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    creator: Creator,
    /// Creating and removing take turns: both are short, and a name has one story at a time.
    turn: tokio::sync::Mutex<()>,
    runtime: Runtime,
    execs: Execs,
    events: broadcast::Sender<ContainerStatus>,
    run: PathBuf,
    start_limit: Duration,
    next_socket: Arc<AtomicU64>,
}

impl OciProvider {
    pub(crate) fn new(setup: Setup) -> Self {
        let images = Arc::new(setup.images);
        let next_socket = Arc::<AtomicU64>::default();
        let execs = Execs::new(
            setup.runtime.clone(),
            setup.run.clone(),
            next_socket.clone(),
            setup.start_limit,
        );
        let creator = Creator {
            images: images.clone(),
            root: setup.root,
            run: setup.run.clone(),
            cgroups: setup.cgroups,
            cgroup_parent: setup.cgroup_parent,
            spool: setup.spool,
            pause: setup.pause,
        };
        let inner = Inner {
            images,
            containers: Mutex::default(),
            creator,
            turn: tokio::sync::Mutex::default(),
            runtime: setup.runtime,
            execs,
            events: broadcast::Sender::new(EVENTS),
            run: setup.run,
            start_limit: setup.start_limit,
            next_socket,
        };
        Self { inner: Arc::new(inner) }
    }
}

#[async_trait]
impl ContainerProvider for OciProvider {
    async fn describe(
        &self,
        _ctx: CallContext,
        _request: DescribeContainerRequest,
    ) -> Result<ContainerCapabilities> {
        Ok(ContainerCapabilities {
            import: true,
            pull: false,
            exec: true,
            attach: true,
            logs: true,
            update: true,
            stats: true,
            own_root: true,
            pause: self.inner.creator.cgroups.can_freeze(),
        })
    }

    async fn missing(&self, _ctx: CallContext, request: MissingRequest) -> Result<MissingResponse> {
        let image = request.image.ok_or_else(|| ProviderError::invalid("no image was named"))?;
        Ok(MissingResponse { digests: self.inner.images.missing(&image)? })
    }

    async fn list_images(
        &self,
        _ctx: CallContext,
        _request: ListImagesRequest,
    ) -> Result<ListImagesResponse> {
        Ok(ListImagesResponse { image_ids: self.inner.images.list() })
    }

    async fn remove_image(&self, _ctx: CallContext, request: RemoveImageRequest) -> Result<Empty> {
        self.inner
            .clone()
            .whole(|inner| async move { inner.remove_image(&request.image_id).await })
            .await
    }

    async fn usage(&self, _ctx: CallContext, _request: UsageRequest) -> Result<UsageResponse> {
        let used = self.inner.images.used();
        Ok(UsageResponse {
            used_bytes: used.bytes,
            inodes_used: used.inodes,
            available_bytes: self.inner.images.available_bytes()?,
        })
    }

    async fn create(&self, _ctx: CallContext, request: CreateContainerRequest) -> Result<Empty> {
        self.inner.clone().whole(|inner| async move { inner.create(request).await }).await
    }

    async fn start(&self, _ctx: CallContext, request: ContainerRef) -> Result<Empty> {
        let container = self.inner.find(&request.id)?;
        let number = self.inner.next_socket.fetch_add(1, Ordering::Relaxed);
        let start = Start {
            runtime: self.inner.runtime.clone(),
            events: self.inner.events.clone(),
            limit: self.inner.start_limit,
            console: self.inner.run.join(format!("c{number}")),
        };
        self.inner.clone().whole(|_| async move { container.start(&start).await }).await
    }

    async fn stop(&self, _ctx: CallContext, request: StopContainerRequest) -> Result<Empty> {
        let container = self.inner.find(&request.id)?;
        let own = container.request.process.as_ref().map_or("", |process| &process.stop_signal);
        let signal = if request.signal.is_empty() { own } else { &request.signal };
        let signal = convert::signal(signal)?;
        if container.state() != ContainerState::Running {
            return Ok(Empty {});
        }
        if request.grace_ms > 0 {
            container.signal(&self.inner.runtime, signal).await?;
            if container.wait_exited(Duration::from_millis(request.grace_ms)).await {
                return Ok(Empty {});
            }
        }
        container.kill().await?;
        Ok(Empty {})
    }

    async fn kill(&self, _ctx: CallContext, request: KillContainerRequest) -> Result<Empty> {
        let container = self.inner.find(&request.id)?;
        let signal = convert::signal(&request.signal)?;
        container.signal(&self.inner.runtime, signal).await?;
        Ok(Empty {})
    }

    async fn remove(&self, _ctx: CallContext, request: ContainerRef) -> Result<Empty> {
        self.inner.clone().whole(|inner| async move { inner.remove(&request.id).await }).await
    }

    async fn update(&self, _ctx: CallContext, request: UpdateContainerRequest) -> Result<Empty> {
        let container = self.inner.find(&request.id)?;
        let asked = request.resources.unwrap_or_default();
        self.inner
            .clone()
            .whole(|inner| async move {
                update(&container, &inner.runtime, &inner.creator.cgroups, &asked).await
            })
            .await
    }

    async fn pause(&self, _ctx: CallContext, request: ContainerRef) -> Result<Empty> {
        let container = self.inner.find(&request.id)?;
        self.inner.clone().whole(|_| async move { container.set_paused(true).await }).await
    }

    async fn resume(&self, _ctx: CallContext, request: ContainerRef) -> Result<Empty> {
        let container = self.inner.find(&request.id)?;
        self.inner
            .clone()
            .whole(|inner| async move {
                container.set_paused(false).await?;
                // Without a listener there is nobody to tell.
                let _ = inner.events.send(container.status());
                Ok(())
            })
            .await
    }

    async fn status(&self, _ctx: CallContext, request: ContainerRef) -> Result<ContainerStatus> {
        Ok(self.inner.find(&request.id)?.status())
    }

    async fn list(
        &self,
        _ctx: CallContext,
        _request: ListContainersRequest,
    ) -> Result<ListContainersResponse> {
        let containers = self.inner.all().iter().map(|container| container.status()).collect();
        Ok(ListContainersResponse { containers })
    }

    async fn stats(&self, _ctx: CallContext, request: StatsRequest) -> Result<StatsResponse> {
        let containers = match request.id.as_str() {
            "" => self.inner.all(),
            id => vec![self.inner.find(id)?],
        };
        let running = containers.into_iter().filter(|one| one.state() == ContainerState::Running);
        let running: Vec<_> = running.collect();
        let stats = tokio::task::spawn_blocking(move || {
            running.iter().map(|container| stats::of(container)).collect()
        });
        let stats = stats
            .await
            .map_err(|error| ProviderError::internal("counting broke off").with_source(error))?;
        Ok(StatsResponse { stats })
    }

    async fn events(
        &self,
        _ctx: CallContext,
        _request: ContainerEventsRequest,
    ) -> Result<BoxStream<ContainerEvent>> {
        // Subscribed before the first look: what changes in between is told twice, never not at all.
        let live = self.inner.events.subscribe();
        let now = self.inner.all();
        let (sender, events) = stream::channel(EVENTS);
        let inner = self.inner.clone();
        tokio::spawn(send_events(inner, now, live, sender));
        Ok(events)
    }

    async fn import(
        &self,
        _ctx: CallContext,
        input: BoxStream<ImportChunk>,
    ) -> Result<BoxStream<ImportProgress>> {
        Ok(import(self.inner.images.clone(), input))
    }

    async fn exec(
        &self,
        _ctx: CallContext,
        mut input: BoxStream<ExecInput>,
    ) -> Result<BoxStream<ExecOutput>> {
        let first = input.next().await.transpose()?;
        let Some(Some(ExecPart::Start(start))) = first.map(|message| message.input) else {
            return Err(ProviderError::invalid("the first message of an exec has to start it"));
        };
        let container = self.inner.find(&start.container_id)?;
        self.inner.execs.start(container, start, input).await
    }

    async fn attach(
        &self,
        _ctx: CallContext,
        mut input: BoxStream<AttachInput>,
    ) -> Result<BoxStream<AttachOutput>> {
        let first = input.next().await.transpose()?;
        let Some(Some(AttachPart::Start(start))) = first.map(|message| message.input) else {
            return Err(ProviderError::invalid("the first message of an attach has to start it"));
        };
        attach::attach(self.inner.find(&start.id)?, input)
    }

    async fn logs(
        &self,
        _ctx: CallContext,
        mut input: BoxStream<LogsInput>,
    ) -> Result<BoxStream<LogChunk>> {
        let first = input.next().await.transpose()?;
        let Some(Some(LogsPart::Start(start))) = first.map(|message| message.input) else {
            return Err(ProviderError::invalid("the first message of a log has to start it"));
        };
        Ok(attach::logs(self.inner.find(&start.id)?, start.after, input))
    }
}

impl Inner {
    /// Runs something to its end, even when nobody waits for it any more: a call that is cancelled leaves nothing half-made.
    async fn whole<F, R>(self: Arc<Self>, act: F) -> Result<Empty>
    where
        F: FnOnce(Arc<Self>) -> R,
        R: Future<Output = Result<()>> + Send + 'static,
    {
        tokio::spawn(act(self))
            .await
            .map_err(|error| ProviderError::internal("the call broke off").with_source(error))??;
        Ok(Empty {})
    }

    async fn create(self: &Arc<Self>, request: CreateContainerRequest) -> Result<()> {
        check_id(&request.id)?;
        let _turn = self.turn.lock().await;
        if let Some(known) = self.lock().get(&request.id) {
            return match known.request == request {
                true => Ok(()),
                false => Err(ProviderError::conflict(format!(
                    "container {} exists with another configuration",
                    request.id
                ))),
            };
        }
        let target = self.pid_target(&request)?;
        let inner = self.clone();
        let created = tokio::task::spawn_blocking(move || inner.creator.create(request, target));
        let container = created
            .await
            .map_err(|error| ProviderError::internal("the call broke off").with_source(error))??;
        let container = Arc::new(container);
        self.lock().insert(container.id().to_owned(), container.clone());
        let _ = self.events.send(container.status());
        Ok(())
    }

    async fn remove(self: &Arc<Self>, id: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        let Ok(container) = self.find(id) else { return Ok(()) };
        // A start that is under way ends first.
        let _start = container.turn.lock().await;
        if container.state() == ContainerState::Running {
            container.kill().await?;
        }
        container.spool.close();
        self.runtime.delete(id).await?;
        let inner = self.clone();
        let gone = container.clone();
        let removed = tokio::task::spawn_blocking(move || inner.creator.remove(&gone));
        removed
            .await
            .map_err(|error| ProviderError::internal("the call broke off").with_source(error))??;
        self.lock().remove(id);
        Ok(())
    }

    async fn remove_image(&self, id: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        let containers = self.all();
        let uses = |container: &&Arc<Container>| {
            let mounted = container.request.mounts.iter().map(|mount| &mount.image);
            let mut images = mounted.chain([&container.request.image]).flatten();
            images.any(|image| image.id == id)
        };
        if let Some(user) = containers.iter().find(uses) {
            return Err(ProviderError::conflict(format!("container {} uses the image", user.id())));
        }
        let used: HashSet<_> = containers.iter().flat_map(|one| one.layers.clone()).collect();
        self.images.remove(id, &used)
    }

    /// The process whose pid namespace a container wants to join.
    fn pid_target(&self, request: &CreateContainerRequest) -> Result<Option<u32>> {
        let asked = request.namespaces.clone().unwrap_or_default();
        match asked.pid() {
            infranetes_sdk::v1::PidNamespace::Pod => self.creator.pause.pid(asked.users).map(Some),
            infranetes_sdk::v1::PidNamespace::Target => {
                let target = self.find(&asked.pid_target)?.status();
                match target.pid {
                    0 => Err(ProviderError::conflict(format!(
                        "container {} does not run",
                        target.id
                    ))),
                    pid => Ok(Some(pid)),
                }
            }
            _ => Ok(None),
        }
    }

    fn find(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.lock().get(id).cloned();
        found.ok_or_else(|| ProviderError::not_found(format!("there is no container {id:?}")))
    }

    fn all(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by(|left, right| left.id().cmp(right.id()));
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send_events(
    inner: Arc<Inner>,
    mut now: Vec<Arc<Container>>,
    mut live: broadcast::Receiver<ContainerStatus>,
    sender: tokio::sync::mpsc::Sender<Result<ContainerEvent>>,
) {
    loop {
        for container in now.drain(..) {
            let event = ContainerEvent { status: Some(container.status()) };
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
        let next = tokio::select! {
            next = live.recv() => next,
            () = sender.closed() => return,
        };
        match next {
            Ok(status) => {
                if sender.send(Ok(ContainerEvent { status: Some(status) })).await.is_err() {
                    return;
                }
            }
            // A reader that fell behind is told how things are now.
            Err(RecvError::Lagged(_)) => now = inner.all(),
            Err(RecvError::Closed) => return,
        }
    }
}

fn check_id(id: &str) -> Result<()> {
    let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match (1..=64).contains(&id.len()) && id.bytes().all(is_fine) {
        true => Ok(()),
        false => Err(ProviderError::invalid(format!("{id:?} cannot name a container"))),
    }
}

/// Removes what containers of a former run left: their processes, mounts, cgroups and files.
pub(crate) async fn clean(run: &Path, root: &Path, cgroups: &Cgroups, parent: &str) -> Result<()> {
    for entry in std::fs::read_dir(run.join("c")).into_iter().flatten().flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        tracing::info!(container = id, "removing what a former run left");
        let cgroup = cgroups.container(parent, &id);
        cgroup.kill().await.map_err(io_error("cannot kill a container of a former run"))?;
        crate::create::remove_mounts(run, root, &id)?;
        cgroup.remove().map_err(io_error("cannot remove a cgroup of a former run"))?;
        crate::image::remove_tree(&entry.path()).map_err(io_error("cannot remove a bundle"))?;
    }
    crate::image::remove_tree(&run.join("state"))
        .map_err(io_error("cannot clear the runtime's state"))
}

const EVENTS: usize = 256;
