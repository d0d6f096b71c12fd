//! From the request for a container to the configuration that an OCI runtime reads.
//!
//! The only place that knows both vocabularies. What cannot be said in the second one is refused, never left out.

pub(crate) mod capabilities;
mod mounts;
mod seccomp;
pub(crate) mod spec;
mod user;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::Path;

use infranetes_sdk::v1::{self, CreateContainerRequest, PidNamespace};
use infranetes_sdk::{ProviderError, Result};
use rustix::process::Signal;

use crate::cgroup::Limitable;
use spec::{
    Cpu, HugepageLimit, IdMapping, Linux, Memory, Namespace, Pids, Process, Resources, Rlimit,
    Root, Spec,
};

/// What a configuration needs to know of its machine.
pub(crate) struct Surroundings<'a> {
    pub(crate) rootfs: &'a Path,
    pub(crate) root: &'a OwnedFd,
    pub(crate) cgroups_path: String,
    pub(crate) cgroup_v2: bool,
    pub(crate) limitable: Limitable,
    pub(crate) pod_shm: &'a Path,
    /// The process whose pid namespace the container joins, for those that join one.
    pub(crate) pid_namespace_of: Option<u32>,
    /// For a pod whose users are others in the machine.
    pub(crate) users: Option<Users>,
}

/// Users of a pod that are others in the machine.
#[derive(Debug, Clone)]
pub(crate) struct Users {
    pub(crate) map: v1::UserNamespace,
    /// The process whose user namespace containers join.
    pub(crate) held_by: u32,
}

/// The configuration of a container.
pub(crate) fn spec(request: &CreateContainerRequest, around: &Surroundings<'_>) -> Result<Spec> {
    let security = request.security.clone().unwrap_or_default();
    let machine = capabilities::of_this_machine();
    let capabilities = capabilities::capabilities(&security, machine)?;
    let mut mounts = mounts::mounts(request, around.pod_shm)?;
    if around.users.is_some() {
        mounts::without_the_machines(&mut mounts);
    }
    let (devices, rules) = mounts::devices(request, security.privileged)?;
    let asked = request.resources.clone().unwrap_or_default();
    let mut resources = resources(&asked, &around.limitable)?;
    resources.devices = rules;
    Ok(Spec {
        oci_version: "1.0.2",
        process: process(request, around, capabilities.clone(), machine)?,
        root: Root { path: root_path(around), readonly: security.read_only_root },
        hostname: own_hostname(request).unwrap_or_default().to_owned(),
        annotations: annotations(request)?,
        linux: Linux {
            namespaces: namespaces(request, around)?,
            uid_mappings: mapping(around, |map| (map.first_uid, map.uid_count)),
            gid_mappings: mapping(around, |map| (map.first_gid, map.gid_count)),
            cgroups_path: around.cgroups_path.clone(),
            resources,
            devices,
            masked_paths: security.masked_paths.clone(),
            readonly_paths: security.read_only_paths.clone(),
            sysctl: sysctls(request)?,
            rootfs_propagation: mounts::propagation(&mounts),
            seccomp: seccomp::seccomp(
                security.seccomp.as_ref(),
                security.privileged,
                &capabilities,
            )?,
        },
        mounts,
    })
}

/// Users of a pod cannot look into the directories above its bundle: then it is named from there.
fn root_path(around: &Surroundings<'_>) -> String {
    let name = around.users.as_ref().and(around.rootfs.file_name());
    name.map_or_else(
        || around.rootfs.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn mapping(
    around: &Surroundings<'_>,
    range: impl FnOnce(&v1::UserNamespace) -> (u32, u32),
) -> Vec<IdMapping> {
    let range = around.users.as_ref().map(|users| range(&users.map));
    range.map(|(host_id, size)| IdMapping { container_id: 0, host_id, size }).into_iter().collect()
}

/// Limits in the runtime's words; 0 and empty say nothing.
pub(crate) fn resources(asked: &v1::Resources, limitable: &Limitable) -> Result<Resources> {
    let some = |value: u64| (value != 0).then_some(value);
    let some_signed = |value: i64| (value != 0).then_some(value);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    let cpu = Cpu {
        shares: some(asked.cpu_shares),
        quota: some_signed(asked.cpu_quota_us),
        period: some(asked.cpu_period_us),
        cpus: text(&asked.cpuset_cpus),
        mems: text(&asked.cpuset_mems),
    };
    // A machine that does not count swap has none to give: then there is nothing to limit.
    let swap = some_signed(asked.memory_swap_limit_bytes).filter(|_| limitable.swap);
    let memory = Memory { limit: some_signed(asked.memory_limit_bytes), swap };
    if memory.limit.is_none() && swap.is_some_and(|swap| swap > 0) {
        return Err(ProviderError::invalid("swap is limited and memory is not"));
    }
    Ok(Resources {
        devices: Vec::new(),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        memory: (memory != Memory::default()).then_some(memory),
        pids: some_signed(asked.pids_limit).map(|limit| Pids { limit }),
        hugepage_limits: hugepages(&asked.hugepage_limits, &limitable.page_sizes)?,
        unified: asked.unified.clone().into_iter().collect(),
    })
}

/// A kubelet sends a limit of 0 for every size that its node has. A machine that has none of a size gives none in any case.
fn hugepages(asked: &HashMap<String, u64>, sizes: &BTreeSet<String>) -> Result<Vec<HugepageLimit>> {
    let (known, unknown): (Vec<_>, Vec<_>) =
        asked.iter().partition(|(size, _)| sizes.contains(*size));
    if let Some((size, _)) = unknown.into_iter().find(|(_, limit)| **limit != 0) {
        return Err(ProviderError::unsupported(format!(
            "huge pages of {size}: this machine has none of that size, or cannot limit them"
        )));
    }
    let limit =
        |(size, limit): (&String, &u64)| HugepageLimit { page_size: size.clone(), limit: *limit };
    Ok(known.into_iter().map(limit).collect())
}

/// The number of a signal, given by its name or number; empty means SIGTERM.
pub(crate) fn signal(text: &str) -> Result<i32> {
    let refuse = || ProviderError::invalid(format!("{text:?} is no signal"));
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = if name.is_empty() {
        Some(Signal::TERM.as_raw())
    } else if let Ok(number) = name.parse() {
        Some(number)
    } else if let Some(offset) = name.strip_prefix("RTMIN+") {
        offset.parse::<i32>().ok().and_then(|offset| RT_MIN.checked_add(offset))
    } else if let Some(offset) = name.strip_prefix("RTMAX-") {
        offset.parse::<i32>().ok().and_then(|offset| RT_MAX.checked_sub(offset))
    } else {
        SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, signal)| signal.as_raw())
    };
    let is_signal = |number: &i32| {
        Signal::from_named_raw(*number).is_some() || (RT_MIN..=RT_MAX).contains(number)
    };
    number.filter(is_signal).ok_or_else(refuse)
}

fn process(
    request: &CreateContainerRequest,
    around: &Surroundings<'_>,
    capabilities: spec::Capabilities,
    machine: u64,
) -> Result<Process> {
    let asked = request.process.as_ref().filter(|process| !process.args.is_empty());
    let asked =
        asked.ok_or_else(|| ProviderError::invalid("the container has no program to run"))?;
    let security = request.security.clone().unwrap_or_default();
    let cwd = if asked.cwd.is_empty() { "/" } else { &asked.cwd };
    if !cwd.starts_with('/') || cwd.contains('\0') {
        return Err(ProviderError::invalid(format!(
            "the working directory {cwd:?} is not absolute"
        )));
    }
    if asked.args.iter().any(|arg| arg.contains('\0')) {
        return Err(ProviderError::invalid("an argument holds a zero byte"));
    }
    let score = request.resources.as_ref().map_or(0, |resources| resources.oom_score_adj);
    Ok(Process {
        terminal: asked.tty,
        user: user::user(&security, around.root)?,
        args: asked.args.clone(),
        env: environment(asked, &request.hostname)?,
        cwd: cwd.to_owned(),
        capabilities,
        rlimits: asked.rlimits.iter().map(rlimit).collect::<Result<_>>()?,
        no_new_privileges: security.no_new_privileges,
        oom_score_adj: oom_score(score, machine)?,
    })
}

fn environment(process: &v1::Process, hostname: &str) -> Result<Vec<String>> {
    let mut env = Vec::with_capacity(process.env.len() + 2);
    let has = |name: &str| process.env.iter().any(|known| known.name == name);
    if !has("PATH") {
        env.push(DEFAULT_PATH.to_owned());
    }
    if !has("HOSTNAME") && !hostname.is_empty() {
        env.push(format!("HOSTNAME={hostname}"));
    }
    if process.tty && !has("TERM") {
        env.push("TERM=xterm".to_owned());
    }
    for variable in &process.env {
        let name = &variable.name;
        // The value stays out of the message: it may be a secret.
        let value = str::from_utf8(&variable.value)
            .map_err(|_| ProviderError::invalid(format!("the value of ${name} is not UTF-8")))?;
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(ProviderError::invalid(format!(
                "${name:?} cannot be an environment variable"
            )));
        }
        env.push(format!("{name}={value}"));
    }
    Ok(env)
}

fn rlimit(asked: &v1::Rlimit) -> Result<Rlimit> {
    let name = asked.name.to_ascii_uppercase();
    let name = if name.starts_with("RLIMIT_") { name } else { format!("RLIMIT_{name}") };
    if !RLIMITS.contains(&name.as_str()) {
        return Err(ProviderError::invalid(format!("{:?} is no resource limit", asked.name)));
    }
    if asked.soft > asked.hard {
        return Err(ProviderError::invalid(format!(
            "the soft limit of {name} is above the hard one"
        )));
    }
    Ok(Rlimit { name, soft: asked.soft, hard: asked.hard })
}

/// Lowering the score below our own takes a capability that a service on a node may lack; then ours is as low as it goes.
pub(crate) fn oom_score(asked: i64, machine: u64) -> Result<Option<i32>> {
    let score = i32::try_from(asked)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| ProviderError::invalid(format!("{asked} is no oom_score_adj")))?;
    if score == 0 {
        return Ok(None);
    }
    let ours = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let ours: i32 = ours.trim().parse().unwrap_or(0);
    if score < ours && !capabilities::has(machine, "CAP_SYS_RESOURCE") {
        tracing::warn!(asked = score, given = ours, "oom_score_adj cannot be lowered here");
        return Ok(Some(ours));
    }
    Ok(Some(score))
}

fn namespaces(
    request: &CreateContainerRequest,
    around: &Surroundings<'_>,
) -> Result<Vec<Namespace>> {
    let asked = request.namespaces.clone().unwrap_or_default();
    let own = |kind| Namespace { kind, path: None };
    let mut namespaces = vec![own("mount")];
    if let Some(users) = &around.users {
        let path = Some(format!("/proc/{}/ns/user", users.held_by));
        namespaces.push(Namespace { kind: "user", path });
    }
    match asked.pid() {
        PidNamespace::Unspecified => namespaces.push(own("pid")),
        PidNamespace::Machine => {}
        PidNamespace::Pod | PidNamespace::Target => {
            let pid = around.pid_namespace_of.ok_or_else(|| {
                ProviderError::internal("the pid namespace that the container joins is not known")
            })?;
            let path = Some(format!("/proc/{pid}/ns/pid"));
            namespaces.push(Namespace { kind: "pid", path });
        }
    }
    if asked.private_network {
        namespaces.push(own("network"));
    }
    if asked.private_ipc {
        namespaces.push(own("ipc"));
    }
    if own_hostname(request).is_some() {
        namespaces.push(own("uts"));
    }
    if around.cgroup_v2 {
        namespaces.push(own("cgroup"));
    }
    Ok(namespaces)
}

/// The hostname, where it is not the machine's: only then the container gets a namespace for it.
fn own_hostname(request: &CreateContainerRequest) -> Option<&str> {
    let names = rustix::system::uname();
    let machine = names.nodename().to_str().unwrap_or_default();
    Some(request.hostname.as_str()).filter(|name| !name.is_empty() && *name != machine)
}

fn sysctls(request: &CreateContainerRequest) -> Result<BTreeMap<String, String>> {
    let asked = request.namespaces.clone().unwrap_or_default();
    for name in request.sysctls.keys() {
        let name = name.replace('/', ".");
        let is_own = match name.split('.').next() {
            Some("net") => asked.private_network,
            Some("fs") => asked.private_ipc && name.starts_with("fs.mqueue."),
            Some("kernel") => asked.private_ipc && IPC_SYSCTLS.contains(&name.as_str()),
            _ => false,
        };
        if !is_own {
            return Err(ProviderError::unsupported(format!(
                "the sysctl {name:?} belongs to the machine, not to one container; set it for the pod"
            )));
        }
    }
    Ok(request.sysctls.clone().into_iter().collect())
}

fn annotations(request: &CreateContainerRequest) -> Result<BTreeMap<String, String>> {
    // Runtimes take orders by annotation: hooks, handlers, ways around what is asked for here.
    let orders = |name: &&String| name.starts_with("run.oci.") || name.starts_with("org.systemd.");
    if let Some(name) = request.annotations.keys().find(orders) {
        return Err(ProviderError::unsupported(format!(
            "the annotation {name:?} is not passed on"
        )));
    }
    Ok(request.annotations.clone().into_iter().collect())
}

/// The C library keeps the kernel's first two for itself.
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

const SIGNALS: [(&str, Signal); 31] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ILL", Signal::ILL),
    ("TRAP", Signal::TRAP),
    ("ABRT", Signal::ABORT),
    ("BUS", Signal::BUS),
    ("FPE", Signal::FPE),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("SEGV", Signal::SEGV),
    ("USR2", Signal::USR2),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("STKFLT", Signal::STKFLT),
    ("CHLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("URG", Signal::URG),
    ("XCPU", Signal::XCPU),
    ("XFSZ", Signal::XFSZ),
    ("VTALRM", Signal::VTALARM),
    ("PROF", Signal::PROF),
    ("WINCH", Signal::WINCH),
    ("IO", Signal::IO),
    ("PWR", Signal::POWER),
    ("SYS", Signal::SYS),
];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const RLIMITS: [&str; 16] = [
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
];

const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_come_by_name_and_number() {
        for (text, number) in [
            ("", 15),
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("37", 37),
        ] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for text in ["0", "-1", "65", "SIGNOPE", "RTMIN+99", "RTMIN+2147483647", "32"] {
            signal(text).unwrap_err();
        }
    }

    #[test]
    fn a_value_of_the_environment_never_shows_in_an_error() {
        let process = v1::Process {
            env: vec![v1::EnvVar { name: "TOKEN".into(), value: b"s3cret\xff".to_vec() }],
            ..Default::default()
        };
        let error = environment(&process, "").unwrap_err();
        assert!(!format!("{error:?}").contains("s3cret"));
    }

    #[test]
    fn a_sysctl_of_the_machine_is_refused() {
        let mut request = CreateContainerRequest {
            sysctls: [("net.core.somaxconn".to_owned(), "1024".to_owned())].into(),
            ..Default::default()
        };
        sysctls(&request).unwrap_err();
        request.namespaces = Some(v1::Namespaces { private_network: true, ..Default::default() });
        sysctls(&request).unwrap();
    }

    #[test]
    fn zero_is_no_limit() {
        let all = Limitable { swap: true, ..Default::default() };
        assert_eq!(resources(&v1::Resources::default(), &all).unwrap(), Resources::default());
        let asked = v1::Resources {
            memory_limit_bytes: 5,
            memory_swap_limit_bytes: 5,
            cpu_shares: 2,
            ..Default::default()
        };
        let found = resources(&asked, &Limitable::default()).unwrap();
        assert_eq!(found.memory, Some(Memory { limit: Some(5), swap: None }));
        assert_eq!(found.cpu.unwrap().shares, Some(2));
    }

    #[test]
    fn huge_pages_that_a_machine_does_not_have_are_not_limited_to_none() {
        let sizes = |sizes: &[&str]| sizes.iter().map(|size| (*size).to_owned()).collect();
        let check = |asked: &[(&str, u64)], has: &[&str], expected: Option<&[(&str, u64)]>| {
            let asked = asked.iter().map(|(size, limit)| ((*size).to_owned(), *limit)).collect();
            let found = hugepages(&asked, &sizes(has)).ok().map(|mut found| {
                found.sort_by(|left, right| left.page_size.cmp(&right.page_size));
                found
            });
            let expected = expected.map(|all| {
                let limit = |(size, limit): &(&str, u64)| HugepageLimit {
                    page_size: (*size).to_owned(),
                    limit: *limit,
                };
                all.iter().map(limit).collect::<Vec<_>>()
            });
            assert_eq!(found, expected, "{asked:?} of {has:?}");
        };
        check(&[], &["2MB"], Some(&[]));
        check(&[("1GB", 0), ("2MB", 0)], &[], Some(&[]));
        check(&[("1GB", 0), ("2MB", 0)], &["2MB"], Some(&[("2MB", 0)]));
        check(&[("1GB", 0), ("2MB", 7)], &["1GB", "2MB"], Some(&[("1GB", 0), ("2MB", 7)]));
        check(&[("2MB", 7)], &[], None);
        check(&[("1GB", 0), ("2MB", 7)], &["1GB"], None);
    }
}
