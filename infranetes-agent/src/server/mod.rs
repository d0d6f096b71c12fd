//! What the agent serves. Dispatch only: every duty has its own file, and only `convert` knows both vocabularies.

mod attach;
mod binding;
mod checkpoint;
mod containers;
mod convert;
mod credit;
mod exec;
mod hello;
mod images;
mod logs;
mod port_forward;
mod rotation;
mod shared;
mod stats;
mod usage;
mod volumes;
mod watch;

use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};

use futures::Stream;
use infranetes_agent_protocol::v1::agent_server::Agent;
use infranetes_agent_protocol::v1::{
    AttachRequest, AttachResponse, BeginCheckpointRequest, BeginCheckpointResponse,
    BeginRotationRequest, BeginRotationResponse, BindRequest, BindResponse,
    CompleteRotationRequest, CompleteRotationResponse, CreateContainerRequest,
    CreateContainerResponse, EndCheckpointRequest, EndCheckpointResponse, ExecRequest,
    ExecResponse, HelloRequest, HelloResponse, ImportLayersRequest, ImportLayersResponse, LogChunk,
    LogsRequest, MissingLayersRequest, MissingLayersResponse, PortForwardRequest,
    PortForwardResponse, PutEntriesRequest, PutEntriesResponse, PutVolumesRequest,
    PutVolumesResponse, ReadEntriesRequest, ReadEntriesResponse, ReadVolumeRequest,
    ReadVolumeResponse, RemoveContainerRequest, RemoveContainerResponse, ScanVolumeRequest,
    ScanVolumeResponse, ShutdownRequest, ShutdownResponse, StartContainerRequest,
    StartContainerResponse, StatsRequest, StatsResponse, StopContainerRequest,
    StopContainerResponse, UpdateContainerRequest, UpdateContainerResponse, UsageRequest,
    UsageResponse, VolumesRequest, VolumesResponse, WatchRequest, WatchResponse,
};
use tonic::{Request, Response, Status, Streaming};

use crate::identity::PendingKey;
use crate::machine::Machine;

pub(crate) use binding::bind_first;
pub use checkpoint::Held;
pub(crate) use containers::stop_all;
pub(crate) use hello::first_hello;

/// One session of an enrolled agent: what was said on one connection.
pub(crate) struct Session {
    machine: Arc<Machine>,
    /// The protocol version that hello agreed on.
    version: OnceLock<u32>,
    /// The key of the rotation that began last.
    rotation: Mutex<Option<PendingKey>>,
}

impl Session {
    pub(crate) fn new(machine: Arc<Machine>) -> Self {
        Self { machine, version: OnceLock::new(), rotation: Mutex::new(None) }
    }

    /// The machine, once hello was said: on this connection or, for the first session, at the enrolment.
    fn machine(&self) -> Result<&Arc<Machine>, Status> {
        match self.version.get().or(self.machine.first_version.get()) {
            Some(_) => Ok(&self.machine),
            None => Err(Status::failed_precondition("a session starts with Hello")),
        }
    }
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Session {
    async fn hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloResponse>, Status> {
        let (version, response) = hello::answer(&self.machine, &request.into_inner()).await?;
        let _ = self.version.set(version);
        Ok(Response::new(response))
    }

    async fn bind(&self, request: Request<BindRequest>) -> Result<Response<BindResponse>, Status> {
        binding::bind(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn begin_rotation(
        &self,
        _request: Request<BeginRotationRequest>,
    ) -> Result<Response<BeginRotationResponse>, Status> {
        rotation::begin(self.machine()?, &self.rotation).map(Response::new)
    }

    async fn complete_rotation(
        &self,
        request: Request<CompleteRotationRequest>,
    ) -> Result<Response<CompleteRotationResponse>, Status> {
        rotation::complete(self.machine()?, &self.rotation, request.into_inner()).map(Response::new)
    }

    async fn missing_layers(
        &self,
        request: Request<MissingLayersRequest>,
    ) -> Result<Response<MissingLayersResponse>, Status> {
        images::missing(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn import_layers(
        &self,
        request: Request<Streaming<ImportLayersRequest>>,
    ) -> Result<Response<ImportLayersResponse>, Status> {
        images::import(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        containers::create(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        containers::start(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        containers::stop(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        containers::remove(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn update_container(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> Result<Response<UpdateContainerResponse>, Status> {
        containers::update(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    type ExecStream = ResponseStream<ExecResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        exec::exec(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    type AttachStream = ResponseStream<AttachResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        attach::attach(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    type PortForwardStream = ResponseStream<PortForwardResponse>;

    async fn port_forward(
        &self,
        request: Request<Streaming<PortForwardRequest>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        self.machine()?;
        port_forward::port_forward(request.into_inner()).await.map(Response::new)
    }

    type LogsStream = ResponseStream<LogChunk>;

    async fn logs(
        &self,
        request: Request<Streaming<LogsRequest>>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        logs::logs(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    type WatchStream = ResponseStream<WatchResponse>;

    async fn watch(
        &self,
        _request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(watch::watch(Arc::clone(self.machine()?))))
    }

    type StatsStream = ResponseStream<StatsResponse>;

    async fn stats(
        &self,
        request: Request<StatsRequest>,
    ) -> Result<Response<Self::StatsStream>, Status> {
        Ok(Response::new(stats::stats(Arc::clone(self.machine()?), request.get_ref())))
    }

    async fn put_volumes(
        &self,
        request: Request<Streaming<PutVolumesRequest>>,
    ) -> Result<Response<PutVolumesResponse>, Status> {
        volumes::put(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn volumes(
        &self,
        _request: Request<VolumesRequest>,
    ) -> Result<Response<VolumesResponse>, Status> {
        Ok(Response::new(volumes::list(self.machine()?)))
    }

    type ReadVolumeStream = ResponseStream<ReadVolumeResponse>;

    async fn read_volume(
        &self,
        request: Request<ReadVolumeRequest>,
    ) -> Result<Response<Self::ReadVolumeStream>, Status> {
        volumes::read(self.machine()?, &request.into_inner()).map(Response::new)
    }

    type ScanVolumeStream = ResponseStream<ScanVolumeResponse>;

    async fn scan_volume(
        &self,
        request: Request<ScanVolumeRequest>,
    ) -> Result<Response<Self::ScanVolumeStream>, Status> {
        shared::scan(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    type ReadEntriesStream = ResponseStream<ReadEntriesResponse>;

    async fn read_entries(
        &self,
        request: Request<ReadEntriesRequest>,
    ) -> Result<Response<Self::ReadEntriesStream>, Status> {
        shared::read(self.machine()?, request.into_inner()).map(Response::new)
    }

    async fn put_entries(
        &self,
        request: Request<Streaming<PutEntriesRequest>>,
    ) -> Result<Response<PutEntriesResponse>, Status> {
        shared::put(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn usage(
        &self,
        _request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        usage::usage(self.machine()?).await.map(Response::new)
    }

    async fn begin_checkpoint(
        &self,
        request: Request<BeginCheckpointRequest>,
    ) -> Result<Response<BeginCheckpointResponse>, Status> {
        checkpoint::begin(self.machine()?, request.into_inner()).await.map(Response::new)
    }

    async fn end_checkpoint(
        &self,
        _request: Request<EndCheckpointRequest>,
    ) -> Result<Response<EndCheckpointResponse>, Status> {
        Ok(Response::new(checkpoint::end(self.machine()?).await))
    }

    async fn shutdown(
        &self,
        request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownResponse>, Status> {
        let grace = convert::grace(request.into_inner().grace_ms);
        self.machine()?.shut_down(grace);
        Ok(Response::new(ShutdownResponse {}))
    }
}
