//! One open session to one agent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::stream::BoxStream;
use infranetes_agent_protocol::v1::agent_client::AgentClient;
use infranetes_agent_protocol::v1::meeting_answer::Answer;
use infranetes_agent_protocol::v1::meeting_request::Request;
use infranetes_agent_protocol::v1::{
    BeginCheckpointRequest, BeginRotationRequest, CompleteRotationRequest, CreateContainerRequest,
    EndCheckpointRequest, HelloRequest, HelloResponse, MissingLayersRequest,
    RemoveContainerRequest, ShutdownRequest, StartContainerRequest, StopContainerRequest,
    UpdateContainerRequest, UsageRequest,
};
use infranetes_agent_protocol::{MAX_MESSAGE_BYTES, OLDEST_PROTOCOL, PROTOCOL};
use rustls_pki_types::CertificateDer;
use tokio::sync::Mutex as AsyncMutex;
use tonic::Code;
use tonic::transport::Channel;

use super::dial::{Endpoint, channel, channel_later};
use super::duplex::Places;
use super::enrol::{First, server_name};
use super::failure::{bounded, failed, refused, tls_problem, within};
use super::meeting::{Meeting, MeetingError};
use super::trust::NodeTrust;
use super::{convert, duplex, shared, streams, volumes};
use crate::ids::ContainerId;
use crate::mounts::Limits;
use crate::session::duplex::{ExecStart, PortInputs, PortOutputs, ProgramInputs, ProgramOutputs};
use crate::session::{
    AgentHello, AgentIdentity, AgentSession, Binding, Bound, ContainerPlan, ExecRequest,
    ExecResult, LayerSource, LogSource, MachineImage, MachineUsage, SessionError, VolumeChanges,
    VolumeParts, VolumeScan, VolumeSource, WatchEvent,
};
use crate::spec::ContainerResources;
use crate::stats::StatsSample;

/// A session; its end is that of its connection.
pub(super) struct TlsSession {
    client: AgentClient<Channel>,
    hello: AgentHello,
    trust: Arc<NodeTrust>,
    /// Its name in the next certificate.
    agent_name: Mutex<String>,
    /// When the agent's certificate is half over.
    rotate_at: Mutex<SystemTime>,
    places: Places,
    /// The connection on which the agent enrolled, until it is bound there.
    meeting: AsyncMutex<Option<Meeting>>,
}

impl TlsSession {
    /// Dials, checks the agent's certificate and says hello.
    pub(super) async fn open(
        trust: &Arc<NodeTrust>,
        endpoint: &Endpoint,
        identity: &AgentIdentity,
    ) -> Result<Self, SessionError> {
        let name = server_name(&identity.agent_name)?;
        let tls = endpoint.dial(Arc::new(trust.enrolled()?), name).await?;
        let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let rotate_at = leaf.map_or(SystemTime::UNIX_EPOCH, |leaf| half_life(leaf, trust.life));
        let not_there = |error: SessionError| match error {
            // With TLS 1.3 the agent's refusal of our certificate arrives only now.
            SessionError::Broken(cause) => match tls_problem(cause.as_ref()) {
                Some(problem) => endpoint.untrusted(problem),
                None => SessionError::Broken(cause),
            },
            error => error,
        };
        let channel =
            channel(tls).await.map_err(|cause| not_there(SessionError::Broken(Box::new(cause))))?;
        let mut client = client_of(channel);
        let hello = say_hello(&mut client).await.map_err(not_there)?;
        Ok(Self {
            client,
            hello,
            trust: Arc::clone(trust),
            agent_name: Mutex::new(identity.agent_name.clone()),
            rotate_at: Mutex::new(rotate_at),
            places: Places::new(),
            meeting: AsyncMutex::new(None),
        })
    }

    /// The first session: it binds on the connection on which the agent enrolled, and dials for all the rest, when something
    /// is first asked. That hello was said already.
    pub(super) fn first(
        trust: &Arc<NodeTrust>,
        endpoint: Endpoint,
        identity: &AgentIdentity,
        first: First,
    ) -> Result<Self, SessionError> {
        let name = server_name(&identity.agent_name)?;
        let config = Arc::new(trust.enrolled()?);
        let channel = channel_later(async move { endpoint.dial(config, name).await });
        Ok(Self {
            client: client_of(channel),
            hello: first.hello,
            trust: Arc::clone(trust),
            agent_name: Mutex::new(identity.agent_name.clone()),
            rotate_at: Mutex::new(half_life(&first.certificate, trust.life)),
            places: Places::new(),
            meeting: AsyncMutex::new(Some(first.meeting)),
        })
    }

    fn client(&self) -> AgentClient<Channel> {
        self.client.clone()
    }

    /// A new key and certificate, under another name if one is given.
    async fn rotate(&self, name: Option<&str>) -> Result<(), SessionError> {
        let own = || self.agent_name.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let agent_name = name.map_or_else(own, str::to_owned);
        let mut client = self.client();
        let begun = within(CALL_TIMEOUT, client.begin_rotation(BeginRotationRequest {}))
            .await?
            .into_inner();
        let certificate = self
            .trust
            .ca
            .sign_agent(&begun.certificate_request, &agent_name, self.trust.life)
            .map_err(|error| SessionError::Violation(format!("a certificate request: {error}")))?;
        let rotate_at = half_life(&certificate, self.trust.life);
        let complete = CompleteRotationRequest {
            certificate_chain: vec![certificate.to_vec()],
            agent_name: name.unwrap_or_default().to_owned(),
        };
        within(CALL_TIMEOUT, client.complete_rotation(complete)).await?;
        *self.agent_name.lock().unwrap_or_else(PoisonError::into_inner) = agent_name;
        *self.rotate_at.lock().unwrap_or_else(PoisonError::into_inner) = rotate_at;
        Ok(())
    }
}

fn client_of(channel: Channel) -> AgentClient<Channel> {
    AgentClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

pub(super) fn hello_request() -> HelloRequest {
    HelloRequest {
        protocol: PROTOCOL,
        oldest_protocol: OLDEST_PROTOCOL,
        node_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

async fn say_hello(client: &mut AgentClient<Channel>) -> Result<AgentHello, SessionError> {
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, client.hello(hello_request())).await {
        Err(_) => return Err(SessionError::TimedOut(HELLO_TIMEOUT)),
        Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
            return Err(version_mismatch(status.message().to_owned()));
        }
        Ok(result) => result.map_err(failed)?.into_inner(),
    };
    checked_hello(hello)
}

/// An agent's hello, if the version that it chose is one of ours.
pub(super) fn checked_hello(hello: HelloResponse) -> Result<AgentHello, SessionError> {
    if !(OLDEST_PROTOCOL..=PROTOCOL).contains(&hello.protocol) {
        return Err(version_mismatch(hello.protocol.to_string()));
    }
    convert::hello(hello)
}

pub(super) fn version_mismatch(agent: String) -> SessionError {
    SessionError::Version { agent, oldest: OLDEST_PROTOCOL, newest: PROTOCOL }
}

/// When half of a certificate's life is left; at once for one whose end cannot be read.
fn half_life(certificate: &CertificateDer<'_>, life: Duration) -> SystemTime {
    let end = x509_parser::parse_x509_certificate(certificate)
        .map_or(0, |(_, certificate)| certificate.validity().not_after.timestamp());
    let end = Duration::from_secs(u64::try_from(end).unwrap_or(0));
    SystemTime::UNIX_EPOCH + end.saturating_sub(life / 2)
}

#[async_trait]
impl AgentSession for TlsSession {
    fn hello(&self) -> &AgentHello {
        &self.hello
    }

    async fn bind(&self, binding: &Binding) -> Result<Bound, SessionError> {
        if let Some(mut meeting) = self.meeting.lock().await.take() {
            let asked = meeting.ask(Request::Bind(convert::binding(binding)), BIND_TIMEOUT).await;
            return match asked {
                Ok(Answer::Bound(response)) => convert::bound(response),
                Err(MeetingError::Refused(refusal)) => {
                    Err(refused(Code::from_i32(refusal.code), &refusal.message))
                }
                Err(MeetingError::TimedOut(limit)) => Err(SessionError::TimedOut(limit)),
                Err(error @ MeetingError::Broken(_)) => Err(SessionError::Broken(Box::new(error))),
                Ok(_) => Err(SessionError::Violation(MeetingError::Unexpected.to_string())),
                Err(error) => Err(SessionError::Violation(error.to_string())),
            };
        }
        let response =
            within(BIND_TIMEOUT, self.client().bind(convert::binding(binding))).await?.into_inner();
        convert::bound(response)
    }

    async fn rotate_if_due(&self) -> Result<(), SessionError> {
        let due = *self.rotate_at.lock().unwrap_or_else(PoisonError::into_inner);
        if SystemTime::now() < due {
            return Ok(());
        }
        self.rotate(None).await
    }

    async fn rename(&self, agent_name: &str) -> Result<(), SessionError> {
        self.rotate(Some(agent_name)).await
    }

    async fn missing_layers(&self, image: &MachineImage) -> Result<Vec<String>, SessionError> {
        let request = MissingLayersRequest { image: Some(convert::image(image)) };
        let response = within(CALL_TIMEOUT, self.client().missing_layers(request)).await?;
        convert::missing(response.into_inner(), image)
    }

    async fn import_layers(&self, layers: Vec<LayerSource>) -> Result<(), SessionError> {
        streams::import(self.client(), layers).await
    }

    async fn create_container(
        &self,
        id: &ContainerId,
        plan: &ContainerPlan,
    ) -> Result<(), SessionError> {
        let config = Some(convert::plan(plan));
        let request = CreateContainerRequest { id: id.to_string(), config };
        within(CREATE_TIMEOUT, self.client().create_container(request)).await.map(drop)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), SessionError> {
        let request = StartContainerRequest { id: id.to_string() };
        within(START_TIMEOUT, self.client().start_container(request)).await.map(drop)
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), SessionError> {
        let request = StopContainerRequest {
            id: id.to_string(),
            signal: String::new(),
            grace_ms: convert::millis(grace),
        };
        let limit = grace.saturating_add(STOP_TIMEOUT);
        within(limit, self.client().stop_container(request)).await.map(drop)
    }

    async fn update_container(
        &self,
        id: &ContainerId,
        resources: &ContainerResources,
    ) -> Result<(), SessionError> {
        let resources = Some(convert::resources(resources));
        let request = UpdateContainerRequest { id: id.to_string(), resources };
        within(CALL_TIMEOUT, self.client().update_container(request)).await.map(drop)
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), SessionError> {
        let request = RemoveContainerRequest { id: id.to_string() };
        within(START_TIMEOUT, self.client().remove_container(request)).await.map(drop)
    }

    async fn exec_sync(&self, request: ExecRequest) -> Result<ExecResult, SessionError> {
        let limit = request.timeout.map(|timeout| timeout.saturating_add(EXEC_MARGIN));
        let run = streams::exec_sync(self.client(), request);
        match limit {
            Some(limit) => {
                tokio::time::timeout(limit, run).await.unwrap_or(Err(SessionError::TimedOut(limit)))
            }
            // A command may run for ever; a machine that died is noticed by the connection.
            None => run.await,
        }
    }

    async fn exec(
        &self,
        start: ExecStart,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, SessionError> {
        let exec = duplex::exec(self.client(), &self.places, start, input);
        bounded(START_TIMEOUT, exec).await
    }

    async fn attach(
        &self,
        id: &ContainerId,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, SessionError> {
        bounded(CALL_TIMEOUT, duplex::attach(self.client(), &self.places, id, input)).await
    }

    async fn port_forward(
        &self,
        port: u16,
        input: PortInputs,
    ) -> Result<PortOutputs, SessionError> {
        bounded(CALL_TIMEOUT, duplex::port_forward(self.client(), &self.places, port, input)).await
    }

    async fn logs(&self, id: &ContainerId, after: u64) -> Result<Box<dyn LogSource>, SessionError> {
        let source = bounded(CALL_TIMEOUT, streams::logs(self.client(), id, after)).await?;
        Ok(Box::new(source))
    }

    async fn watch(
        &self,
    ) -> Result<BoxStream<'static, Result<WatchEvent, SessionError>>, SessionError> {
        bounded(CALL_TIMEOUT, streams::watch(self.client())).await
    }

    async fn stats(
        &self,
        period: Duration,
    ) -> Result<BoxStream<'static, Result<StatsSample, SessionError>>, SessionError> {
        let stats = streams::stats(self.client(), period);
        match tokio::time::timeout(CALL_TIMEOUT, stats).await {
            Ok(stats) => stats,
            Err(_) => Err(SessionError::TimedOut(CALL_TIMEOUT)),
        }
    }

    async fn put_volume(&self, source: VolumeSource) -> Result<(), SessionError> {
        bounded(PUT_TIMEOUT, volumes::put(self.client(), source)).await
    }

    async fn volumes(&self) -> Result<BTreeMap<String, String>, SessionError> {
        bounded(CALL_TIMEOUT, volumes::list(self.client())).await
    }

    async fn read_volume(&self, id: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, SessionError> {
        bounded(CALL_TIMEOUT, volumes::read(self.client(), id, bytes_max)).await
    }

    async fn scan_volume(
        &self,
        id: &str,
        known: &[u8],
        limits: Limits,
    ) -> Result<VolumeScan, SessionError> {
        bounded(CALL_TIMEOUT, shared::scan(self.client(), id, known, limits)).await
    }

    async fn read_entries(
        &self,
        id: &str,
        paths: Vec<PathBuf>,
    ) -> Result<VolumeParts, SessionError> {
        bounded(CALL_TIMEOUT, shared::read(self.client(), id, paths)).await
    }

    async fn put_entries(&self, id: &str, changes: VolumeChanges) -> Result<u64, SessionError> {
        bounded(PUT_TIMEOUT, shared::put(self.client(), id, changes)).await
    }

    async fn usage(&self) -> Result<MachineUsage, SessionError> {
        let usage = within(CALL_TIMEOUT, self.client().usage(UsageRequest {})).await?;
        Ok(convert::usage(&usage.into_inner()))
    }

    async fn begin_checkpoint(&self, containers: &[ContainerId]) -> Result<(), SessionError> {
        let container_ids = containers.iter().map(ToString::to_string).collect();
        let request = BeginCheckpointRequest { container_ids };
        within(START_TIMEOUT, self.client().begin_checkpoint(request)).await.map(drop)
    }

    async fn end_checkpoint(&self) -> Result<bool, SessionError> {
        let mut client = self.client();
        let ended = within(START_TIMEOUT, client.end_checkpoint(EndCheckpointRequest {})).await?;
        Ok(ended.into_inner().held)
    }

    async fn shutdown(&self, grace: Duration) -> Result<(), SessionError> {
        let request = ShutdownRequest { grace_ms: convert::millis(grace) };
        within(CALL_TIMEOUT, self.client().shutdown(request)).await.map(drop)
    }
}

// Each a little longer than what the agent gives its container provider for the same.
const HELLO_TIMEOUT: Duration = Duration::from_secs(20);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const BIND_TIMEOUT: Duration = Duration::from_secs(25);
const CREATE_TIMEOUT: Duration = Duration::from_secs(100);
const START_TIMEOUT: Duration = Duration::from_secs(90);
const PUT_TIMEOUT: Duration = Duration::from_secs(90);
const STOP_TIMEOUT: Duration = Duration::from_secs(40);
const EXEC_MARGIN: Duration = Duration::from_secs(30);
