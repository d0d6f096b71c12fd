//! Between the protocol's words and the SDK's: the only file that knows both.

mod stats;

use std::time::Duration;

use infranetes_agent_protocol::v1::{
    AttachRequest, AttachResponse, ContainerConfig, ContainerStatus, ContainerUsage,
    CreateContainerRequest, ExecExit, ExecRequest, ExecResponse, Image, ImportLayersRequest, Layer,
    LogChunk, LogsRequest, PidNamespace, ProcessUser, SeccompMode, Security, TerminalSize,
    attach_request, attach_response, exec_request, exec_response, import_layers_request,
    logs_request,
};
use infranetes_sdk::container as sdk;
use infranetes_sdk::{ErrorKind, ProviderError};
use tonic::{Code, Status};

pub(super) use self::stats::container_stats;

/// A provider's error for the node. Only the duty that makes a container tells a taken id from a wrong state.
pub(super) fn status(error: &ProviderError) -> Status {
    let code = match error.kind {
        ErrorKind::Quota | ErrorKind::Capacity => Code::ResourceExhausted,
        ErrorKind::Credentials => Code::PermissionDenied,
        ErrorKind::Throttled | ErrorKind::Transient => Code::Unavailable,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict => Code::FailedPrecondition,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        _ => Code::Internal,
    };
    Status::new(code, text(error))
}

/// A provider's error and its causes. It travels in a header, so it is short.
pub(super) fn text(error: &ProviderError) -> String {
    let mut text = error.chain();
    let end = (0..=MESSAGE_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

/// The node's half of a stream broke.
pub(super) fn cut_off(status: &Status) -> ProviderError {
    ProviderError::transient(format!("the node's stream was cut off: {}", status.message()))
}

/// How long a container may take to stop.
pub(super) fn grace(grace_ms: u64) -> Duration {
    Duration::from_millis(grace_ms).min(GRACE_MAX)
}

pub(super) fn image(image: Image) -> sdk::Image {
    sdk::Image { id: image.id, layers: image.layers.into_iter().map(layer).collect() }
}

fn layer(layer: Layer) -> sdk::Layer {
    sdk::Layer {
        digest: layer.digest,
        diff_id: layer.diff_id,
        size_bytes: layer.size_bytes,
        media_type: layer.media_type,
    }
}

pub(super) fn import_chunk(part: ImportLayersRequest) -> Result<sdk::ImportChunk, String> {
    let part = match part.part {
        Some(import_layers_request::Part::Layer(part)) => sdk::ImportPart::Layer(layer(part)),
        Some(import_layers_request::Part::Data(data)) if data.len() > IMPORT_BYTES_MAX => {
            return Err(format!("a piece of a layer has at most {IMPORT_BYTES_MAX} bytes"));
        }
        Some(import_layers_request::Part::Data(data)) => sdk::ImportPart::Data(data),
        None => return Err("a message of an import is empty".to_owned()),
    };
    Ok(sdk::ImportChunk { part: Some(part) })
}

pub(super) fn create(
    request: CreateContainerRequest,
) -> Result<sdk::CreateContainerRequest, Status> {
    let missing = |field: &str| Status::invalid_argument(format!("{field} is missing"));
    let config = request.config.ok_or_else(|| missing("config"))?;
    let image = image(config.image.clone().ok_or_else(|| missing("image"))?);
    if config.args.is_empty() {
        return Err(missing("args"));
    }
    let security = config.security.clone().map(security).transpose()?;
    let namespaces = namespaces(&config)?;
    let resources = config.resources.clone().map(resources);
    Ok(sdk::CreateContainerRequest {
        id: request.id,
        image: Some(image),
        mounts: config.mounts.iter().cloned().map(mount).collect(),
        devices: config.devices.iter().cloned().map(device).collect(),
        security,
        resources,
        namespaces: Some(namespaces),
        annotations: config.annotations.clone().into_iter().collect(),
        process: Some(process(config)),
        ..Default::default()
    })
}

pub(super) fn update(
    request: infranetes_agent_protocol::v1::UpdateContainerRequest,
) -> sdk::UpdateContainerRequest {
    sdk::UpdateContainerRequest { id: request.id, resources: request.resources.map(resources) }
}

fn process(config: ContainerConfig) -> sdk::Process {
    let env = config.env.into_iter();
    sdk::Process {
        args: config.args,
        env: env.map(|var| sdk::EnvVar { name: var.name, value: var.value }).collect(),
        cwd: config.cwd,
        tty: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        rlimits: Vec::new(),
        stop_signal: config.stop_signal,
    }
}

fn mount(mount: infranetes_agent_protocol::v1::Mount) -> sdk::Mount {
    sdk::Mount {
        source: mount.source,
        destination: mount.destination,
        r#type: mount.r#type,
        options: mount.options,
        image: mount.image.map(image),
        sub_path: mount.sub_path,
    }
}

fn device(device: infranetes_agent_protocol::v1::Device) -> sdk::Device {
    sdk::Device {
        source: device.source,
        destination: device.destination,
        permissions: device.permissions,
    }
}

fn security(security: Security) -> Result<sdk::Security, Status> {
    let seccomp = security.seccomp.map(|seccomp| {
        // An unknown mode must not read as the weakest.
        let mode = SeccompMode::try_from(seccomp.mode)
            .map_err(|_| Status::unimplemented("this agent does not know the seccomp mode"))?;
        let mode = match mode {
            SeccompMode::Unspecified => sdk::SeccompMode::Unspecified,
            SeccompMode::RuntimeDefault => sdk::SeccompMode::RuntimeDefault,
            SeccompMode::Profile => sdk::SeccompMode::Profile,
        };
        Ok::<_, Status>(sdk::Seccomp { mode: mode.into(), profile: seccomp.profile })
    });
    Ok(sdk::Security {
        image_user: security.image_user,
        uid: security.uid,
        gid: security.gid,
        user_name: security.user_name,
        supplemental_groups: security.supplemental_groups,
        strict_supplemental_groups: security.strict_supplemental_groups,
        privileged: security.privileged,
        add_capabilities: security.add_capabilities,
        drop_capabilities: security.drop_capabilities,
        read_only_root: security.read_only_root,
        no_new_privileges: security.no_new_privileges,
        masked_paths: security.masked_paths,
        read_only_paths: security.read_only_paths,
        seccomp: seccomp.transpose()?,
    })
}

fn resources(resources: infranetes_agent_protocol::v1::Resources) -> sdk::Resources {
    sdk::Resources {
        cpu_shares: resources.cpu_shares,
        cpu_quota_us: resources.cpu_quota_us,
        cpu_period_us: resources.cpu_period_us,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        memory_limit_bytes: resources.memory_limit_bytes,
        memory_swap_limit_bytes: resources.memory_swap_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        pids_limit: resources.pids_limit,
        unified: resources.unified.into_iter().collect(),
        hugepage_limits: resources.hugepage_limits.into_iter().collect(),
    }
}

/// Network and IPC are always the pod's, which are the machine's.
fn namespaces(config: &ContainerConfig) -> Result<sdk::Namespaces, Status> {
    let wanted = config.namespaces.clone().unwrap_or_default();
    let pid = PidNamespace::try_from(wanted.pid)
        .map_err(|_| Status::unimplemented("this agent does not know the pid namespace mode"))?;
    let pid = match pid {
        PidNamespace::Unspecified => sdk::PidNamespace::Unspecified,
        PidNamespace::Pod => sdk::PidNamespace::Pod,
        PidNamespace::Machine => sdk::PidNamespace::Machine,
        PidNamespace::Target => sdk::PidNamespace::Target,
    };
    Ok(sdk::Namespaces {
        pid: pid.into(),
        pid_target: wanted.pid_target,
        private_network: false,
        private_ipc: false,
        users: wanted.users.map(|users| sdk::UserNamespace {
            first_uid: users.first_uid,
            uid_count: users.uid_count,
            first_gid: users.first_gid,
            gid_count: users.gid_count,
        }),
    })
}

pub(super) fn exec_input(part: ExecRequest) -> Result<sdk::ExecInput, String> {
    use exec_request::Input;
    let input = match part.input {
        Some(Input::Start(start)) => sdk::ExecInputPart::Start(sdk::ExecStart {
            container_id: start.container_id,
            args: start.args,
            tty: start.tty,
            stdin: start.stdin,
            timeout_ms: start.timeout_ms,
        }),
        Some(Input::Stdin(data)) => sdk::ExecInputPart::Stdin(data),
        Some(Input::StdinClosed(closed)) => sdk::ExecInputPart::StdinClosed(closed),
        Some(Input::Resize(size)) => sdk::ExecInputPart::Resize(terminal_size(&size)),
        None => return Err("a message of an exec is empty".to_owned()),
    };
    Ok(sdk::ExecInput { input: Some(input) })
}

fn terminal_size(size: &TerminalSize) -> sdk::TerminalSize {
    sdk::TerminalSize { columns: size.columns, rows: size.rows }
}

pub(super) fn exec_output(part: sdk::ExecOutput) -> Result<ExecResponse, Status> {
    use exec_response::Output;
    let output = match part.output {
        Some(sdk::ExecOutputPart::Stdout(data)) => Output::Stdout(data),
        Some(sdk::ExecOutputPart::Stderr(data)) => Output::Stderr(data),
        Some(sdk::ExecOutputPart::Exit(exit)) => {
            Output::Exit(ExecExit { code: exit.code, timed_out: exit.timed_out })
        }
        None => return Err(Status::internal("the container provider sent an empty message")),
    };
    Ok(ExecResponse { output: Some(output) })
}

pub(super) fn attach_input(part: AttachRequest) -> Result<sdk::AttachInput, String> {
    use attach_request::Input;
    let input = match part.input {
        Some(Input::Start(start)) => {
            sdk::AttachInputPart::Start(sdk::ContainerRef { id: start.container_id })
        }
        Some(Input::Stdin(data)) => sdk::AttachInputPart::Stdin(data),
        Some(Input::StdinClosed(closed)) => sdk::AttachInputPart::StdinClosed(closed),
        Some(Input::Resize(size)) => sdk::AttachInputPart::Resize(terminal_size(&size)),
        None => return Err("a message of an attach is empty".to_owned()),
    };
    Ok(sdk::AttachInput { input: Some(input) })
}

pub(super) fn attach_output(part: sdk::AttachOutput) -> Result<AttachResponse, Status> {
    use attach_response::Output;
    let output = match part.output {
        Some(sdk::AttachOutputPart::Stdout(data)) => Output::Stdout(data),
        Some(sdk::AttachOutputPart::Stderr(data)) => Output::Stderr(data),
        None => return Err(Status::internal("the container provider sent an empty message")),
    };
    Ok(AttachResponse { output: Some(output) })
}

pub(super) fn logs_input(part: LogsRequest) -> Result<sdk::LogsInput, String> {
    use logs_request::Input;
    let input = match part.input {
        Some(Input::Start(start)) => {
            sdk::LogsInputPart::Start(sdk::LogsStart { id: start.container_id, after: start.after })
        }
        Some(Input::Acknowledged(sequence)) => sdk::LogsInputPart::Acknowledged(sequence),
        None => return Err("a message of a log stream is empty".to_owned()),
    };
    Ok(sdk::LogsInput { input: Some(input) })
}

pub(super) fn log_chunk(chunk: sdk::LogChunk) -> Result<LogChunk, Status> {
    if chunk.data.len() > LOG_BYTES_MAX {
        return Err(Status::internal("the container provider sent too much output at once"));
    }
    Ok(LogChunk {
        sequence: chunk.sequence,
        stream: chunk.stream,
        timestamp_unix_ns: chunk.timestamp_unix_ns,
        data: chunk.data,
    })
}

pub(super) fn container_status(status: sdk::ContainerStatus) -> ContainerStatus {
    ContainerStatus {
        id: status.id,
        state: status.state,
        created_unix_ns: status.created_unix_ns,
        started_unix_ns: status.started_unix_ns,
        finished_unix_ns: status.finished_unix_ns,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        pid: status.pid,
        user: status.user.map(|user| ProcessUser {
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
        }),
    }
}

pub(super) fn container_usage(stats: sdk::ContainerStats) -> ContainerUsage {
    ContainerUsage {
        id: stats.id,
        timestamp_unix_ns: stats.timestamp_unix_ns,
        cpu_usage_ns: stats.cpu_usage_ns,
        memory_working_set_bytes: stats.memory_working_set_bytes,
        processes: stats.processes,
    }
}

const MESSAGE_BYTES_MAX: usize = 2048;
const IMPORT_BYTES_MAX: usize = 256 * 1024;
const LOG_BYTES_MAX: usize = 128 * 1024;
/// A day: longer than any pod is given to end.
const GRACE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut ContainerConfig)) -> CreateContainerRequest {
        let mut config = ContainerConfig {
            image: Some(Image::default()),
            args: vec!["/bin/true".into()],
            ..ContainerConfig::default()
        };
        change(&mut config);
        CreateContainerRequest { id: "c1".into(), config: Some(config) }
    }

    #[test]
    fn an_unknown_mode_is_refused_and_not_weakened() {
        let seccomp = infranetes_agent_protocol::v1::Seccomp { mode: 99, profile: Vec::new() };
        let security = Security { seccomp: Some(seccomp), ..Security::default() };
        let refused = create(request(|config| config.security = Some(security))).unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        let namespaces =
            infranetes_agent_protocol::v1::Namespaces { pid: 99, ..Default::default() };
        let refused = create(request(|config| config.namespaces = Some(namespaces))).unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
    }

    #[test]
    fn a_container_without_a_program_or_an_image_is_refused() {
        assert!(create(request(|_| ())).is_ok());
        assert!(create(request(|config| config.args.clear())).is_err());
        assert!(create(request(|config| config.image = None)).is_err());
    }

    #[test]
    fn a_long_error_is_cut_at_a_character() {
        let error = ProviderError::internal("ö".repeat(5000));
        assert_eq!(text(&error).len(), MESSAGE_BYTES_MAX);
        assert_eq!(text(&ProviderError::internal("short")), "short");
    }

    #[test]
    fn pieces_beyond_the_bound_are_refused() {
        let data = |bytes: usize| ImportLayersRequest {
            part: Some(import_layers_request::Part::Data(vec![0; bytes])),
        };
        assert!(import_chunk(data(IMPORT_BYTES_MAX)).is_ok());
        assert!(import_chunk(data(IMPORT_BYTES_MAX + 1)).is_err());
        assert!(import_chunk(ImportLayersRequest { part: None }).is_err());
    }
}
