//! What is mounted in a container, and which devices it has.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use infranetes_sdk::v1::{self, CreateContainerRequest};
use infranetes_sdk::{ProviderError, Result};

use super::spec::{Device, DeviceRule, Mount};

/// All mounts in the order in which they are made: ours first, unless the request has one of its own at that place.
pub(crate) fn mounts(request: &CreateContainerRequest, pod_shm: &Path) -> Result<Vec<Mount>> {
    let asked = request.mounts.iter().map(convert).collect::<Result<Vec<_>>>()?;
    let privileged = request.security.as_ref().is_some_and(|security| security.privileged);
    let private_ipc = request.namespaces.as_ref().is_some_and(|namespaces| namespaces.private_ipc);
    let mut mounts = defaults(privileged);
    mounts.push(match private_ipc {
        true => mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        false => {
            let source = pod_shm.display().to_string();
            mount("/dev/shm", "bind", &source, &["rbind", "nosuid", "noexec", "nodev", "rw"])
        }
    });
    mounts.retain(|ours| !asked.iter().any(|theirs| theirs.destination == ours.destination));
    let mut asked = asked;
    // What lies deeper is made later, and so is not hidden.
    asked.sort_by_key(|mount| mount.destination.matches('/').count());
    mounts.extend(asked);
    Ok(mounts)
}

/// What belongs to the machine cannot be mounted anew by other users: its message queues are shown as they are, where there
/// are any. (The runtime does so with `/sys` by itself.)
pub(crate) fn without_the_machines(mounts: &mut Vec<Mount>) {
    let there = Path::new("/dev/mqueue").is_dir();
    mounts.retain(|mount| there || mount.kind != "mqueue");
    for queues in mounts.iter_mut().filter(|mount| mount.kind == "mqueue") {
        queues.kind = "bind".to_owned();
        queues.source = "/dev/mqueue".to_owned();
        queues.options.push("bind".to_owned());
    }
}

/// How mounts of the machine reach the container, as far as one mount asks for it.
pub(crate) fn propagation(mounts: &[Mount]) -> Option<&'static str> {
    let has =
        |option: &str| mounts.iter().any(|mount| mount.options.iter().any(|one| one == option));
    match () {
        () if has("rshared") || has("shared") => Some("shared"),
        () if has("rslave") || has("slave") => Some("rslave"),
        () => None,
    }
}

/// Devices, and the rules of the cgroup that let the container use them.
pub(crate) fn devices(
    request: &CreateContainerRequest,
    privileged: bool,
) -> Result<(Vec<Device>, Vec<DeviceRule>)> {
    let (mut devices, mut rules) = (Vec::new(), Vec::new());
    rules.push(DeviceRule {
        allow: privileged,
        kind: None,
        major: None,
        minor: None,
        access: "rwm".to_owned(),
    });
    if privileged {
        collect_devices(Path::new("/dev"), "/dev", &mut devices, 0)?;
        devices.retain(|device| !MADE_BY_RUNTIME.contains(&device.path.as_str()));
    }
    for asked in &request.devices {
        let access = access(&asked.permissions)?;
        let before = devices.len();
        let destination = absolute(&asked.destination, "a device's destination")?;
        collect_devices(Path::new(&asked.source), destination, &mut devices, 0)?;
        if devices.len() == before {
            return Err(ProviderError::invalid(format!("{} is no device", asked.source)));
        }
        rules.extend(devices[before..].iter().map(|device| DeviceRule {
            allow: true,
            kind: Some(device.kind),
            major: Some(device.major),
            minor: Some(device.minor),
            access: access.clone(),
        }));
    }
    Ok((devices, rules))
}

fn defaults(privileged: bool) -> Vec<Mount> {
    let access = if privileged { "rw" } else { "ro" };
    let safe = ["nosuid", "noexec", "nodev"];
    vec![
        mount("/proc", "proc", "proc", &safe),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &safe),
        mount("/sys", "sysfs", "sysfs", &[&safe[..], &[access]].concat()),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &[&safe[..], &["relatime", access]].concat()),
    ]
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

fn convert(asked: &v1::Mount) -> Result<Mount> {
    let destination = absolute(&asked.destination, "a mount's destination")?.to_owned();
    let (mut source, mut options) = (asked.source.clone(), asked.options.clone());
    if asked.image.is_some() || !asked.sub_path.is_empty() {
        return Err(ProviderError::unsupported(format!(
            "mounts of type {:?} have no part of an image",
            asked.r#type
        )));
    }
    match asked.r#type.as_str() {
        "bind" => {
            absolute(&asked.source, "a mount's source")?;
            if !Path::new(&asked.source).exists() {
                return Err(ProviderError::invalid(format!(
                    "{} cannot be mounted: this machine has no such file",
                    asked.source
                )));
            }
            if let Some(unknown) = options.iter().find(|one| !BIND_OPTIONS.contains(&one.as_str()))
            {
                return Err(ProviderError::unsupported(format!(
                    "a bind mount cannot have the option {unknown:?}"
                )));
            }
            if !options.iter().any(|one| one == "bind" || one == "rbind") {
                options.insert(0, "rbind".to_owned());
            }
        }
        "tmpfs" => {
            if source.is_empty() {
                source.push_str("tmpfs");
            }
        }
        other => {
            return Err(ProviderError::unsupported(format!(
                "mounts of type {other:?} are not made"
            )));
        }
    }
    Ok(Mount { destination, kind: asked.r#type.clone(), source, options })
}

fn absolute<'a>(path: &'a str, what: &str) -> Result<&'a str> {
    match path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|name| name == "..")
    {
        true => Ok(path),
        false => {
            Err(ProviderError::invalid(format!("{what} has to be an absolute path, not {path:?}")))
        }
    }
}

fn access(permissions: &str) -> Result<String> {
    match permissions {
        "" => Ok("rwm".to_owned()),
        known if known.chars().all(|one| "rwm".contains(one)) => Ok(known.to_owned()),
        other => Err(ProviderError::invalid(format!("{other:?} are no permissions of a device"))),
    }
}

/// A device, or all devices in a directory.
fn collect_devices(source: &Path, path: &str, into: &mut Vec<Device>, depth: u32) -> Result<()> {
    let metadata = fs::symlink_metadata(source)
        .and_then(
            |found| if found.is_symlink() && depth == 0 { fs::metadata(source) } else { Ok(found) },
        )
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => ProviderError::unsupported(format!(
                "this machine has no device {}; its devices are its own, not the node's",
                source.display()
            )),
            _ => ProviderError::invalid(format!("the device {} cannot be read", source.display()))
                .with_source(error),
        })?;
    let kind = metadata.file_type();
    if kind.is_dir() && depth < DEVICE_DEPTH && !SKIPPED.contains(&path) {
        for entry in fs::read_dir(source).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // Names of devices are text; one that is not was made by nobody.
            let Some(name) = name.to_str() else { continue };
            collect_devices(&entry.path(), &format!("{path}/{name}"), into, depth + 1)?;
        }
    }
    if kind.is_char_device() || kind.is_block_device() {
        into.push(Device {
            path: path.to_owned(),
            kind: if kind.is_char_device() { "c" } else { "b" },
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
            file_mode: metadata.mode() & 0o777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
    Ok(())
}

const BIND_OPTIONS: [&str; 28] = [
    "bind",
    "rbind",
    "ro",
    "rw",
    "rro",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "sync",
    "async",
    "noatime",
    "atime",
    "nodiratime",
    "diratime",
    "relatime",
    "norelatime",
    "strictatime",
];

/// Each container has its own of these.
const MADE_BY_RUNTIME: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
];
const SKIPPED: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"];
const DEVICE_DEPTH: u32 = 8;
