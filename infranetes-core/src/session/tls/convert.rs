//! Between the engine's words and the protocol's: the only file of the node that knows both.
//!
//! What comes from an agent is checked here: it may be hostile.

mod stats;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use infranetes_agent_protocol::v1;
use infranetes_agent_protocol::v1::watch_response::Event;

pub(super) use self::stats::stats_sample;
use crate::ids::ContainerId;
use crate::network::NetworkLayout;
use crate::session::duplex::{ExecExit, ProgramOutput, TerminalSize};
use crate::session::{
    AgentHello, Binding, Bound, ContainerPlan, LogChunk, LogStream, MachineImage, MachineLayer,
    MachineUsage, ObservedContainer, ObservedState, SessionError, VolumeMount, VolumeMountSource,
    WatchEvent,
};
use crate::spec::{
    ContainerResources, DeviceSpec, MachineMount, PidMode, Seccomp, SecuritySpec, UserNamespace,
};
use crate::status::ProcessUser;

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn hello(hello: v1::HelloResponse) -> Result<AgentHello, SessionError> {
    let times = hello.times.unwrap_or_default();
    if hello.boot_id.is_empty() {
        return Err(SessionError::Violation("a hello without a boot id".to_owned()));
    }
    Ok(AgentHello {
        boot_id: word(hello.boot_id, "boot id")?,
        agent_version: word(hello.agent_version, "agent version")?,
        sandbox_id: word(hello.sandbox_id, "sandbox id")?,
        kernel_release: word(hello.kernel_release, "kernel release")?,
        agent_started: Duration::from_micros(times.agent_started_us),
        now: Duration::from_micros(times.now_us),
    })
}

pub(super) fn binding(binding: &Binding) -> v1::BindRequest {
    v1::BindRequest {
        sandbox_id: binding.sandbox.to_string(),
        pod_name: binding.pod.name.clone(),
        pod_namespace: binding.pod.namespace.clone(),
        pod_uid: binding.pod.uid.clone(),
        hostname: binding.hostname.clone(),
        dns: Some(v1::Dns {
            servers: binding.dns.servers.clone(),
            searches: binding.dns.searches.clone(),
            options: binding.dns.options.clone(),
        }),
        sysctls: binding.sysctls.clone().into_iter().collect(),
        hosts: Vec::new(),
        network: binding.network.as_ref().map(network),
    }
}

fn network(layout: &NetworkLayout) -> v1::Network {
    let interfaces = layout.interfaces.iter().map(|interface| v1::NetworkInterface {
        mac: interface.mac.clone(),
        name: interface.name.clone(),
        mtu: interface.mtu,
        addresses: interface.addresses.iter().map(ToString::to_string).collect(),
    });
    let text = |ip: &Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let routes = layout.routes.iter().map(|route| v1::Route {
        destination: route.destination.to_string(),
        gateway: text(&route.gateway),
        interface: route.interface.clone(),
        source: text(&route.source),
        metric: route.metric,
        on_link: route.on_link,
    });
    let neighbours = layout.neighbours.iter().map(|neighbour| v1::Neighbour {
        ip: neighbour.ip.to_string(),
        mac: neighbour.mac.clone(),
        interface: neighbour.interface.clone(),
    });
    v1::Network {
        interfaces: interfaces.collect(),
        routes: routes.collect(),
        neighbours: neighbours.collect(),
    }
}

pub(super) fn bound(response: v1::BindResponse) -> Result<Bound, SessionError> {
    if response.ips.len() > IPS_MAX {
        return Err(SessionError::Violation("too many addresses".to_owned()));
    }
    if response.ips.iter().any(|ip| ip.parse::<IpAddr>().is_err()) {
        return Err(SessionError::Violation("an address that is none".to_owned()));
    }
    Ok(Bound { ips: response.ips })
}

pub(super) fn image(image: &MachineImage) -> v1::Image {
    v1::Image { id: image.id.clone(), layers: image.layers.iter().map(layer).collect() }
}

pub(super) fn layer(layer: &MachineLayer) -> v1::Layer {
    v1::Layer {
        digest: layer.digest.clone(),
        diff_id: layer.diff_id.clone(),
        size_bytes: layer.size_bytes,
        media_type: layer.media_type.clone(),
    }
}

/// An agent can lack only what it was asked about.
pub(super) fn missing(
    response: v1::MissingLayersResponse,
    image: &MachineImage,
) -> Result<Vec<String>, SessionError> {
    let known = |digest: &String| image.layers.iter().any(|layer| layer.digest == *digest);
    if response.digests.len() <= image.layers.len() && response.digests.iter().all(known) {
        Ok(response.digests)
    } else {
        Err(SessionError::Violation("layers that nobody asked about are missing".to_owned()))
    }
}

pub(super) fn plan(plan: &ContainerPlan) -> v1::ContainerConfig {
    let env = plan.env.iter();
    v1::ContainerConfig {
        image: Some(image(&plan.image)),
        args: plan.args.clone(),
        env: env
            .map(|var| v1::EnvVar { name: var.name.clone(), value: var.value.clone() })
            .collect(),
        cwd: plan.cwd.clone(),
        tty: plan.tty,
        stdin: plan.stdin,
        stdin_once: plan.stdin_once,
        stop_signal: plan.stop_signal.clone(),
        security: Some(security(&plan.security, &plan.image_user)),
        resources: Some(resources(&plan.resources)),
        namespaces: Some(namespaces(&plan.pid_mode, plan.users)),
        mounts: plan.mounts.iter().map(mount).chain(plan.volumes.iter().map(volume)).collect(),
        devices: plan.devices.iter().map(device).collect(),
        annotations: Default::default(),
    }
}

fn device(device: &DeviceSpec) -> v1::Device {
    v1::Device {
        source: device.source.clone(),
        destination: device.destination.clone(),
        permissions: device.permissions.clone(),
    }
}

fn security(security: &SecuritySpec, image_user: &str) -> v1::Security {
    let (mode, profile) = match &security.seccomp {
        Seccomp::Unconfined => (v1::SeccompMode::Unspecified, Vec::new()),
        Seccomp::RuntimeDefault => (v1::SeccompMode::RuntimeDefault, Vec::new()),
        Seccomp::Profile(profile) => (v1::SeccompMode::Profile, profile.clone()),
    };
    v1::Security {
        image_user: image_user.to_owned(),
        uid: security.uid,
        gid: security.gid,
        user_name: security.user_name.clone(),
        supplemental_groups: security.supplemental_groups.clone(),
        strict_supplemental_groups: security.strict_supplemental_groups,
        privileged: security.privileged,
        add_capabilities: security.add_capabilities.clone(),
        drop_capabilities: security.drop_capabilities.clone(),
        read_only_root: security.read_only_root,
        no_new_privileges: security.no_new_privileges,
        masked_paths: security.masked_paths.clone(),
        read_only_paths: security.read_only_paths.clone(),
        seccomp: Some(v1::Seccomp { mode: mode.into(), profile }),
    }
}

pub(super) fn resources(resources: &ContainerResources) -> v1::Resources {
    v1::Resources {
        cpu_shares: resources.cpu_shares,
        cpu_quota_us: resources.cpu_quota_us,
        cpu_period_us: resources.cpu_period_us,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        memory_limit_bytes: resources.memory_limit_bytes,
        memory_swap_limit_bytes: resources.memory_swap_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        pids_limit: resources.pids_limit,
        unified: resources.unified.clone().into_iter().collect(),
        hugepage_limits: resources.hugepage_limits.clone().into_iter().collect(),
    }
}

fn namespaces(mode: &PidMode, users: Option<UserNamespace>) -> v1::Namespaces {
    let (pid, pid_target) = match mode {
        PidMode::Container => (v1::PidNamespace::Unspecified, String::new()),
        PidMode::Pod => (v1::PidNamespace::Pod, String::new()),
        PidMode::Machine => (v1::PidNamespace::Machine, String::new()),
        PidMode::Target(target) => (v1::PidNamespace::Target, target.clone()),
    };
    let users = users.map(|UserNamespace { uids, gids }| v1::UserNamespace {
        first_uid: uids.first,
        uid_count: uids.count,
        first_gid: gids.first,
        gid_count: gids.count,
    });
    v1::Namespaces { pid: pid.into(), pid_target, users }
}

fn mount(mount: &MachineMount) -> v1::Mount {
    v1::Mount {
        source: mount.source.clone(),
        destination: mount.destination.clone(),
        r#type: mount.kind.clone(),
        options: mount.options.clone(),
        ..Default::default()
    }
}

fn volume(volume: &VolumeMount) -> v1::Mount {
    let (kind, source, mounted) = match &volume.source {
        VolumeMountSource::Volume(id) => ("volume", id.clone(), None),
        VolumeMountSource::Image(mounted) => ("image", String::new(), Some(image(mounted))),
    };
    v1::Mount {
        source,
        destination: volume.destination.clone(),
        r#type: kind.to_owned(),
        options: volume.options.clone(),
        sub_path: volume.sub_path.clone(),
        image: mounted,
    }
}

pub(super) fn log_chunk(chunk: v1::LogChunk) -> Result<LogChunk, SessionError> {
    let stream = match chunk.stream() {
        v1::LogStream::Stdout => LogStream::Stdout,
        v1::LogStream::Stderr => LogStream::Stderr,
        v1::LogStream::Unspecified => {
            return Err(SessionError::Violation("output of no stream".to_owned()));
        }
    };
    Ok(LogChunk {
        sequence: chunk.sequence,
        stream,
        timestamp: time(chunk.timestamp_unix_ns).unwrap_or(SystemTime::UNIX_EPOCH),
        data: piece(chunk.data)?,
    })
}

pub(super) fn exec_output(
    output: Option<v1::exec_response::Output>,
) -> Result<ProgramOutput, SessionError> {
    use v1::exec_response::Output;
    match output {
        Some(Output::Stdout(data)) => piece(data).map(ProgramOutput::Stdout),
        Some(Output::Stderr(data)) => piece(data).map(ProgramOutput::Stderr),
        Some(Output::Exit(exit)) => {
            Ok(ProgramOutput::Exit(ExecExit { code: exit.code, timed_out: exit.timed_out }))
        }
        Some(Output::Taken(_)) | None => {
            Err(SessionError::Violation("an empty message of an exec".to_owned()))
        }
    }
}

pub(super) fn attach_output(
    output: Option<v1::attach_response::Output>,
) -> Result<ProgramOutput, SessionError> {
    use v1::attach_response::Output;
    match output {
        Some(Output::Stdout(data)) => piece(data).map(ProgramOutput::Stdout),
        Some(Output::Stderr(data)) => piece(data).map(ProgramOutput::Stderr),
        Some(Output::Taken(_)) | None => {
            Err(SessionError::Violation("an empty message of an attach".to_owned()))
        }
    }
}

pub(super) fn terminal_size(size: TerminalSize) -> v1::TerminalSize {
    v1::TerminalSize { columns: size.columns.into(), rows: size.rows.into() }
}

/// Bytes that an agent sent at once.
pub(super) fn piece(data: Vec<u8>) -> Result<Vec<u8>, SessionError> {
    if data.len() <= LOG_BYTES_MAX {
        Ok(data)
    } else {
        Err(SessionError::Violation("too much output at once".to_owned()))
    }
}

pub(super) fn watch_event(event: Option<Event>) -> Result<WatchEvent, SessionError> {
    match event {
        Some(Event::Snapshot(snapshot)) => {
            let containers = snapshot.containers.into_iter().map(observed);
            Ok(WatchEvent::Snapshot(containers.collect::<Result<_, _>>()?))
        }
        Some(Event::Container(status)) => Ok(WatchEvent::Changed(observed(status)?)),
        Some(Event::Removed(id)) => Ok(WatchEvent::Removed(container_id(&id)?)),
        None => Err(SessionError::Violation("an empty event".to_owned())),
    }
}

fn observed(status: v1::ContainerStatus) -> Result<ObservedContainer, SessionError> {
    let state = match status.state() {
        v1::ContainerState::Created => ObservedState::Created,
        v1::ContainerState::Running => ObservedState::Running,
        v1::ContainerState::Exited => ObservedState::Exited,
        v1::ContainerState::Unspecified => {
            return Err(SessionError::Violation("a container without a state".to_owned()));
        }
    };
    Ok(ObservedContainer {
        id: container_id(&status.id)?,
        state,
        started_at: time(status.started_unix_ns),
        finished_at: time(status.finished_unix_ns),
        exit_code: status.exit_code,
        reason: cut(status.reason, WORD_BYTES_MAX),
        message: cut(status.message, SENTENCE_BYTES_MAX),
        user: status.user.map(process_user),
    })
}

fn process_user(user: v1::ProcessUser) -> ProcessUser {
    let mut groups = user.groups;
    groups.truncate(GROUPS_MAX);
    ProcessUser { uid: user.uid, gid: user.gid, groups }
}

pub(super) fn usage(usage: &v1::UsageResponse) -> MachineUsage {
    MachineUsage {
        agent_rss_bytes: usage.agent_rss_bytes,
        memory_total_bytes: usage.memory_total_bytes,
        memory_available_bytes: usage.memory_available_bytes,
    }
}

fn container_id(id: &str) -> Result<ContainerId, SessionError> {
    ContainerId::parse(id)
        .map_err(|_| SessionError::Violation("a container id that is none of ours".to_owned()))
}

fn time(unix_ns: u64) -> Option<SystemTime> {
    (unix_ns != 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_ns))
}

fn word(text: String, what: &str) -> Result<String, SessionError> {
    if text.len() <= WORD_BYTES_MAX && !text.contains(char::is_control) {
        Ok(text)
    } else {
        Err(SessionError::Violation(format!("{what}: too long, or not a word")))
    }
}

fn cut(mut text: String, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

const IPS_MAX: usize = 32;
const LOG_BYTES_MAX: usize = 128 * 1024;
const WORD_BYTES_MAX: usize = 256;
const SENTENCE_BYTES_MAX: usize = 4096;
/// What a pod may name and a few of the image.
const GROUPS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hostile_agent_says_is_refused() {
        let violation = |result: Result<(), SessionError>| {
            assert!(matches!(result, Err(SessionError::Violation(_))), "{result:?}");
        };
        violation(hello(v1::HelloResponse::default()).map(drop));
        let long = v1::HelloResponse { boot_id: "x".repeat(257), ..Default::default() };
        violation(hello(long).map(drop));
        violation(bound(v1::BindResponse { ips: vec!["$(reboot)".into()] }).map(drop));
        let image = MachineImage::default();
        let digests = vec!["sha256:0".to_owned()];
        violation(missing(v1::MissingLayersResponse { digests }, &image).map(drop));
        violation(log_chunk(v1::LogChunk { stream: 9, ..Default::default() }).map(drop));
        let data = vec![0; LOG_BYTES_MAX + 1];
        violation(log_chunk(v1::LogChunk { stream: 1, data, ..Default::default() }).map(drop));
        violation(watch_event(None).map(drop));
        violation(watch_event(Some(Event::Removed("../x".into()))).map(drop));
    }

    #[test]
    fn long_words_of_a_status_are_cut() {
        let status = v1::ContainerStatus {
            id: "ab".repeat(32),
            state: 3,
            reason: "ä".repeat(1000),
            message: "m".repeat(10_000),
            ..Default::default()
        };
        let observed = observed(status).unwrap();
        assert_eq!(observed.reason.len(), WORD_BYTES_MAX);
        assert_eq!(observed.message.len(), SENTENCE_BYTES_MAX);
    }
}
