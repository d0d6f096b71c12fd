//! Containers in memory: a `ContainerProvider` for cases about sessions, steered from outside.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use infranetes_sdk::container::{
    ContainerCapabilities, ContainerEvent, ContainerEventsRequest, ContainerRef, ContainerState,
    ContainerStatus, CreateContainerRequest, DescribeContainerRequest, Empty, ExecExit, ExecInput,
    ExecInputPart, ExecOutput, ExecOutputPart, ExecStart, ImportChunk, ImportPart, ImportProgress,
    ListContainersRequest, ListContainersResponse, LogChunk, LogStream, LogsInput, LogsInputPart,
    MissingRequest, MissingResponse, StopContainerRequest,
};
use infranetes_sdk::{BoxStream, CallContext, ContainerProvider, ProviderError, Result, stream};
use tokio::sync::watch;

/// Containers that never run anything.
#[derive(Clone)]
pub struct MemoryContainers {
    state: Arc<Mutex<State>>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    layers: BTreeMap<String, Vec<u8>>,
    containers: BTreeMap<String, Container>,
}

struct Container {
    request: CreateContainerRequest,
    status: ContainerStatus,
    /// What was written and not acknowledged.
    output: Vec<LogChunk>,
    written: u64,
    acknowledged: u64,
}

impl Default for MemoryContainers {
    fn default() -> Self {
        Self { state: Arc::default(), changes: watch::channel(0).0 }
    }
}

impl MemoryContainers {
    /// A container writes a line.
    pub fn write(&self, id: &str, text: &str) {
        let mut state = self.state();
        let container = state.containers.get_mut(id).expect("the container exists");
        container.written += 1;
        container.output.push(LogChunk {
            sequence: container.written,
            stream: LogStream::Stdout as i32,
            timestamp_unix_ns: container.written,
            data: text.as_bytes().to_vec(),
        });
        drop(state);
        self.changed();
    }

    /// A container's program ends by itself.
    pub fn exit(&self, id: &str, code: i32) {
        self.set_state(id, ContainerState::Exited, code).expect("the container exists");
    }

    /// Up to which number the reader of a container's output has everything.
    pub fn acknowledged(&self, id: &str) -> u64 {
        self.state().containers[id].acknowledged
    }

    /// The bytes of a layer that came in.
    pub fn layer(&self, digest: &str) -> Option<Vec<u8>> {
        self.state().layers.get(digest).cloned()
    }

    /// What a container was made of.
    pub fn request(&self, id: &str) -> Option<CreateContainerRequest> {
        self.state().containers.get(id).map(|container| container.request.clone())
    }

    fn set_state(&self, id: &str, state: ContainerState, exit_code: i32) -> Result<()> {
        let mut all = self.state();
        let container = all.get(id)?;
        container.status.state = state as i32;
        container.status.exit_code = exit_code;
        drop(all);
        self.changed();
        Ok(())
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn statuses(&self) -> Vec<ContainerStatus> {
        self.state().containers.values().map(|container| container.status.clone()).collect()
    }

    fn next_chunk(&self, id: &str, after: u64) -> Result<Option<LogChunk>> {
        let mut state = self.state();
        let container = state.get(id)?;
        if after < container.acknowledged {
            return Err(ProviderError::invalid("that output was acknowledged and forgotten"));
        }
        Ok(container.output.iter().find(|chunk| chunk.sequence > after).cloned())
    }

    fn acknowledge(&self, id: &str, sequence: u64) {
        if let Ok(container) = self.state().get(id) {
            container.acknowledged = sequence;
            container.output.retain(|chunk| chunk.sequence > sequence);
        }
    }

    fn has_ended(&self, id: &str) -> bool {
        self.state()
            .get(id)
            .is_ok_and(|container| container.status.state() == ContainerState::Exited)
    }
}

impl State {
    fn get(&mut self, id: &str) -> Result<&mut Container> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| ProviderError::not_found(format!("no container {id}")))
    }
}

#[infranetes_sdk::async_trait]
impl ContainerProvider for MemoryContainers {
    async fn describe(
        &self,
        _ctx: CallContext,
        _request: DescribeContainerRequest,
    ) -> Result<ContainerCapabilities> {
        Ok(ContainerCapabilities { import: true, exec: true, logs: true, ..Default::default() })
    }

    async fn missing(&self, _ctx: CallContext, request: MissingRequest) -> Result<MissingResponse> {
        let layers = request.image.unwrap_or_default().layers.into_iter();
        let state = self.state();
        let missing = layers.filter(|layer| !state.layers.contains_key(&layer.digest));
        Ok(MissingResponse { digests: missing.map(|layer| layer.digest).collect() })
    }

    async fn import(
        &self,
        _ctx: CallContext,
        mut input: BoxStream<ImportChunk>,
    ) -> Result<BoxStream<ImportProgress>> {
        let mut layers: Vec<(String, u64, Vec<u8>)> = Vec::new();
        while let Some(chunk) = input.next().await {
            match chunk?.part {
                Some(ImportPart::Layer(layer)) => {
                    layers.push((layer.digest, layer.size_bytes, Vec::new()));
                }
                Some(ImportPart::Data(data)) => {
                    let (.., bytes) = layers
                        .last_mut()
                        .ok_or_else(|| ProviderError::invalid("bytes of no layer"))?;
                    bytes.extend_from_slice(&data);
                }
                None => return Err(ProviderError::invalid("an empty message")),
            }
        }
        let mut done = Vec::new();
        for (digest, size, bytes) in layers {
            if bytes.len() as u64 != size {
                return Err(ProviderError::invalid(format!("layer {digest} has another size")));
            }
            self.state().layers.insert(digest.clone(), bytes);
            done.push(ImportProgress { digest, done: true });
        }
        Ok(stream::from_items(done))
    }

    async fn create(&self, _ctx: CallContext, request: CreateContainerRequest) -> Result<Empty> {
        let mut state = self.state();
        if let Some(there) = state.containers.get(&request.id) {
            return match there.request == request {
                true => Ok(Empty {}),
                false => Err(ProviderError::conflict("the id is taken by another container")),
            };
        }
        let status = ContainerStatus {
            id: request.id.clone(),
            state: ContainerState::Created as i32,
            ..Default::default()
        };
        let container = Container {
            status,
            request: request.clone(),
            output: Vec::new(),
            written: 0,
            acknowledged: 0,
        };
        state.containers.insert(request.id, container);
        drop(state);
        self.changed();
        Ok(Empty {})
    }

    async fn start(&self, _ctx: CallContext, request: ContainerRef) -> Result<Empty> {
        self.set_state(&request.id, ContainerState::Running, 0).map(|()| Empty {})
    }

    async fn stop(&self, _ctx: CallContext, request: StopContainerRequest) -> Result<Empty> {
        self.set_state(&request.id, ContainerState::Exited, 143).map(|()| Empty {})
    }

    async fn remove(&self, _ctx: CallContext, request: ContainerRef) -> Result<Empty> {
        self.state().containers.remove(&request.id);
        self.changed();
        Ok(Empty {})
    }

    async fn status(&self, _ctx: CallContext, request: ContainerRef) -> Result<ContainerStatus> {
        self.state().get(&request.id).map(|container| container.status.clone())
    }

    async fn list(
        &self,
        _ctx: CallContext,
        _request: ListContainersRequest,
    ) -> Result<ListContainersResponse> {
        Ok(ListContainersResponse { containers: self.statuses() })
    }

    async fn events(
        &self,
        _ctx: CallContext,
        _request: ContainerEventsRequest,
    ) -> Result<BoxStream<ContainerEvent>> {
        let (containers, changes) = (self.clone(), self.changes.subscribe());
        let pages = futures::stream::unfold((containers, changes, true), async |state| {
            let (containers, mut changes, first) = state;
            if !first {
                changes.changed().await.ok()?;
            }
            let events: Vec<_> = containers
                .statuses()
                .into_iter()
                .map(|status| Ok(ContainerEvent { status: Some(status) }))
                .collect();
            Some((futures::stream::iter(events), (containers, changes, false)))
        });
        Ok(Box::pin(pages.flatten()))
    }

    /// `echo WORD…` writes the words; `fail CODE` writes to standard error and exits; `flood BYTES` writes so many; anything
    /// else does not exist.
    async fn exec(
        &self,
        _ctx: CallContext,
        mut input: BoxStream<ExecInput>,
    ) -> Result<BoxStream<ExecOutput>> {
        let first = input.next().await.transpose()?.and_then(|first| first.input);
        let Some(ExecInputPart::Start(start)) = first else {
            return Err(ProviderError::invalid("an exec starts with start"));
        };
        if self.state().get(&start.container_id)?.status.state() != ContainerState::Running {
            return Err(ProviderError::conflict("the container does not run"));
        }
        let parts = run(&start).into_iter().map(|part| ExecOutput { output: Some(part) });
        Ok(stream::from_items(parts))
    }

    async fn logs(
        &self,
        _ctx: CallContext,
        mut input: BoxStream<LogsInput>,
    ) -> Result<BoxStream<LogChunk>> {
        let first = input.next().await.transpose()?.and_then(|first| first.input);
        let Some(LogsInputPart::Start(start)) = first else {
            return Err(ProviderError::invalid("a log stream starts with start"));
        };
        self.next_chunk(&start.id, start.after)?;
        let (containers, id) = (self.clone(), start.id.clone());
        tokio::spawn(async move {
            while let Some(Ok(LogsInput { input: Some(part) })) = input.next().await {
                if let LogsInputPart::Acknowledged(sequence) = part {
                    containers.acknowledge(&id, sequence);
                }
            }
        });
        let follow = (self.clone(), self.changes.subscribe(), start.id, start.after);
        Ok(Box::pin(futures::stream::unfold(
            follow,
            async |(containers, mut changes, id, after)| {
                loop {
                    changes.mark_unchanged();
                    let ended = containers.has_ended(&id);
                    match containers.next_chunk(&id, after) {
                        Ok(Some(chunk)) => {
                            let after = chunk.sequence;
                            return Some((Ok(chunk), (containers, changes, id, after)));
                        }
                        Ok(None) if ended => return None,
                        Ok(None) => changes.changed().await.ok()?,
                        Err(error) => return Some((Err(error), (containers, changes, id, after))),
                    }
                }
            },
        )))
    }
}

fn run(start: &ExecStart) -> Vec<ExecOutputPart> {
    let exit = |code| ExecOutputPart::Exit(ExecExit { code, timed_out: false });
    let words: Vec<&str> = start.args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["echo", words @ ..] => {
            vec![ExecOutputPart::Stdout(words.join(" ").into_bytes()), exit(0)]
        }
        ["fail", code] => {
            let code = code.parse().expect("a number");
            vec![ExecOutputPart::Stderr(b"it failed".to_vec()), exit(code)]
        }
        ["flood", bytes] => {
            let bytes: usize = bytes.parse().expect("a number");
            let pieces = vec![b'x'; bytes];
            let mut parts: Vec<_> = pieces
                .chunks(32 * 1024)
                .map(|piece| ExecOutputPart::Stdout(piece.to_vec()))
                .collect();
            parts.push(exit(0));
            parts
        }
        _ => vec![exit(127)],
    }
}
