//! From RunPodSandbox to the sandbox that is wanted.
//!
//! Some of what CRI says concerns the node alone and has no meaning for a machine, so it is taken and not passed on: the
//! cgroup of the pod, and the user, root file system and profiles of the process that holds namespaces in other runtimes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use infranetes_core::network::{PortMapping, Prefix, PrefixError, Protocol};
use infranetes_core::spec::{Dns, PodIdentity, SandboxSpec};

use super::{Refusal, check, resources, security};
use crate::api::v1;

type Result<T> = std::result::Result<T, Refusal>;

/// The sandbox that a request asks for.
pub fn sandbox_spec(request: v1::RunPodSandboxRequest) -> Result<SandboxSpec> {
    let config = check::required("config", request.config)?;
    if config.windows.is_some() {
        return Err(Refusal::unsupported("config.windows", "only Linux pods can be run"));
    }
    let linux = config.linux.unwrap_or_default();
    let (pid_mode, users) = security::of_sandbox(linux.security_context.unwrap_or_default())?;
    Ok(SandboxSpec {
        pod: pod(check::required("config.metadata", config.metadata)?)?,
        handler: check::optional_text("runtime_handler", request.runtime_handler, 63)?,
        hostname: hostname(config.hostname)?,
        dns: dns(config.dns_config.unwrap_or_default())?,
        labels: check::map("config.labels", config.labels)?,
        annotations: check::map("config.annotations", config.annotations)?,
        log_directory: log_directory(config.log_directory)?,
        resources: resources::of_sandbox("config.linux.resources", linux.resources)?,
        overhead: resources::of_sandbox("config.linux.overhead", linux.overhead)?,
        sysctls: sysctls(linux.sysctls)?,
        pid_mode,
        users,
        ports: ports(&config.port_mappings)?,
    })
}

fn pod(metadata: v1::PodSandboxMetadata) -> Result<PodIdentity> {
    Ok(PodIdentity {
        name: check::text("config.metadata.name", metadata.name, MAX_NAME)?,
        namespace: check::text("config.metadata.namespace", metadata.namespace, MAX_NAME)?,
        uid: check::text("config.metadata.uid", metadata.uid, MAX_NAME)?,
        attempt: metadata.attempt,
    })
}

fn hostname(name: String) -> Result<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.len() > MAX_HOSTNAME || !name.bytes().all(allowed) {
        let problem = format!("has to be at most {MAX_HOSTNAME} letters, digits, \"-\" and \".\"");
        return Err(Refusal::invalid("config.hostname", problem));
    }
    Ok(name)
}

fn dns(config: v1::DnsConfig) -> Result<Dns> {
    let words = |field: &str, values: Vec<String>| {
        check::few(field, &values, MAX_DNS)?;
        // Each becomes a word of /etc/resolv.conf.
        match values.iter().find(|word| word.is_empty() || word.contains(char::is_whitespace)) {
            Some(word) => Err(Refusal::invalid(field, format!("{word:?} is not one word"))),
            None => values.into_iter().map(|word| check::text(field, word, MAX_NAME)).collect(),
        }
    };
    let dns = Dns {
        servers: words("config.dns_config.servers", config.servers)?,
        searches: words("config.dns_config.searches", config.searches)?,
        options: words("config.dns_config.options", config.options)?,
    };
    match dns.servers.iter().find(|server| server.parse::<IpAddr>().is_err()) {
        Some(server) => {
            let problem = format!("{server:?} is no IP address");
            Err(Refusal::invalid("config.dns_config.servers", problem))
        }
        None => Ok(dns),
    }
}

/// Ports of containers need nothing: the machine has an address of its own. Those of the node are left; whether they can lead
/// to the pod, its handler decides.
fn ports(mappings: &[v1::PortMapping]) -> Result<Vec<PortMapping>> {
    check::few("config.port_mappings", mappings, MAX_PORTS)?;
    let mut ports = Vec::new();
    for (i, mapping) in mappings.iter().enumerate() {
        let at = |name: &str| format!("config.port_mappings[{i}].{name}");
        let protocol = match check::variant(&at("protocol"), mapping.protocol)? {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        };
        let container_port = port(&at("container_port"), mapping.container_port)?;
        let host_port = port(&at("host_port"), mapping.host_port)?;
        let host_ip = host_ip(&at("host_ip"), &mapping.host_ip)?;
        if host_port == 0 {
            continue;
        }
        if container_port == 0 {
            let problem = "has to be a port that the node's port can lead to";
            return Err(Refusal::invalid(at("container_port"), problem));
        }
        ports.push(PortMapping { protocol, container_port, host_port, host_ip });
    }
    Ok(ports)
}

/// "10.1.0.0/24,fd00::/64", as the kubelet tells the node's part of the pod network; nothing is nothing.
pub fn pod_ranges(text: &str) -> Result<Vec<Prefix>> {
    let ranges = text.split(',').map(str::trim).filter(|range| !range.is_empty());
    let range = |text: &str| {
        let field = "runtime_config.network_config.pod_cidr";
        text.parse().map_err(|error: PrefixError| Refusal::invalid(field, error.to_string()))
    };
    ranges.take(MAX_RANGES).map(range).collect()
}

fn port(field: &str, value: i32) -> Result<u16> {
    let port = check::number(field, value.into(), 0..=65535)?;
    Ok(u16::try_from(port).unwrap_or_default())
}

fn host_ip(field: &str, text: &str) -> Result<Option<IpAddr>> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| Refusal::invalid(field, "is no IP address")),
    }
}

fn log_directory(path: String) -> Result<PathBuf> {
    if path.is_empty() {
        return Ok(PathBuf::new());
    }
    check::absolute_path("config.log_directory", path)
}

fn sysctls(values: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    let field = "config.linux.sysctls";
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    let parameter = |name: &String| {
        !name.is_empty() && name.bytes().all(allowed) && !name.split(['.', '/']).any(str::is_empty)
    };
    if let Some(name) = values.keys().find(|name| !parameter(name)) {
        return Err(Refusal::invalid(field, format!("{name:?} is no kernel parameter")));
    }
    if let Some((name, _)) = values.iter().find(|(_, value)| value.contains(['\n', '\0'])) {
        return Err(Refusal::invalid(
            field,
            format!("the value of {name:?} has more than one line"),
        ));
    }
    check::map(field, values)
}

const MAX_NAME: usize = 253;
/// Linux's own limit.
const MAX_HOSTNAME: usize = 64;
const MAX_DNS: usize = 64;
const MAX_PORTS: usize = 4096;
const MAX_RANGES: usize = 16;
