//! From what is written to what is meant: defaults, units, paths, and everything that can be known to be wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use infranetes_cni::CniSettings;
use infranetes_core::engine::{EngineConfig, HandlerConfig, HandlerNetwork, PhaseTimeouts};
use infranetes_core::image::{
    Endpoint, EndpointCredentials, Reference, RegistriesConfig, RegistryConfig,
};
use infranetes_core::mounts::MountPolicy;
use infranetes_core::spec::SandboxResources;
use infranetes_loader::signature::{PublicKey, SignatureError};
use tracing_subscriber::EnvFilter;

use super::error::Invalid;
use super::{Config, Images, Limits, Log, LogFormat, file, units};

pub(super) type Result<T> = std::result::Result<T, Invalid>;

pub(super) fn resolve(file: file::File) -> Result<Config> {
    let state_dir = directory(&["state_dir"], file.state_dir, STATE_DIR)?;
    let config = Config {
        socket: socket(file.listen.as_deref().unwrap_or(LISTEN))?,
        providers_dir: directory(&["providers_dir"], file.providers_dir, PROVIDERS_DIR)?,
        cluster: tag(&["cluster"], file.cluster.unwrap_or_else(|| CLUSTER.to_owned()))?,
        node: tag(&["node"], file.node.filter(|node| !node.is_empty()).unwrap_or_else(host_name))?,
        handlers: handlers(file.handlers, file.default_handler.unwrap_or_default())?,
        images: images(file.images, &state_dir)?,
        cni: cni(file.cni, &state_dir)?,
        mounts: mounts(file.mounts)?,
        agent_certificate_lifetime: duration(
            &["agent", "certificate_lifetime"],
            file.agent.certificate_lifetime,
            CERTIFICATE_LIFETIME,
            Duration::from_secs(600)..=Duration::from_secs(30 * 24 * 3600),
        )?,
        agent_stats_period: duration(
            &["agent", "stats_period"],
            file.agent.stats_period,
            STATS_PERIOD,
            EngineConfig::STATS_PERIOD_MIN..=EngineConfig::STATS_PERIOD_MAX,
        )?,
        trusted_keys: trusted_keys(&file.plugins.trusted_keys)?,
        shutdown_grace: duration(
            &["shutdown_grace"],
            file.shutdown_grace,
            SHUTDOWN_GRACE,
            Duration::ZERO..=Duration::from_secs(600),
        )?,
        streaming: super::streaming::resolve(file.streaming)?,
        limits: limits(&file.limits)?,
        log: log(file.log)?,
        state_dir,
    };
    Ok(config)
}

fn trusted_keys(written: &[String]) -> Result<Vec<PublicKey>> {
    let invalid = |error: SignatureError| {
        Invalid::new(&["plugins", "trusted_keys"], format!("{error}; see `plugin keygen`"))
    };
    written.iter().map(|key| key.parse().map_err(invalid)).collect()
}

fn socket(listen: &str) -> Result<PathBuf> {
    let invalid = |problem: String| Invalid::new(&["listen"], problem);
    let Some(path) = listen.strip_prefix("unix://").filter(|path| path.starts_with('/')) else {
        return Err(invalid(format!("{listen:?} is no socket; write it like {LISTEN:?}")));
    };
    if path.len() > MAX_SOCKET_PATH {
        return Err(invalid(format!("a socket's path has at most {MAX_SOCKET_PATH} bytes")));
    }
    Ok(PathBuf::from(path))
}

fn directory(key: &[&str], value: Option<PathBuf>, default: &str) -> Result<PathBuf> {
    let path = value.unwrap_or_else(|| PathBuf::from(default));
    absolute(key, path)
}

pub(super) fn absolute(key: &[&str], path: PathBuf) -> Result<PathBuf> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Invalid::new(key, format!("{:?} has to be an absolute path", path.display())))
    }
}

/// A name that every provider takes as a tag's value.
fn tag(key: &[&str], name: String) -> Result<String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(name)
    } else {
        Err(Invalid::new(
            key,
            format!(
                "{name:?} has to match [a-z0-9_-]{{1,63}}: it names what is ours at a provider"
            ),
        ))
    }
}

/// The host's name, made a tag: what may not be in one becomes "-".
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().take(63).map(|c| if allowed(c) { c } else { '-' }).collect()
}

fn handlers(
    written: BTreeMap<String, file::Handler>,
    default_handler: String,
) -> Result<BTreeMap<String, HandlerConfig>> {
    let mut handlers = BTreeMap::new();
    for (name, handler) in written {
        if !is_handler_name(&name) {
            let problem = "a RuntimeClass's handler has a name like \"vm\" or \"qemu-big\": [a-z0-9-], at most 63";
            return Err(Invalid::new(&["handlers", &name], problem));
        }
        handlers.insert(name.clone(), resolve_handler(&name, handler)?);
    }
    if !default_handler.is_empty() {
        let Some(handler) = handlers.get(&default_handler).cloned() else {
            let known: Vec<&str> = handlers.keys().map(String::as_str).collect();
            let problem = format!(
                "there is no [handlers.{default_handler}]; there is: {}",
                list_words(&known)
            );
            return Err(Invalid::new(&["default_handler"], problem));
        };
        handlers.insert(String::new(), handler);
    }
    Ok(handlers)
}

fn list_words(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn is_handler_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn resolve_handler(name: &str, handler: file::Handler) -> Result<HandlerConfig> {
    let at = |key: &'static str| ["handlers", name, key];
    let provider = handler.provider.filter(|provider| !provider.is_empty()).ok_or_else(|| {
        Invalid::new(
            &at("provider"),
            "name the provider instance that makes this handler's machines",
        )
    })?;
    Ok(HandlerConfig {
        provider,
        default_resources: SandboxResources {
            cpu_millis: cpu(&at("cpu"), handler.cpu, CPU, 1)?,
            memory_bytes: memory(&at("memory"), handler.memory, MEMORY, 16 << 20)?,
        },
        default_overhead: SandboxResources {
            cpu_millis: cpu(&at("overhead_cpu"), handler.overhead_cpu, OVERHEAD_CPU, 0)?,
            memory_bytes: memory(
                &at("overhead_memory"),
                handler.overhead_memory,
                OVERHEAD_MEMORY,
                0,
            )?,
        },
        machine_type: handler.machine_type.unwrap_or_default(),
        zones: handler.zones,
        spot: handler.spot.unwrap_or(false),
        allowed_annotations: handler.allowed_annotations.into_iter().collect(),
        network: network(&at("network"), handler.network)?,
        timeouts: timeouts(name, handler.timeouts)?,
    })
}

fn cpu(key: &[&str], value: Option<String>, default: &str, least: u64) -> Result<u64> {
    let text = value.unwrap_or_else(|| default.to_owned());
    let millis = units::cpu_millis(&text).map_err(|problem| Invalid::new(key, problem))?;
    if (least..=MAX_CPU_MILLIS).contains(&millis) {
        Ok(millis)
    } else {
        Err(Invalid::new(key, format!("{text:?} is not between {least}m and {MAX_CPU_MILLIS}m")))
    }
}

fn memory(key: &[&str], value: Option<String>, default: &str, least: u64) -> Result<u64> {
    let text = value.unwrap_or_else(|| default.to_owned());
    let bytes = units::memory_bytes(&text).map_err(|problem| Invalid::new(key, problem))?;
    if (least..=MAX_MEMORY_BYTES).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(Invalid::new(key, format!("{text:?} is not between {}Mi and 64Ti", least >> 20)))
    }
}

fn timeouts(handler: &str, written: file::Timeouts) -> Result<PhaseTimeouts> {
    let default = PhaseTimeouts::default();
    let read = |key: &'static str, value: Option<String>, default: Duration| {
        let key = ["handlers", handler, "timeouts", key];
        let Some(text) = value else { return Ok(default) };
        bounded(&key, &text, Duration::from_millis(100)..=Duration::from_secs(3600))
    };
    let timeouts = PhaseTimeouts {
        provider_call: read("provider_call", written.provider_call, default.provider_call)?,
        boot: read("boot", written.boot, default.boot)?,
        enrol: read("enrol", written.enrol, default.enrol)?,
        bind: read("bind", written.bind, default.bind)?,
        run_call: read("run_call", written.run_call, default.run_call)?,
    };
    match timeouts.contradiction() {
        Some((key, problem)) => Err(Invalid::new(&["handlers", handler, "timeouts", key], problem)),
        None => Ok(timeouts),
    }
}

fn images(written: file::Images, state_dir: &Path) -> Result<Images> {
    let root = written.root.unwrap_or_else(|| state_dir.join("images"));
    let mut registries = RegistriesConfig {
        default_mirrors: mirrors(&["images", "mirrors"], written.mirrors)?,
        ..RegistriesConfig::default()
    };
    for (host, registry) in written.registries {
        let resolved = resolve_registry(&host, registry)?;
        registries.hosts.insert(host, resolved);
    }
    let pinned = written.pinned.iter().map(|name| {
        let problem = |e: infranetes_core::image::ReferenceError| {
            Invalid::new(&["images", "pinned"], e.to_string())
        };
        name.parse::<Reference>().map_err(problem)
    });
    Ok(Images {
        root: absolute(&["images", "root"], root)?,
        parallel_pulls: count(
            &["images", "parallel_pulls"],
            written.parallel_pulls,
            PARALLEL_PULLS,
            100,
        )?,
        pinned: pinned.collect::<Result<_>>()?,
        registries,
    })
}

fn network(key: &[&str], value: Option<String>) -> Result<HandlerNetwork> {
    match value.as_deref().unwrap_or(NETWORK) {
        "provider" => Ok(HandlerNetwork::Provider),
        "cni" => Ok(HandlerNetwork::Node),
        other => {
            let problem = format!("{other:?} is no network; one of \"provider\", \"cni\"");
            Err(Invalid::new(key, problem))
        }
    }
}

fn cni(written: file::Cni, state_dir: &Path) -> Result<CniSettings> {
    let bin_dirs = match written.bin_dirs {
        Some(dirs) => dirs,
        None => CNI_BIN_DIRS.iter().map(PathBuf::from).collect(),
    };
    let bin_dirs = bin_dirs.into_iter().map(|dir| absolute(&["cni", "bin_dirs"], dir));
    Ok(CniSettings {
        conf_dir: directory(&["cni", "conf_dir"], written.conf_dir, CNI_CONF_DIR)?,
        bin_dirs: bin_dirs.collect::<Result<_>>()?,
        namespace_dir: directory(
            &["cni", "namespace_dir"],
            written.namespace_dir,
            CNI_NAMESPACE_DIR,
        )?,
        state_dir: state_dir.join("cni"),
    })
}

fn resolve_registry(host: &str, registry: file::Registry) -> Result<RegistryConfig> {
    let at = |key: &'static str| ["images", "registries", host, key];
    let itself = match (registry.url, registry.ca_file) {
        (None, None) => None,
        (url, ca_file) => {
            let url = url.unwrap_or_else(|| format!("https://{host}"));
            let written = file::Endpoint { url, ca_file, send_credentials: true };
            Some(endpoint(&at("url"), written)?)
        }
    };
    Ok(RegistryConfig { mirrors: mirrors(&at("mirrors"), registry.mirrors)?, itself })
}

fn mirrors(key: &[&str], written: Vec<file::Endpoint>) -> Result<Vec<Endpoint>> {
    written.into_iter().map(|mirror| endpoint(key, mirror)).collect()
}

fn endpoint(key: &[&str], written: file::Endpoint) -> Result<Endpoint> {
    let mut endpoint = Endpoint::new(&written.url).map_err(|e| Invalid::new(key, e.to_string()))?;
    endpoint.ca_file = written.ca_file.map(|path| absolute(key, path)).transpose()?;
    if written.send_credentials {
        endpoint.credentials = EndpointCredentials::FromPull;
    }
    Ok(endpoint)
}

fn mounts(written: file::Mounts) -> Result<MountPolicy> {
    let default = MountPolicy::default();
    let paths = |key: &'static str, paths: Vec<PathBuf>| {
        paths.into_iter().map(|path| plain(&["mounts", key], path)).collect::<Result<Vec<_>>>()
    };
    let kubelet_dir = written.kubelet_dir.unwrap_or(default.kubelet_dir);
    let copy_mib = count(&["mounts", "copy_mib"], written.copy_mib, COPY_MIB, 4096)?;
    let entries = default.limits.entries;
    let copy_entries = count(&["mounts", "copy_entries"], written.copy_entries, entries, 200_000)?;
    let shared_mib = count(&["mounts", "shared_mib"], written.shared_mib, COPY_MIB, 4096)?;
    let shared_entries = &["mounts", "shared_entries"];
    let shared_entries = count(shared_entries, written.shared_entries, entries, 200_000)?;
    let write_back = &["mounts", "write_back_kib"];
    let write_back_kib = count(write_back, written.write_back_kib, WRITE_BACK_KIB, 16 << 10)?;
    Ok(MountPolicy {
        kubelet_dir: plain(&["mounts", "kubelet_dir"], kubelet_dir)?,
        host_paths: paths("host_paths", written.host_paths)?,
        scratch_host_paths: paths("scratch_host_paths", written.scratch_host_paths)?,
        shared_host_paths: paths("shared_host_paths", written.shared_host_paths)?,
        limits: infranetes_core::mounts::Limits {
            bytes: (copy_mib as u64) << 20,
            entries: copy_entries,
        },
        shared_limits: infranetes_core::mounts::Limits {
            bytes: (shared_mib as u64) << 20,
            entries: shared_entries,
        },
        write_back_bytes: (write_back_kib as u64) << 10,
    })
}

/// An absolute path that means what it says.
fn plain(key: &[&str], path: PathBuf) -> Result<PathBuf> {
    let path = absolute(key, path)?;
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Invalid::new(key, format!("{:?} has a \"..\"", path.display())));
    }
    Ok(path)
}

fn limits(written: &file::Limits) -> Result<Limits> {
    let creates = &["limits", "concurrent_creates"];
    let message = &["limits", "message_mib"];
    Ok(Limits {
        concurrent_creates: count(creates, written.concurrent_creates, CONCURRENT_CREATES, 1000)?,
        message_bytes: count(message, written.message_mib, MESSAGE_MIB, 256)? << 20,
    })
}

fn log(written: file::Log) -> Result<Log> {
    let level = written.level.unwrap_or_else(|| LOG_LEVEL.to_owned());
    EnvFilter::try_new(&level).map_err(|_| {
        let problem = format!("{level:?} is no log level; one of error, warn, info, debug, trace, or a filter like \"info,infranetes_core=debug\"");
        Invalid::new(&["log", "level"], problem)
    })?;
    let format = match written.format.as_deref().unwrap_or(LOG_FORMAT) {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            let problem = format!("{other:?} is no log format; one of \"text\", \"json\"");
            return Err(Invalid::new(&["log", "format"], problem));
        }
    };
    Ok(Log { level, format })
}

fn count(key: &[&str], value: Option<usize>, default: usize, most: usize) -> Result<usize> {
    let count = value.unwrap_or(default);
    if (1..=most).contains(&count) {
        Ok(count)
    } else {
        Err(Invalid::new(key, format!("{count} is not between 1 and {most}")))
    }
}

pub(super) fn duration(
    key: &[&str],
    value: Option<String>,
    default: &str,
    allowed: std::ops::RangeInclusive<Duration>,
) -> Result<Duration> {
    bounded(key, value.as_deref().unwrap_or(default), allowed)
}

fn bounded(
    key: &[&str],
    text: &str,
    allowed: std::ops::RangeInclusive<Duration>,
) -> Result<Duration> {
    let duration = units::duration(text).map_err(|problem| Invalid::new(key, problem))?;
    if allowed.contains(&duration) {
        Ok(duration)
    } else {
        let problem =
            format!("{text:?} is not between {:?} and {:?}", allowed.start(), allowed.end());
        Err(Invalid::new(key, problem))
    }
}

const LISTEN: &str = "unix:///run/infranetes/cri.sock";
const STATE_DIR: &str = "/var/lib/infranetes";
const PROVIDERS_DIR: &str = "/etc/infranetes/providers.d";
const CLUSTER: &str = "default";
const SHUTDOWN_GRACE: &str = "10s";
const CERTIFICATE_LIFETIME: &str = "24h";
const STATS_PERIOD: &str = "10s";
const CPU: &str = "1";
const MEMORY: &str = "512Mi";
const OVERHEAD_CPU: &str = "0";
const OVERHEAD_MEMORY: &str = "128Mi";
const NETWORK: &str = "provider";
const CNI_CONF_DIR: &str = "/etc/cni/net.d";
const CNI_BIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
const CNI_NAMESPACE_DIR: &str = "/run/infranetes/netns";
const PARALLEL_PULLS: usize = 5;
const CONCURRENT_CREATES: usize = 8;
const MESSAGE_MIB: usize = 16;
const COPY_MIB: usize = 64;
const WRITE_BACK_KIB: usize = 1024;
const LOG_LEVEL: &str = "info";
const LOG_FORMAT: &str = "text";

/// `sun_path` has 108 bytes, the last of which is 0.
const MAX_SOCKET_PATH: usize = 107;
const MAX_CPU_MILLIS: u64 = 1_024_000;
const MAX_MEMORY_BYTES: u64 = 64 << 40;
