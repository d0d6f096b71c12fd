//! From CreateContainer and its siblings to what is wanted of a container.

use std::time::Duration;

use infranetes_core::spec::{ContainerSpec, DeviceSpec, EnvVar, SandboxSpec};

use super::security::SeccompSource;
use super::{Refusal, check, mounts, resources, security, signal};
use crate::api::v1;

type Result<T> = std::result::Result<T, Refusal>;

/// The container that a request asks for, and where its system call filter comes from. `sandbox` is what its sandbox was
/// made with.
pub fn container_spec(
    config: Option<v1::ContainerConfig>,
    sandbox: &SandboxSpec,
) -> Result<(ContainerSpec, SeccompSource)> {
    let config = check::required("config", config)?;
    refuse_what_comes_from_the_node(&config)?;
    let metadata = check::required("config.metadata", config.metadata)?;
    let image = check::required("config.image", config.image)?;
    let linux = config.linux.unwrap_or_default();
    let (security, pid_mode, seccomp) = security::of_container(linux.security_context)?;
    let spec = ContainerSpec {
        name: check::text("config.metadata.name", metadata.name, MAX_NAME)?,
        attempt: metadata.attempt,
        image: check::text("config.image.image", image.image, MAX_IMAGE)?,
        user_specified_image: check::optional_text(
            "config.image.user_specified_image",
            image.user_specified_image,
            MAX_IMAGE,
        )?,
        command: check::arguments("config.command", config.command)?,
        args: check::arguments("config.args", config.args)?,
        working_dir: working_dir(config.working_dir)?,
        env: environment(config.envs)?,
        labels: check::map("config.labels", config.labels)?,
        annotations: check::map("config.annotations", config.annotations)?,
        log_path: log_path(config.log_path, sandbox)?,
        tty: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        stop_signal: signal::name("config.stop_signal", config.stop_signal)?,
        resources: resources::of_container(
            "config.linux.resources",
            linux.resources.unwrap_or_default(),
        )?,
        security,
        pid_mode,
        mounts: Vec::new(),
        volumes: mounts::mounts(config.mounts)?,
        devices: devices(config.devices)?,
    };
    Ok((spec, seccomp))
}

/// What a container asks for and cannot have in a machine: it must not start without.
fn refuse_what_comes_from_the_node(config: &v1::ContainerConfig) -> Result<()> {
    if config.windows.is_some() {
        return Err(Refusal::unsupported("config.windows", "only Linux containers can be run"));
    }
    if !config.cdi_devices.is_empty() {
        let problem = "devices of the node cannot be given to a machine; choose a handler whose machines have their own";
        return Err(Refusal::unsupported("config.CDI_devices", problem));
    }
    Ok(())
}

/// Devices are the machine's own, under the paths that the node would have them: whether it has them is the machine's to say.
fn devices(asked: Vec<v1::Device>) -> Result<Vec<DeviceSpec>> {
    check::few("config.devices", &asked, MAX_DEVICES)?;
    let device = |(i, device): (usize, v1::Device)| {
        let at = |name: &str| format!("config.devices[{i}].{name}");
        let path = |name: &str, path| {
            let path = check::absolute_path(&at(name), path)?;
            Ok::<_, Refusal>(path.to_string_lossy().into_owned())
        };
        let v1::Device { host_path, container_path, permissions } = device;
        if permissions.len() > 3 || permissions.chars().any(|one| !"rwm".contains(one)) {
            return Err(Refusal::invalid(at("permissions"), "has more than \"rwm\" has"));
        }
        // Block volumes come by paths of the kubelet's.
        if host_path.starts_with('/') && !host_path.starts_with("/dev/") {
            let problem = "is none of a machine's devices, which are below /dev; those of the node cannot be had in one";
            return Err(Refusal::unsupported(at("host_path"), problem));
        }
        let destination =
            if container_path.is_empty() { host_path.clone() } else { container_path };
        Ok(DeviceSpec {
            source: path("host_path", host_path)?,
            destination: path("container_path", destination)?,
            permissions,
        })
    };
    asked.into_iter().enumerate().map(device).collect()
}

fn working_dir(path: String) -> Result<String> {
    if path.is_empty() || path.starts_with('/') {
        check::optional_text("config.working_dir", path, MAX_PATH)
    } else {
        Err(Refusal::invalid("config.working_dir", "is not an absolute path"))
    }
}

fn environment(variables: Vec<v1::KeyValue>) -> Result<Vec<EnvVar>> {
    check::few("config.envs", &variables, MAX_ENVIRONMENT)?;
    let bytes: usize = variables.iter().map(|v| v.key.len() + v.value.len() + 2).sum();
    if bytes > MAX_ENVIRONMENT_BYTES {
        let problem = format!("has {bytes} bytes; at most {MAX_ENVIRONMENT_BYTES} are possible");
        return Err(Refusal::invalid("config.envs", problem));
    }
    let variable = |(i, variable): (usize, v1::KeyValue)| {
        let name = check::text(&format!("config.envs[{i}].key"), variable.key, MAX_ENV_NAME)?;
        if name.contains('=') {
            return Err(Refusal::invalid(format!("config.envs[{i}].key"), "has a \"=\""));
        }
        // The value itself is never repeated: it may be a secret.
        if variable.value.contains(&0) {
            return Err(Refusal::invalid(format!("config.envs[{i}].value"), "has a NUL byte"));
        }
        Ok(EnvVar { name, value: variable.value })
    };
    variables.into_iter().enumerate().map(variable).collect()
}

fn log_path(path: String, sandbox: &SandboxSpec) -> Result<std::path::PathBuf> {
    if path.is_empty() {
        return Ok(std::path::PathBuf::new());
    }
    if sandbox.log_directory.as_os_str().is_empty() {
        return Err(Refusal::invalid(
            "config.log_path",
            "the sandbox was made without a log_directory",
        ));
    }
    check::relative_path("config.log_path", path)
}

/// The command of ExecSync.
pub fn exec_args(command: Vec<String>) -> Result<Vec<String>> {
    if command.first().is_none_or(String::is_empty) {
        return Err(Refusal::invalid("cmd", "names no program"));
    }
    check::arguments("cmd", command)
}

/// The timeout of ExecSync; 0 means none.
pub fn exec_timeout(seconds: i64) -> Result<Option<Duration>> {
    let seconds = check::number("timeout", seconds, 0..=i64::MAX)?;
    Ok((seconds != 0).then(|| bounded(seconds)))
}

/// How long StopContainer leaves the container to end by itself. Less than nothing is nothing.
pub fn stop_grace(seconds: i64) -> Duration {
    bounded(seconds.max(0))
}

/// A time that clocks can be asked to wait for.
fn bounded(seconds: i64) -> Duration {
    Duration::from_secs(seconds.unsigned_abs().min(LONGEST_WAIT_SECS))
}

const LONGEST_WAIT_SECS: u64 = 366 * 24 * 3600;
const MAX_NAME: usize = 253;
const MAX_IMAGE: usize = 1024;
const MAX_PATH: usize = 4096;
const MAX_DEVICES: usize = 256;
const MAX_ENVIRONMENT: usize = 16 * 1024;
const MAX_ENV_NAME: usize = 4096;
/// What Linux takes for arguments and environment.
const MAX_ENVIRONMENT_BYTES: usize = 2 << 20;
