//! Which system calls a container may make.
//!
//! `RUNTIME_DEFAULT` is a profile of our own. It allows everything but what a program in a container has no honest use for:
//! calls that only work with a capability that the container lacks, that change the machine, or that have opened kernels from
//! the inside again and again. A container that was given the capability gets the calls that belong to it:
//!
//! | capability | calls |
//! |---|---|
//! | `SYS_ADMIN` | mounts of every kind, namespaces (`unshare`, `setns`, `clone` with their flags), quotas, `fanotify_init`, swap |
//! | `SYS_MODULE` | loading and removing modules |
//! | `SYS_BOOT` | `reboot`, `kexec_*` |
//! | `SYS_TIME` | setting clocks |
//! | `SYS_RAWIO` | `iopl`, `ioperm` |
//! | `SYS_PACCT`, `SYS_TTY_CONFIG` | `acct`, `vhangup` |
//! | `DAC_READ_SEARCH` | `open_by_handle_at` |
//! | `BPF`, `PERFMON`, `SYSLOG` | `bpf`, `perf_event_open`, `syslog` |
//! | none | kernel keys, `userfaultfd`, io_uring, calls that nobody uses any more; sockets of AF_VSOCK and AF_ALG |
//!
//! `clone3` answers ENOSYS, so that programs fall back to `clone`, whose flags can be looked at. A profile that is given is an
//! OCI or Docker one; its conditions (`includes`, `excludes`) are decided here.

use infranetes_sdk::v1::{self, SeccompMode};
use infranetes_sdk::{ProviderError, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::capabilities::holds;
use super::spec::{Capabilities, Seccomp, Syscall};

/// The filter that is asked for; `None` is no filter.
pub(crate) fn seccomp(
    asked: Option<&v1::Seccomp>,
    privileged: bool,
    capabilities: &Capabilities,
) -> Result<Option<Seccomp>> {
    let Some(asked) = asked.filter(|_| !privileged) else { return Ok(None) };
    match asked.mode() {
        SeccompMode::Unspecified => Ok(None),
        SeccompMode::RuntimeDefault => Ok(Some(runtime_default(capabilities))),
        SeccompMode::Profile => translate(&asked.profile, capabilities).map(Some),
    }
}

fn runtime_default(capabilities: &Capabilities) -> Seccomp {
    let mut syscalls = Vec::new();
    for (capability, names) in GUARDED {
        if capability.is_empty() || !holds(capabilities, capability) {
            syscalls.push(refuse(names, EPERM, Vec::new()));
        }
    }
    if !holds(capabilities, "CAP_SYS_ADMIN") {
        syscalls.push(refuse(&["clone3"], ENOSYS, Vec::new()));
        for flag in NAMESPACE_FLAGS {
            let is_set =
                json!({"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"});
            syscalls.push(refuse(&["clone"], EPERM, vec![is_set]));
        }
    }
    for family in [AF_ALG, AF_VSOCK] {
        let is_family = json!({"index": 0, "value": family, "op": "SCMP_CMP_EQ"});
        syscalls.push(refuse(&["socket", "socketpair"], EPERM, vec![is_family]));
    }
    Seccomp {
        default_action: ALLOW.to_owned(),
        default_errno_ret: None,
        architectures: ARCHITECTURES.iter().map(|name| (*name).to_owned()).collect(),
        flags: Vec::new(),
        syscalls,
    }
}

fn refuse(names: &[&str], errno: u32, args: Vec<Value>) -> Syscall {
    Syscall {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: "SCMP_ACT_ERRNO".to_owned(),
        errno_ret: Some(errno),
        args,
    }
}

/// A profile as it comes; fields of both kinds, and none besides.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<Architecture>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    #[serde(default, rename = "priority")]
    _priority: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: Option<String>,
}

fn translate(profile: &[u8], capabilities: &Capabilities) -> Result<Seccomp> {
    let profile: Profile = serde_json::from_slice(profile).map_err(|error| {
        ProviderError::invalid("the seccomp profile cannot be read").with_source(error)
    })?;
    let mut architectures = profile.architectures;
    for known in profile.arch_map {
        if known.architecture == ARCHITECTURES[0] {
            architectures.push(known.architecture);
            architectures.extend(known.sub_architectures.unwrap_or_default());
        }
    }
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        if !rule.applies(capabilities)? {
            continue;
        }
        let names = rule.name.into_iter().chain(rule.names).collect();
        let args = rule.args.unwrap_or_default();
        syscalls.push(Syscall { names, action: rule.action, errno_ret: rule.errno_ret, args });
    }
    Ok(Seccomp {
        default_action: profile.default_action,
        default_errno_ret: profile.default_errno_ret,
        architectures,
        flags: profile.flags,
        syscalls,
    })
}

impl Rule {
    fn applies(&self, capabilities: &Capabilities) -> Result<bool> {
        let (included, excluded) = (&self.includes, &self.excludes);
        let is_here = |arch: &String| ARCH_NAMES.contains(&arch.as_str());
        Ok(included.caps.iter().all(|name| holds(capabilities, name))
            && !excluded.caps.iter().any(|name| holds(capabilities, name))
            && (included.arches.is_empty() || included.arches.iter().any(is_here))
            && !excluded.arches.iter().any(is_here)
            && included.min_kernel.as_deref().map_or(Ok(true), kernel_is_at_least)?
            && !excluded.min_kernel.as_deref().map_or(Ok(false), kernel_is_at_least)?)
    }
}

fn kernel_is_at_least(wanted: &str) -> Result<bool> {
    let refuse = || {
        ProviderError::invalid(format!("{wanted:?} in the seccomp profile is no kernel version"))
    };
    let names = rustix::system::uname();
    let here = version(names.release().to_str().unwrap_or_default()).unwrap_or((0, 0));
    Ok(here >= version(wanted).ok_or_else(refuse)?)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

const ALLOW: &str = "SCMP_ACT_ALLOW";
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;

/// The machine's own first.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
#[cfg(target_arch = "x86_64")]
const ARCH_NAMES: &[&str] = &["amd64", "x32", "x86"];
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
#[cfg(not(target_arch = "x86_64"))]
const ARCH_NAMES: &[&str] = &["arm64", "arm"];

/// In order: cgroup, uts, ipc, user, pid, net, mount. `clone` takes no flag for time.
const NAMESPACE_FLAGS: [u64; 7] =
    [0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x0002_0000];

/// Calls, and the capability with which a container has them; without a name: never.
const GUARDED: &[(&str, &[&str])] = &[
    (
        "CAP_SYS_ADMIN",
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "swapoff",
            "swapon",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("CAP_SYS_MODULE", &["create_module", "delete_module", "finit_module", "init_module"]),
    ("CAP_SYS_BOOT", &["kexec_file_load", "kexec_load", "reboot"]),
    ("CAP_SYS_TIME", &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("CAP_SYS_RAWIO", &["ioperm", "iopl"]),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("CAP_BPF", &["bpf"]),
    ("CAP_PERFMON", &["perf_event_open"]),
    ("CAP_SYSLOG", &["syslog"]),
    (
        "",
        &[
            "_sysctl",
            "add_key",
            "get_kernel_syms",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "keyctl",
            "nfsservctl",
            "query_module",
            "request_key",
            "sysfs",
            "uselib",
            "userfaultfd",
            "ustat",
            "vm86",
            "vm86old",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn with(names: &[&str]) -> Capabilities {
        let bounding = names.iter().map(|name| (*name).to_owned()).collect();
        Capabilities { bounding, ..Default::default() }
    }

    fn names(profile: &Seccomp) -> Vec<&str> {
        profile.syscalls.iter().flat_map(|rule| rule.names.iter().map(String::as_str)).collect()
    }

    #[test]
    fn a_capability_brings_its_system_calls() {
        let default = runtime_default(&with(&[]));
        assert!(names(&default).contains(&"mount") && names(&default).contains(&"clone3"));
        let admin = runtime_default(&with(&["CAP_SYS_ADMIN"]));
        assert!(!names(&admin).contains(&"mount") && !names(&admin).contains(&"clone3"));
        assert!(names(&admin).contains(&"bpf") && names(&admin).contains(&"keyctl"));
    }

    #[test]
    fn conditions_of_a_docker_profile_are_decided() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]}
            ],
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {"name": "mount", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
                 "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"names": ["later"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
                {"names": ["s390_only"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}}
            ]
        });
        let text = serde_json::to_vec(&profile).unwrap();
        let found = translate(&text, &with(&["CAP_CHOWN"])).unwrap();
        assert_eq!(names(&found), ["read", "write", "clone", "ptrace"]);
        assert_eq!(found.architectures.len(), 2);
        let found = translate(&text, &with(&["CAP_SYS_ADMIN"])).unwrap();
        assert_eq!(names(&found), ["read", "write", "mount", "ptrace"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "",
            "{}",
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"A","includes":{"moon":1}}]}"#,
        ] {
            translate(text.as_bytes(), &with(&[])).unwrap_err();
        }
    }
}
