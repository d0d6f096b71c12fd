//! What a caller wants: sandboxes and containers as the engine understands them.
//!
//! These are neither wire types nor records. The edge (CRI, an embedder) parses into them once; what is in them is valid.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::mounts::MountSpec;
use crate::network::PortMapping;

/// A pod sandbox that is wanted. What is left at its default was not asked for; a pod without a uid is refused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxSpec {
    /// Which pod it is for. (uid, attempt) is the key: a second wish with the same key joins the first.
    pub pod: PodIdentity,
    /// Name of a handler in the engine's configuration; empty is the default handler.
    pub handler: String,
    /// Host name in the machine; empty leaves the machine's own.
    pub hostname: String,
    /// DNS client settings for the machine.
    pub dns: Dns,
    /// Given back unchanged by status and list; never sent anywhere.
    pub labels: BTreeMap<String, String>,
    /// Given back unchanged; those on the handler's allow-list reach the provider's plan.
    pub annotations: BTreeMap<String, String>,
    /// Directory on the node for the logs of its containers; empty means that no logs are written.
    pub log_directory: PathBuf,
    /// What the pod's containers ask for together. Sizes the machine, with `overhead`.
    pub resources: SandboxResources,
    /// What the machine itself needs on top.
    pub overhead: SandboxResources,
    /// Kernel parameters of the machine.
    pub sysctls: BTreeMap<String, String>,
    /// How its containers share the machine's pid namespace, unless a container says otherwise.
    pub pid_mode: PidMode,
    /// Ports of the node that lead to the pod; only with the node's pod network.
    pub ports: Vec<PortMapping>,
    /// Its users are others in the machine; `None` means the machine's own.
    pub users: Option<UserNamespace>,
}

/// Numbers of users and groups of a pod that are others in its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserNamespace {
    /// Users.
    pub uids: IdRange,
    /// Groups.
    pub gids: IdRange,
}

/// Number N of the pod is `first` + N in the machine, for N below `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// What 0 is.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl UserNamespace {
    /// Whose something is in the machine that is this user's and this group's in the pod. What the pod has no number for is
    /// nobody's.
    pub fn in_machine(&self, uid: u32, gid: u32) -> (u32, u32) {
        (self.uids.in_machine(uid), self.gids.in_machine(gid))
    }

    /// The other way: whose something is on the node that is this user's and this group's in the machine. What is none of the
    /// pod's is nobody's.
    pub fn on_node(&self, uid: u32, gid: u32) -> (u32, u32) {
        (self.uids.on_node(uid), self.gids.on_node(gid))
    }
}

impl IdRange {
    fn in_machine(self, number: u32) -> u32 {
        let within = (number < self.count).then(|| self.first.checked_add(number));
        within.flatten().unwrap_or(NOBODY)
    }

    fn on_node(self, number: u32) -> u32 {
        number.checked_sub(self.first).filter(|number| *number < self.count).unwrap_or(NOBODY)
    }
}

/// The highest number there is: no range of a pod gets there.
const NOBODY: u32 = u32::MAX - 1;

/// Who a sandbox is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodIdentity {
    /// Name of the pod.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid, unique for ever.
    pub uid: String,
    /// Counts the sandboxes that this pod had.
    pub attempt: u32,
}

impl SandboxSpec {
    /// A sandbox for a pod, by the default handler.
    pub fn new(pod: PodIdentity) -> Self {
        Self { pod, ..Self::default() }
    }
}

impl PodIdentity {
    /// The first sandbox of a pod.
    pub fn new(namespace: &str, name: &str, uid: &str) -> Self {
        let [namespace, name, uid] = [namespace, name, uid].map(str::to_owned);
        Self { name, namespace, uid, attempt: 0 }
    }
}

impl ContainerSpec {
    /// The first container of this name, as its image has it.
    pub fn new(name: &str, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            user_specified_image: image.to_owned(),
            ..Self::default()
        }
    }
}

/// DNS client settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options ("ndots:5").
    pub options: Vec<String>,
}

/// An amount of CPU and memory; 0 means that nothing was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SandboxResources {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// Whose processes a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PidMode {
    /// Its own.
    #[default]
    Container,
    /// Those of the pod.
    Pod,
    /// Those of the machine.
    Machine,
    /// Those of another container of the pod, by id.
    Target(String),
}

/// A container that is wanted. What is left at its default is as the image says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerSpec {
    /// Its name within the pod.
    pub name: String,
    /// Counts the containers of this name that the pod had. (name, attempt) is unique within a sandbox.
    pub attempt: u32,
    /// The image, as the caller named it: a tag, a digest, or the id that a pull gave.
    pub image: String,
    /// The caller's own words for the image, given back by status.
    pub user_specified_image: String,
    /// Replaces the image's entrypoint; empty keeps it.
    pub command: Vec<String>,
    /// Replaces the image's arguments; empty keeps them unless `command` is set.
    pub args: Vec<String>,
    /// Working directory; empty means the image's.
    pub working_dir: String,
    /// Set over the image's environment.
    pub env: Vec<EnvVar>,
    /// Given back unchanged by status and list.
    pub labels: BTreeMap<String, String>,
    /// Given back unchanged by status and list.
    pub annotations: BTreeMap<String, String>,
    /// File for its log below the sandbox's log directory; empty means that no log is written.
    pub log_path: PathBuf,
    /// Runs on a terminal.
    pub tty: bool,
    /// Has a standard input that clients attach to.
    pub stdin: bool,
    /// The standard input closes when the first client leaves.
    pub stdin_once: bool,
    /// Signal that stops it ("SIGTERM"); empty means the image's, else SIGTERM.
    pub stop_signal: String,
    /// Limits.
    pub resources: ContainerResources,
    /// Who it runs as and what it may do.
    pub security: SecuritySpec,
    /// Whose processes it sees; `None` follows the sandbox.
    pub pid_mode: Option<PidMode>,
    /// File systems that come from the machine itself.
    pub mounts: Vec<MachineMount>,
    /// Files and directories of the node, and images.
    pub volumes: Vec<MountSpec>,
    /// Devices of the machine. One that it does not have is refused.
    pub devices: Vec<DeviceSpec>,
}

/// A device of a machine, for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Absolute path in the machine; of a directory, all devices in it.
    pub source: String,
    /// Absolute path in the container.
    pub destination: String,
    /// What of "rwm" the container may do: read, write, make nodes of it.
    pub permissions: String,
}

/// An environment variable; its value never shows in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value: often a secret.
    pub value: Vec<u8>,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=[{} bytes]", self.name, self.value.len())
    }
}

/// A mount that needs nothing from the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineMount {
    /// Path in the machine, for `bind`; else empty.
    pub source: String,
    /// Absolute path in the container.
    pub destination: String,
    /// "tmpfs" or "bind".
    pub kind: String,
    /// Mount options.
    pub options: Vec<String>,
}

/// Limits of a container; 0 and empty mean "none".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerResources {
    /// Relative weight of CPU time (cgroup v1 scale, 2 to 262144).
    pub cpu_shares: u64,
    /// Microseconds of CPU time per period; negative means no limit.
    pub cpu_quota_us: i64,
    /// Length of the period in microseconds.
    pub cpu_period_us: u64,
    /// CPUs it may run on ("0-2,4").
    pub cpuset_cpus: String,
    /// Memory nodes it may use.
    pub cpuset_mems: String,
    /// Bytes of memory.
    pub memory_limit_bytes: i64,
    /// Bytes of memory and swap together.
    pub memory_swap_limit_bytes: i64,
    /// Adjustment of its out-of-memory score.
    pub oom_score_adj: i64,
    /// Number of processes.
    pub pids_limit: i64,
    /// cgroup v2 files by name.
    pub unified: BTreeMap<String, String>,
    /// Bytes of huge pages by page size.
    pub hugepage_limits: BTreeMap<String, u64>,
}

impl ContainerResources {
    /// These limits with others over them; what the others do not say stays. Less than nothing takes a memory limit away.
    pub fn changed_by(&self, new: &ContainerResources) -> ContainerResources {
        fn or<T: Default + PartialEq + Clone>(new: &T, old: &T) -> T {
            if *new == T::default() { old.clone() } else { new.clone() }
        }
        let memory = |new: i64, old: i64| or(&new, &old).max(0);
        let mut changed = ContainerResources {
            cpu_shares: or(&new.cpu_shares, &self.cpu_shares),
            cpu_quota_us: or(&new.cpu_quota_us, &self.cpu_quota_us),
            cpu_period_us: or(&new.cpu_period_us, &self.cpu_period_us),
            cpuset_cpus: or(&new.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: or(&new.cpuset_mems, &self.cpuset_mems),
            memory_limit_bytes: memory(new.memory_limit_bytes, self.memory_limit_bytes),
            memory_swap_limit_bytes: memory(
                new.memory_swap_limit_bytes,
                self.memory_swap_limit_bytes,
            ),
            oom_score_adj: or(&new.oom_score_adj, &self.oom_score_adj),
            pids_limit: or(&new.pids_limit, &self.pids_limit),
            unified: self.unified.clone(),
            hugepage_limits: self.hugepage_limits.clone(),
        };
        changed.unified.extend(new.unified.clone());
        changed.hugepage_limits.extend(new.hugepage_limits.clone());
        changed
    }
}

/// Who a container runs as and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecuritySpec {
    /// User id; beats `user_name` and the image's user.
    pub uid: Option<i64>,
    /// Group id; only together with a user.
    pub gid: Option<i64>,
    /// User name, looked up in the image.
    pub user_name: String,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
    /// Leave out the groups that the image gives the user.
    pub strict_supplemental_groups: bool,
    /// Everything the machine may.
    pub privileged: bool,
    /// Capabilities beyond the default set.
    pub add_capabilities: Vec<String>,
    /// Capabilities out of the default set.
    pub drop_capabilities: Vec<String>,
    /// The root file system is read-only.
    pub read_only_root: bool,
    /// No gain of privileges by exec.
    pub no_new_privileges: bool,
    /// Paths that are hidden.
    pub masked_paths: Vec<String>,
    /// Paths that are read-only.
    pub read_only_paths: Vec<String>,
    /// System call filter.
    pub seccomp: Seccomp,
}

/// A system call filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// None.
    #[default]
    Unconfined,
    /// The container provider's default.
    RuntimeDefault,
    /// A profile, as JSON.
    Profile(Vec<u8>),
}
