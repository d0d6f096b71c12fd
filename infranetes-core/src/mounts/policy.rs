//! What may be mounted, and why something is not.

use std::path::{Path, PathBuf};

use super::{FilesError, Limits, MountSource, MountSpec, Propagation};
use crate::error::FailureKind;
use crate::spec::UserNamespace;

/// What an operator says about mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPolicy {
    /// The kubelet's root directory: pods have theirs below `pods/UID` in it.
    pub kubelet_dir: PathBuf,
    /// Other paths of the node that may be copied into machines for mounts that are read-only.
    pub host_paths: Vec<PathBuf>,
    /// Other paths of the node that may be copied for mounts that containers write to: what they write is gone with the machine.
    pub scratch_host_paths: Vec<PathBuf>,
    /// Other paths of the node that machines share: what containers write is brought to the node, and what changes there is
    /// brought to them. What is here is nothing of the two lists above.
    pub shared_host_paths: Vec<PathBuf>,
    /// What one mount may have.
    pub limits: Limits,
    /// What one shared path may have, on either side.
    pub shared_limits: Limits,
    /// The most bytes of a file that flow back; of a longer one, the last.
    pub write_back_bytes: u64,
}

impl Default for MountPolicy {
    fn default() -> Self {
        Self {
            kubelet_dir: "/var/lib/kubelet".into(),
            host_paths: Vec::new(),
            scratch_host_paths: Vec::new(),
            shared_host_paths: Vec::new(),
            limits: Limits::default(),
            shared_limits: Limits::default(),
            write_back_bytes: 1 << 20,
        }
    }
}

impl MountPolicy {
    /// What a mount of a path of the node that is not a pod's may be. `path` has no links left in it.
    pub(crate) fn allow(&self, path: &Path, read_only: bool) -> Result<Allowed, MountError> {
        if let Some((_, reason)) = NEVER.iter().find(|(prefix, _)| path.starts_with(prefix)) {
            return Err(MountError::Never { path: path.to_owned(), reason });
        }
        let within = |allowed: &[PathBuf]| allowed.iter().any(|prefix| path.starts_with(prefix));
        if within(&self.shared_host_paths) {
            return Ok(Allowed::Shared);
        }
        match (within(&self.scratch_host_paths), within(&self.host_paths)) {
            (true, _) => Ok(Allowed::Copy),
            (_, true) if read_only => Ok(Allowed::Copy),
            (_, true) => Err(MountError::Writable(path.to_owned())),
            _ => Err(MountError::Denied(path.to_owned())),
        }
    }
}

/// What a mount may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// A copy.
    Copy,
    /// The node's and the machine's together.
    Shared,
}

impl MountSpec {
    /// What can be said of a mount without looking at the node.
    pub(crate) fn check(&self, users: Option<UserNamespace>) -> Result<(), MountError> {
        if self.users.is_some() && self.users != users {
            return Err(MountError::Users);
        }
        if self.recursive_read_only && !self.read_only {
            return Err(MountError::Contradiction("it is recursively read-only but not read-only"));
        }
        if self.recursive_read_only && self.propagation != Propagation::Private {
            return Err(MountError::Contradiction(
                "it is recursively read-only and its propagation is not private",
            ));
        }
        match (self.propagation, &self.source) {
            (Propagation::Bidirectional, _) => Err(MountError::Propagation("BIDIRECTIONAL")),
            (_, MountSource::Image { .. }) if !self.read_only => {
                Err(MountError::Contradiction("an image can only be mounted read-only"))
            }
            (_, MountSource::Image { .. }) => self.is_private(),
            (_, MountSource::Node(_)) => Ok(()),
        }
    }

    /// For what may have other things of the node mounted below it later on: these would not be seen.
    pub(crate) fn is_private(&self) -> Result<(), MountError> {
        match self.propagation {
            Propagation::HostToContainer => Err(MountError::Propagation("HOST_TO_CONTAINER")),
            _ => Ok(()),
        }
    }
}

/// Why something is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// What is asked for contradicts itself.
    #[error("{0}")]
    Contradiction(&'static str),
    /// Mounts do not cross the border of a machine.
    #[error(
        "its propagation is {0}, and mounts do not cross the border of a machine; PRIVATE is possible, and HOST_TO_CONTAINER for paths in `shared_host_paths`"
    )]
    Propagation(&'static str),
    /// Owners cannot be mapped in another way than the pod's users are.
    #[error(
        "its owners are mapped, and not as the pod's users are; that is the one way that is possible"
    )]
    Users,
    /// The policy does not allow it.
    #[error(
        "{0} is a path of the node, and pods in machines do not share its files; an operator can let machines have copies by `host_paths` or `scratch_host_paths`, or share them by `shared_host_paths`, in [mounts] of the configuration"
    )]
    Denied(PathBuf),
    /// The policy allows it for mounts that are read-only.
    #[error(
        "copies of {0} may only be mounted read-only; what a container writes would be lost, which an operator can allow by `scratch_host_paths`, or brought to the node by `shared_host_paths`, in [mounts] of the configuration"
    )]
    Writable(PathBuf),
    /// No policy can make sense of it.
    #[error("{path} cannot be copied into a machine: {reason}")]
    Never {
        /// What.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A volume whose content has to outlive the pod.
    #[error(
        "the volume {volume:?} is one of {plugin:?}, and what a container writes to it would not reach it; such volumes can only be mounted read-only"
    )]
    Plugin {
        /// Its kind, in the kubelet's words.
        plugin: String,
        /// Its name.
        volume: String,
    },
    /// A part of a volume that is not mounted where the kubelet mounts such parts.
    #[error("{0} is no part of a volume: nothing is mounted there")]
    NoPart(PathBuf),
    /// Only directories are shared.
    #[error(
        "{0} is a file, and only directories are shared with machines; mount the directory that it is in"
    )]
    SharedFile(PathBuf),
    /// Huge pages cannot be had.
    #[error("an emptyDir of huge pages cannot be had in a machine")]
    HugePages,
    /// The node's path cannot be used.
    #[error(transparent)]
    Files(#[from] FilesError),
}

impl MountError {
    /// What kind of failure this is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Contradiction(_) | Self::NoPart(_) => FailureKind::Invalid,
            Self::Denied(_) | Self::Writable(_) => FailureKind::Denied,
            Self::Propagation(_)
            | Self::Users
            | Self::Never { .. }
            | Self::Plugin { .. }
            | Self::SharedFile(_)
            | Self::HugePages => FailureKind::Unsupported,
            Self::Files(error) => error.kind(),
        }
    }
}

/// Not files: windows into this node's kernel.
const NEVER: [(&str, &str); 5] = [
    ("/proc", "it shows this node's processes; a machine has its own"),
    ("/sys/fs/cgroup", "it is this node's cgroups; a machine has its own"),
    ("/sys", "it shows this node's kernel; a machine has its own"),
    ("/dev/shm", "it is this node's shared memory; a pod has its own"),
    ("/dev", "it has this node's devices; a machine has its own"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::IdRange;

    #[test]
    fn what_contradicts_itself_or_cannot_be_promised_is_refused() {
        use Propagation::{Bidirectional, HostToContainer, Private};
        let node = || MountSource::Node("/x".into());
        let image =
            || MountSource::Image { image: "i".into(), sub_path: String::new(), id: String::new() };
        // source, read-only, recursively, propagation -> part of the refusal
        let cases = [
            (node(), false, false, Private, ""),
            (node(), true, false, Private, ""),
            (node(), true, true, Private, ""),
            (node(), false, true, Private, "but not read-only"),
            (node(), true, true, HostToContainer, "propagation is not private"),
            (node(), true, true, Bidirectional, "propagation is not private"),
            (node(), false, false, HostToContainer, ""),
            (image(), true, false, HostToContainer, "HOST_TO_CONTAINER"),
            (node(), false, false, Bidirectional, "BIDIRECTIONAL"),
            (image(), true, false, Private, ""),
            (image(), true, true, Private, ""),
            (image(), false, false, Private, "only be mounted read-only"),
        ];
        for (source, read_only, recursive_read_only, propagation, refusal) in cases {
            let spec = MountSpec {
                destination: "/d".into(),
                source,
                read_only,
                recursive_read_only,
                propagation,
                selinux_relabel: false,
                options: Vec::new(),
                users: None,
            };
            let said = spec.check(None).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(
                said.contains(refusal) && said.is_empty() == refusal.is_empty(),
                "{spec:?}: {said}"
            );
        }
    }

    #[test]
    fn owners_are_mapped_as_the_pods_users_or_not_at_all() {
        let users = |first| {
            let range = IdRange { first, count: 10 };
            UserNamespace { uids: range, gids: range }
        };
        let cases = [
            (None, None, true),
            (None, Some(100), true),
            (Some(100), Some(100), true),
            (Some(200), Some(100), false),
            (Some(100), None, false),
        ];
        for (mount, pod, possible) in cases {
            let spec = MountSpec {
                destination: "/d".into(),
                source: MountSource::Node("/x".into()),
                read_only: true,
                recursive_read_only: false,
                propagation: Propagation::Private,
                selinux_relabel: false,
                options: Vec::new(),
                users: mount.map(users),
            };
            assert_eq!(spec.check(pod.map(users)).is_ok(), possible, "{mount:?} in {pod:?}");
        }
    }

    #[test]
    fn paths_of_the_node_are_denied_unless_the_configuration_names_them() {
        let policy = MountPolicy {
            host_paths: vec!["/etc/ssl".into(), "/".into()],
            scratch_host_paths: vec!["/tmp".into(), "/srv/cache".into()],
            shared_host_paths: vec!["/srv".into(), "/tmp/out".into()],
            ..MountPolicy::default()
        };
        let strict = MountPolicy { host_paths: vec!["/etc/ssl".into()], ..MountPolicy::default() };
        // policy, path, read-only -> part of the refusal
        let cases = [
            (&strict, "/etc/ssl", true, ""),
            (&strict, "/etc/ssl/certs/a.pem", true, ""),
            (&strict, "/etc/ssl", false, "scratch_host_paths"),
            (&strict, "/etc/sslx", true, "host_paths"),
            (&strict, "/etc", true, "host_paths"),
            (&strict, "/tmp/x", true, "host_paths"),
            (&policy, "/tmp/x", false, ""),
            (&policy, "/tmp/x", true, ""),
            (&policy, "/home", true, ""),
            (&policy, "/home", false, "scratch_host_paths"),
            (&policy, "/proc/1/root", true, "processes"),
            (&policy, "/sys/fs/cgroup/x", true, "cgroups"),
            (&policy, "/sys/kernel", true, "kernel"),
            (&policy, "/dev/shm", true, "shared memory"),
            (&policy, "/dev/sda", true, "devices"),
            (&policy, "/device", true, ""),
            (&policy, "/srv/data", false, "shared"),
            (&policy, "/srv/data", true, "shared"),
            (&policy, "/srv/cache", false, "shared"),
            (&policy, "/tmp/out/x", true, "shared"),
            (&policy, "/tmp/outer", false, ""),
            (&strict, "/srv/data", false, "shared_host_paths"),
            (&strict, "/etc/ssl", false, "shared_host_paths"),
        ];
        for (policy, path, read_only, refusal) in cases {
            let allowed = policy.allow(Path::new(path), read_only);
            let said = match allowed {
                Ok(Allowed::Copy) => String::new(),
                Ok(Allowed::Shared) => "shared".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(
                said.contains(refusal) && said.is_empty() == refusal.is_empty(),
                "{path}: {said}"
            );
        }
    }
}
