//! The records of a container and of its log, version 1, and their translation from and to what the engine holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::engine::life::{ContainerLife, LogMark};
use crate::ids::{ContainerId, SandboxId};
use crate::record::codec::{self, damaged};
use crate::record::fields::{Nanos, PidModeField, from_nanos, opt_from_nanos, opt_nanos, to_nanos};
use crate::record::mounts::{KeptField, VolumeField};
use crate::record::{Entry, RecordError, Table};
use crate::spec::{ContainerResources, ContainerSpec, MachineMount, SecuritySpec};
use crate::status::{ContainerState, ProcessUser};

/// What status and log rotation need after a restart. Command, arguments, environment and seccomp profile are left out:
/// they may hold secrets, and the machine knows them.
#[derive(Serialize, Deserialize)]
struct ContainerRecord {
    id: ContainerId,
    sandbox: SandboxId,
    spec: SpecField,
    fingerprint: String,
    image_id: String,
    state: StateField,
    created_at: Nanos,
    started_at: Option<Nanos>,
    finished_at: Option<Nanos>,
    exit_code: i32,
    reason: String,
    message: String,
    image_ready_at: Option<Nanos>,
    /// The first records do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wanted_at: Option<Nanos>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process_user: Option<ProcessUserField>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kept: Vec<KeptField>,
}

#[derive(Serialize, Deserialize)]
struct ProcessUserField {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateField {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Serialize, Deserialize)]
struct SpecField {
    name: String,
    attempt: u32,
    image: String,
    user_specified_image: String,
    working_dir: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    log_path: String,
    tty: bool,
    stdin: bool,
    stdin_once: bool,
    stop_signal: String,
    resources: LimitsField,
    user: UserField,
    pid_mode: Option<PidModeField>,
    mounts: Vec<MountField>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumeField>,
}

#[derive(Serialize, Deserialize)]
struct LimitsField {
    cpu_shares: u64,
    cpu_quota_us: i64,
    cpu_period_us: u64,
    cpuset_cpus: String,
    cpuset_mems: String,
    memory_limit_bytes: i64,
    memory_swap_limit_bytes: i64,
    oom_score_adj: i64,
    pids_limit: i64,
    unified: BTreeMap<String, String>,
    hugepage_limits: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
struct UserField {
    uid: Option<i64>,
    gid: Option<i64>,
    user_name: String,
    supplemental_groups: Vec<i64>,
    strict_supplemental_groups: bool,
    privileged: bool,
}

#[derive(Serialize, Deserialize)]
struct MountField {
    source: String,
    destination: String,
    kind: String,
    options: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct LogRecord {
    sequence: u64,
    offset: u64,
    finished: bool,
}

/// Writes a container's record.
pub(crate) fn encode(life: &ContainerLife) -> Entry {
    let record = ContainerRecord {
        id: life.id.clone(),
        sandbox: life.sandbox.clone(),
        spec: spec_field(&life.spec),
        fingerprint: life.fingerprint.clone(),
        image_id: life.image_id.clone(),
        state: match life.state {
            ContainerState::Created => StateField::Created,
            ContainerState::Running => StateField::Running,
            ContainerState::Exited => StateField::Exited,
            ContainerState::Unknown => StateField::Unknown,
        },
        created_at: to_nanos(life.created_at),
        started_at: opt_nanos(life.started_at),
        finished_at: opt_nanos(life.finished_at),
        exit_code: life.exit_code,
        reason: life.reason.clone(),
        message: life.message.clone(),
        image_ready_at: opt_nanos(life.image_ready_at),
        wanted_at: opt_nanos(life.wanted_at),
        process_user: life.user.clone().map(|user| ProcessUserField {
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
        }),
        kept: life.kept.iter().map(KeptField::from).collect(),
    };
    codec::encode(Table::Containers, life.id.as_str(), &record)
}

/// Reads a container's record.
pub(crate) fn decode(entry: &Entry) -> Result<ContainerLife, RecordError> {
    let record: ContainerRecord = codec::decode(entry)?;
    if record.id.as_str() != entry.key {
        return Err(damaged(entry, "the record belongs to another id"));
    }
    Ok(ContainerLife {
        id: record.id,
        sandbox: record.sandbox,
        spec: Arc::new(spec(record.spec)),
        fingerprint: record.fingerprint,
        image_id: record.image_id,
        state: match record.state {
            StateField::Created => ContainerState::Created,
            StateField::Running => ContainerState::Running,
            StateField::Exited => ContainerState::Exited,
            StateField::Unknown => ContainerState::Unknown,
        },
        created_at: from_nanos(record.created_at),
        started_at: opt_from_nanos(record.started_at),
        finished_at: opt_from_nanos(record.finished_at),
        exit_code: record.exit_code,
        reason: record.reason,
        message: record.message,
        image_ready_at: opt_from_nanos(record.image_ready_at),
        wanted_at: opt_from_nanos(record.wanted_at),
        user: record.process_user.map(|user| ProcessUser {
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
        }),
        kept: record.kept.into_iter().map(Into::into).collect(),
    })
}

/// Writes how far a container's log is durable.
pub(crate) fn encode_mark(id: &ContainerId, mark: &LogMark) -> Entry {
    let record =
        LogRecord { sequence: mark.sequence, offset: mark.offset, finished: mark.finished };
    codec::encode(Table::Logs, id.as_str(), &record)
}

/// Reads how far a container's log is durable.
pub(crate) fn decode_mark(entry: &Entry) -> Result<(ContainerId, LogMark), RecordError> {
    let record: LogRecord = codec::decode(entry)?;
    let id = ContainerId::parse(&entry.key).map_err(|error| damaged(entry, error))?;
    let LogRecord { sequence, offset, finished } = record;
    Ok((id, LogMark { sequence, offset, finished }))
}

fn spec_field(spec: &ContainerSpec) -> SpecField {
    let mount = |mount: &MachineMount| MountField {
        source: mount.source.clone(),
        destination: mount.destination.clone(),
        kind: mount.kind.clone(),
        options: mount.options.clone(),
    };
    SpecField {
        name: spec.name.clone(),
        attempt: spec.attempt,
        image: spec.image.clone(),
        user_specified_image: spec.user_specified_image.clone(),
        working_dir: spec.working_dir.clone(),
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        log_path: spec.log_path.to_string_lossy().into_owned(),
        tty: spec.tty,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        stop_signal: spec.stop_signal.clone(),
        resources: limits_field(&spec.resources),
        user: UserField {
            uid: spec.security.uid,
            gid: spec.security.gid,
            user_name: spec.security.user_name.clone(),
            supplemental_groups: spec.security.supplemental_groups.clone(),
            strict_supplemental_groups: spec.security.strict_supplemental_groups,
            privileged: spec.security.privileged,
        },
        pid_mode: spec.pid_mode.as_ref().map(PidModeField::from),
        mounts: spec.mounts.iter().map(mount).collect(),
        volumes: spec.volumes.iter().map(VolumeField::from).collect(),
    }
}

fn spec(field: SpecField) -> ContainerSpec {
    let mount = |mount: MountField| MachineMount {
        source: mount.source,
        destination: mount.destination,
        kind: mount.kind,
        options: mount.options,
    };
    ContainerSpec {
        name: field.name,
        attempt: field.attempt,
        image: field.image,
        user_specified_image: field.user_specified_image,
        command: Vec::new(),
        args: Vec::new(),
        working_dir: field.working_dir,
        env: Vec::new(),
        labels: field.labels,
        annotations: field.annotations,
        log_path: field.log_path.into(),
        tty: field.tty,
        stdin: field.stdin,
        stdin_once: field.stdin_once,
        stop_signal: field.stop_signal,
        resources: limits(field.resources),
        security: SecuritySpec {
            uid: field.user.uid,
            gid: field.user.gid,
            user_name: field.user.user_name,
            supplemental_groups: field.user.supplemental_groups,
            strict_supplemental_groups: field.user.strict_supplemental_groups,
            privileged: field.user.privileged,
            ..SecuritySpec::default()
        },
        pid_mode: field.pid_mode.map(Into::into),
        mounts: field.mounts.into_iter().map(mount).collect(),
        volumes: field.volumes.into_iter().map(Into::into).collect(),
        devices: Vec::new(),
    }
}

fn limits_field(limits: &ContainerResources) -> LimitsField {
    LimitsField {
        cpu_shares: limits.cpu_shares,
        cpu_quota_us: limits.cpu_quota_us,
        cpu_period_us: limits.cpu_period_us,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        memory_limit_bytes: limits.memory_limit_bytes,
        memory_swap_limit_bytes: limits.memory_swap_limit_bytes,
        oom_score_adj: limits.oom_score_adj,
        pids_limit: limits.pids_limit,
        unified: limits.unified.clone(),
        hugepage_limits: limits.hugepage_limits.clone(),
    }
}

fn limits(field: LimitsField) -> ContainerResources {
    ContainerResources {
        cpu_shares: field.cpu_shares,
        cpu_quota_us: field.cpu_quota_us,
        cpu_period_us: field.cpu_period_us,
        cpuset_cpus: field.cpuset_cpus,
        cpuset_mems: field.cpuset_mems,
        memory_limit_bytes: field.memory_limit_bytes,
        memory_swap_limit_bytes: field.memory_swap_limit_bytes,
        oom_score_adj: field.oom_score_adj,
        pids_limit: field.pids_limit,
        unified: field.unified,
        hugepage_limits: field.hugepage_limits,
    }
}
