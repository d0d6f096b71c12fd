//! The record of a sandbox, version 1, and its translation from and to what the engine holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use infranetes_sdk::pod::MachineType;
use serde::{Deserialize, Serialize};

use crate::engine::life::{Failure, Goal, Life, Machine, UserData};
use crate::error::{Cause, FailureKind};
use crate::ids::{MachineId, SandboxId};
use crate::record::codec::{self, damaged};
use crate::record::fields::{
    Base64, Nanos, PidModeField, ResourcesField, UsersField, from_nanos, opt_from_nanos, opt_nanos,
    to_nanos,
};
use crate::record::network::{NetworkField, PortField};
use crate::record::origin::OriginField;
use crate::record::{Entry, RecordError, Table};
use crate::session::{AgentIdentity, Ticket};
use crate::spec::{Dns, PodIdentity, SandboxSpec};
use crate::status::{Phase, Timeline};

#[derive(Serialize, Deserialize)]
struct SandboxRecord {
    id: SandboxId,
    spec: SpecField,
    created_at: Nanos,
    goal: GoalField,
    tries: u32,
    passed_over: u32,
    machine: Option<MachineField>,
    failure: Option<FailureField>,
    was_ready: bool,
    ips: Vec<String>,
    #[serde(default, skip_serializing_if = "NetworkField::is_own")]
    network: NetworkField,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<OriginField>,
    timeline: [Option<Nanos>; 8],
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GoalField {
    Run,
    Stop,
    Remove,
}

#[derive(Serialize, Deserialize)]
struct SpecField {
    name: String,
    namespace: String,
    uid: String,
    attempt: u32,
    handler: String,
    hostname: String,
    dns_servers: Vec<String>,
    dns_searches: Vec<String>,
    dns_options: Vec<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    log_directory: String,
    resources: ResourcesField,
    overhead: ResourcesField,
    sysctls: BTreeMap<String, String>,
    pid_mode: PidModeField,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortField>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    users: Option<UsersField>,
}

#[derive(Serialize, Deserialize)]
struct MachineField {
    provider: String,
    token: String,
    name: String,
    shape: ShapeField,
    why: String,
    user_data: Base64,
    agent_name: String,
    ticket: Base64,
    id: Option<String>,
    endpoint: String,
    enrolled_as: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_name: Option<String>,
    boot_id: String,
    kernel_release: String,
    doomed: bool,
}

/// A machine's type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShapeField {
    name: String,
    cpu_millis: u64,
    memory_bytes: u64,
    architecture: String,
    gpus: u32,
    zone: String,
    spot: bool,
    price_micros_per_hour: Option<u64>,
    currency: String,
}

#[derive(Serialize, Deserialize)]
struct FailureField {
    phase: String,
    kind: String,
    texts: Vec<String>,
    console: String,
}

/// Writes a sandbox's record.
pub(crate) fn encode(life: &Life) -> Entry {
    let record = SandboxRecord {
        id: life.id.clone(),
        spec: spec_field(&life.spec),
        created_at: to_nanos(life.created_at),
        goal: match life.goal {
            Goal::Run => GoalField::Run,
            Goal::Stop => GoalField::Stop,
            Goal::Remove => GoalField::Remove,
        },
        tries: life.tries,
        passed_over: life.passed_over,
        machine: life.machine.as_ref().map(machine_field),
        failure: life.failure.as_ref().map(failure_field),
        was_ready: life.was_ready,
        ips: life.ips.clone(),
        network: NetworkField::from(&life.network),
        origin: life.origin.as_deref().map(OriginField::from),
        timeline: timeline_field(&life.timeline),
    };
    codec::encode(Table::Sandboxes, life.id.as_str(), &record)
}

/// Reads a sandbox's record.
pub(crate) fn decode(entry: &Entry) -> Result<Life, RecordError> {
    let record: SandboxRecord = codec::decode(entry)?;
    if record.id.as_str() != entry.key {
        return Err(damaged(entry, "the record belongs to another id"));
    }
    let failure = match record.failure {
        None => None,
        Some(field) => Some(failure(entry, field)?),
    };
    Ok(Life {
        id: record.id,
        spec: Arc::new(spec(record.spec)),
        created_at: from_nanos(record.created_at),
        goal: match record.goal {
            GoalField::Run => Goal::Run,
            GoalField::Stop => Goal::Stop,
            GoalField::Remove => Goal::Remove,
        },
        tries: record.tries,
        passed_over: record.passed_over,
        machine: record.machine.map(machine),
        failure,
        was_ready: record.was_ready,
        ips: record.ips,
        network: record.network.try_into().map_err(|error| damaged(entry, error))?,
        origin: record.origin.map(|origin| Box::new(origin.into())),
        timeline: timeline(record.timeline),
    })
}

fn spec_field(spec: &SandboxSpec) -> SpecField {
    SpecField {
        name: spec.pod.name.clone(),
        namespace: spec.pod.namespace.clone(),
        uid: spec.pod.uid.clone(),
        attempt: spec.pod.attempt,
        handler: spec.handler.clone(),
        hostname: spec.hostname.clone(),
        dns_servers: spec.dns.servers.clone(),
        dns_searches: spec.dns.searches.clone(),
        dns_options: spec.dns.options.clone(),
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        log_directory: spec.log_directory.to_string_lossy().into_owned(),
        resources: ResourcesField::from(&spec.resources),
        overhead: ResourcesField::from(&spec.overhead),
        sysctls: spec.sysctls.clone(),
        pid_mode: PidModeField::from(&spec.pid_mode),
        ports: spec.ports.iter().map(PortField::from).collect(),
        users: spec.users.map(Into::into),
    }
}

fn spec(field: SpecField) -> SandboxSpec {
    SandboxSpec {
        pod: PodIdentity {
            name: field.name,
            namespace: field.namespace,
            uid: field.uid,
            attempt: field.attempt,
        },
        handler: field.handler,
        hostname: field.hostname,
        dns: Dns {
            servers: field.dns_servers,
            searches: field.dns_searches,
            options: field.dns_options,
        },
        labels: field.labels,
        annotations: field.annotations,
        log_directory: field.log_directory.into(),
        resources: field.resources.into(),
        overhead: field.overhead.into(),
        sysctls: field.sysctls,
        pid_mode: field.pid_mode.into(),
        ports: field.ports.into_iter().map(Into::into).collect(),
        users: field.users.map(Into::into),
    }
}

fn machine_field(machine: &Machine) -> MachineField {
    MachineField {
        provider: machine.provider.clone(),
        token: machine.token.clone(),
        name: machine.name.clone(),
        shape: ShapeField::from(&machine.shape),
        why: machine.why.clone(),
        user_data: Base64(machine.user_data.0.clone()),
        agent_name: machine.ticket.agent_name.clone(),
        ticket: Base64(machine.ticket.token.clone()),
        id: machine.id.as_ref().map(|id| id.0.clone()),
        endpoint: machine.endpoint.clone(),
        enrolled_as: machine.identity.as_ref().map(|identity| identity.agent_name.clone()),
        next_name: machine.next_name.clone(),
        boot_id: machine.boot_id.clone(),
        kernel_release: machine.kernel_release.clone(),
        doomed: machine.doomed,
    }
}

fn machine(field: MachineField) -> Machine {
    Machine {
        provider: field.provider,
        token: field.token,
        name: field.name,
        shape: field.shape.into(),
        why: field.why,
        user_data: UserData(field.user_data.0),
        ticket: Ticket { agent_name: field.agent_name, token: field.ticket.0 },
        id: field.id.map(MachineId),
        endpoint: field.endpoint,
        identity: field.enrolled_as.map(|agent_name| AgentIdentity { agent_name }),
        next_name: field.next_name,
        boot_id: field.boot_id,
        kernel_release: field.kernel_release,
        doomed: field.doomed,
    }
}

impl From<&MachineType> for ShapeField {
    fn from(shape: &MachineType) -> Self {
        Self {
            name: shape.name.clone(),
            cpu_millis: shape.cpu_millis,
            memory_bytes: shape.memory_bytes,
            architecture: shape.architecture.clone(),
            gpus: shape.gpus,
            zone: shape.zone.clone(),
            spot: shape.spot,
            price_micros_per_hour: shape.price_micros_per_hour,
            currency: shape.currency.clone(),
        }
    }
}

impl From<ShapeField> for MachineType {
    fn from(shape: ShapeField) -> Self {
        Self {
            name: shape.name,
            cpu_millis: shape.cpu_millis,
            memory_bytes: shape.memory_bytes,
            architecture: shape.architecture,
            gpus: shape.gpus,
            zone: shape.zone,
            spot: shape.spot,
            price_micros_per_hour: shape.price_micros_per_hour,
            currency: shape.currency,
        }
    }
}

fn failure_field(failure: &Failure) -> FailureField {
    let name = |table: &[(Phase, &str)]| {
        table
            .iter()
            .find(|(phase, _)| *phase == failure.phase)
            .map_or("ready", |(_, name)| name)
            .to_owned()
    };
    let kind = KINDS.iter().find(|(kind, _)| *kind == failure.cause.kind);
    FailureField {
        phase: name(&PHASES),
        kind: kind.map_or("internal", |(_, name)| name).to_owned(),
        texts: failure.cause.texts(),
        console: failure.console.clone(),
    }
}

fn failure(entry: &Entry, field: FailureField) -> Result<Failure, RecordError> {
    let phase = PHASES.iter().find(|(_, name)| *name == field.phase);
    let kind = KINDS.iter().find(|(_, name)| *name == field.kind);
    let (Some((phase, _)), Some((kind, _))) = (phase, kind) else {
        return Err(damaged(entry, "its failure names a phase or a kind that does not exist"));
    };
    let cause = Cause::from_texts(*kind, field.texts);
    Ok(Failure { phase: *phase, cause, console: field.console })
}

fn timeline_field(timeline: &Timeline) -> [Option<Nanos>; 8] {
    [
        timeline.wanted,
        timeline.allocated,
        timeline.booted,
        timeline.kernel_started,
        timeline.agent_started,
        timeline.enrolled,
        timeline.bound,
        timeline.ready,
    ]
    .map(opt_nanos)
}

fn timeline(field: [Option<Nanos>; 8]) -> Timeline {
    let [wanted, allocated, booted, kernel_started, agent_started, enrolled, bound, ready] =
        field.map(opt_from_nanos);
    Timeline { wanted, allocated, booted, kernel_started, agent_started, enrolled, bound, ready }
}

const PHASES: [(Phase, &str); 10] = [
    (Phase::Intended, "intended"),
    (Phase::Submitted, "submitted"),
    (Phase::Allocated, "allocated"),
    (Phase::Booted, "booted"),
    (Phase::Bound, "bound"),
    (Phase::Ready, "ready"),
    (Phase::Stopping, "stopping"),
    (Phase::Stopped, "stopped"),
    (Phase::Removing, "removing"),
    (Phase::Failed, "failed"),
];

const KINDS: [(FailureKind, &str); 10] = [
    (FailureKind::NotFound, "not_found"),
    (FailureKind::Invalid, "invalid"),
    (FailureKind::Unsupported, "unsupported"),
    (FailureKind::WrongState, "wrong_state"),
    (FailureKind::Conflict, "conflict"),
    (FailureKind::Exhausted, "exhausted"),
    (FailureKind::Denied, "denied"),
    (FailureKind::Unavailable, "unavailable"),
    (FailureKind::TimedOut, "timed_out"),
    (FailureKind::Internal, "internal"),
];
