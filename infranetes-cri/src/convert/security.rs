//! Namespaces, users and privileges. Those of the node cannot be shared with a machine, so asking for them is refused.

use std::path::PathBuf;

use infranetes_core::spec::{IdRange, PidMode, SecuritySpec, UserNamespace};

use super::{Refusal, check};
use crate::api::v1;
use crate::api::v1::NamespaceMode;
use crate::api::v1::security_profile::ProfileType;

type Result<T> = std::result::Result<T, Refusal>;

/// Where a container's system call filter comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SeccompSource {
    /// There is none.
    #[default]
    Unconfined,
    /// The container provider's default.
    RuntimeDefault,
    /// A file on the node, which has to be read.
    File(PathBuf),
}

/// Whose processes containers of a sandbox see, and which users they have.
pub(super) fn of_sandbox(
    context: v1::LinuxSandboxSecurityContext,
) -> Result<(PidMode, Option<UserNamespace>)> {
    let field = "config.linux.security_context";
    no_selinux(field, context.selinux_options)?;
    let options = context.namespace_options.unwrap_or_default();
    let users = user_namespace(field, options.userns_options.as_ref())?;
    let mode = pid_mode(field, options)?;
    if users.is_some() && mode == PidMode::Machine {
        let problem = "a pod with users of its own cannot have the machine's processes";
        return Err(Refusal::invalid(format!("{field}.namespace_options.pid"), problem));
    }
    if matches!(mode, PidMode::Target(_)) {
        let field = format!("{field}.namespace_options.pid");
        return Err(Refusal::invalid(field, "TARGET is for containers alone"));
    }
    Ok((mode, users))
}

/// What a container may do, whose processes it sees, and where its system call filter comes from.
pub(super) fn of_container(
    context: Option<v1::LinuxContainerSecurityContext>,
) -> Result<(SecuritySpec, Option<PidMode>, SeccompSource)> {
    let field = "config.linux.security_context";
    let at = |name: &str| format!("{field}.{name}");
    let Some(context) = context else { return Ok(Default::default()) };
    no_selinux(field, context.selinux_options.clone())?;
    no_apparmor_file(field, &context)?;
    let pid =
        context.namespace_options.clone().map(|options| pid_mode(field, options)).transpose()?;
    let seccomp =
        if context.privileged { SeccompSource::Unconfined } else { seccomp(field, &context)? };
    let (add_capabilities, drop_capabilities) =
        capabilities(field, context.capabilities.unwrap_or_default())?;
    let uid = id(&at("run_as_user"), context.run_as_user)?;
    let gid = id(&at("run_as_group"), context.run_as_group)?;
    let user_name =
        check::optional_text(&at("run_as_username"), context.run_as_username, MAX_NAME)?;
    if gid.is_some() && uid.is_none() && user_name.is_empty() {
        return Err(Refusal::invalid(at("run_as_group"), "needs run_as_user or run_as_username"));
    }
    check::few(&at("supplemental_groups"), &context.supplemental_groups, MAX_GROUPS)?;
    for group in &context.supplemental_groups {
        check::number(&at("supplemental_groups"), *group, 0..=MAX_ID)?;
    }
    let policy: v1::SupplementalGroupsPolicy =
        check::variant(&at("supplemental_groups_policy"), context.supplemental_groups_policy)?;
    let security = SecuritySpec {
        uid,
        gid,
        user_name,
        supplemental_groups: context.supplemental_groups,
        strict_supplemental_groups: policy == v1::SupplementalGroupsPolicy::Strict,
        privileged: context.privileged,
        add_capabilities,
        drop_capabilities,
        read_only_root: context.readonly_rootfs,
        no_new_privileges: context.no_new_privs,
        masked_paths: paths(&at("masked_paths"), context.masked_paths)?,
        read_only_paths: paths(&at("readonly_paths"), context.readonly_paths)?,
        ..SecuritySpec::default()
    };
    Ok((security, pid, seccomp))
}

fn pid_mode(field: &str, options: v1::NamespaceOption) -> Result<PidMode> {
    let at = |name: &str| format!("{field}.namespace_options.{name}");
    own_namespace(&at("network"), options.network, "the network")?;
    own_namespace(&at("ipc"), options.ipc, "the IPC objects")?;
    match check::variant(&at("pid"), options.pid)? {
        NamespaceMode::Pod => Ok(PidMode::Pod),
        NamespaceMode::Container => Ok(PidMode::Container),
        NamespaceMode::Node => Ok(PidMode::Machine),
        NamespaceMode::Target => {
            check::text(&at("target_id"), options.target_id, MAX_NAME).map(PidMode::Target)
        }
    }
}

/// One mapping, from 0 on, for users and for groups: what the kubelet makes of `hostUsers: false`.
fn user_namespace(
    field: &str,
    options: Option<&v1::UserNamespace>,
) -> Result<Option<UserNamespace>> {
    let Some(options) = options else { return Ok(None) };
    let at = |name: &str| format!("{field}.namespace_options.userns_options.{name}");
    match check::variant(&at("mode"), options.mode)? {
        NamespaceMode::Node => Ok(None),
        NamespaceMode::Pod => {
            let uids = id_range(&at("uids"), &options.uids)?;
            Ok(Some(UserNamespace { uids, gids: id_range(&at("gids"), &options.gids)? }))
        }
        other => {
            let problem =
                format!("{} is not possible: users belong to the pod", other.as_str_name());
            Err(Refusal::unsupported(at("mode"), problem))
        }
    }
}

/// One mapping, from 0 on.
pub(super) fn id_range(field: &str, mappings: &[v1::IdMapping]) -> Result<IdRange> {
    let [mapping] = mappings else {
        return Err(Refusal::invalid(
            field,
            format!("has {} mappings; one is possible", mappings.len()),
        ));
    };
    let v1::IdMapping { container_id, host_id: first, length: count } = *mapping;
    if container_id != 0 {
        return Err(Refusal::invalid(field, format!("begins at {container_id}, not at 0")));
    }
    if count == 0 || first.checked_add(count).is_none() {
        return Err(Refusal::invalid(
            field,
            format!("{count} numbers from {first} on do not exist"),
        ));
    }
    Ok(IdRange { first, count })
}

fn own_namespace(field: &str, mode: i32, what: &str) -> Result<()> {
    match check::variant(field, mode)? {
        NamespaceMode::Pod => Ok(()),
        NamespaceMode::Node => {
            let problem = format!(
                "a pod in a machine cannot share {what} of the node; run it under another RuntimeClass"
            );
            Err(Refusal::unsupported(field, problem))
        }
        other => {
            let problem =
                format!("{} is not possible here; {what} belong to the pod", other.as_str_name());
            Err(Refusal::unsupported(field, problem))
        }
    }
}

fn no_selinux(field: &str, options: Option<v1::SeLinuxOption>) -> Result<()> {
    match options {
        Some(options) if options != v1::SeLinuxOption::default() => {
            let problem = "machines run without SELinux; leave seLinuxOptions out";
            Err(Refusal::unsupported(format!("{field}.selinux_options"), problem))
        }
        _ => Ok(()),
    }
}

/// The default profile of AppArmor is whatever the machine has; one of the node cannot be brought into it.
fn no_apparmor_file(field: &str, context: &v1::LinuxContainerSecurityContext) -> Result<()> {
    let problem = "an AppArmor profile of the node cannot be brought into a machine";
    if let Some(profile) = &context.apparmor {
        let at = format!("{field}.apparmor");
        let kind: ProfileType =
            check::variant(&format!("{at}.profile_type"), profile.profile_type)?;
        return match kind {
            ProfileType::Localhost => Err(Refusal::unsupported(at, problem)),
            ProfileType::RuntimeDefault | ProfileType::Unconfined => Ok(()),
        };
    }
    #[expect(deprecated, reason = "kubelets of older releases send it")]
    match context.apparmor_profile.as_str() {
        "" | "runtime/default" | "unconfined" => Ok(()),
        _ => Err(Refusal::unsupported(format!("{field}.apparmor_profile"), problem)),
    }
}

fn seccomp(field: &str, context: &v1::LinuxContainerSecurityContext) -> Result<SeccompSource> {
    if let Some(profile) = &context.seccomp {
        let at = |name: &str| format!("{field}.seccomp.{name}");
        return match check::variant(&at("profile_type"), profile.profile_type)? {
            ProfileType::RuntimeDefault => Ok(SeccompSource::RuntimeDefault),
            ProfileType::Unconfined => Ok(SeccompSource::Unconfined),
            ProfileType::Localhost => seccomp_file(&at("localhost_ref"), &profile.localhost_ref),
        };
    }
    let at = format!("{field}.seccomp_profile_path");
    #[expect(deprecated, reason = "kubelets of older releases send it")]
    match context.seccomp_profile_path.as_str() {
        "" | "unconfined" => Ok(SeccompSource::Unconfined),
        "runtime/default" | "docker/default" => Ok(SeccompSource::RuntimeDefault),
        path => match path.strip_prefix("localhost/") {
            Some(path) => seccomp_file(&at, path),
            None => Err(Refusal::invalid(
                at,
                "is neither \"runtime/default\", \"unconfined\" nor \"localhost/PATH\"",
            )),
        },
    }
}

fn seccomp_file(field: &str, path: &str) -> Result<SeccompSource> {
    check::absolute_path(field, path.to_owned()).map(SeccompSource::File)
}

fn capabilities(field: &str, capabilities: v1::Capability) -> Result<(Vec<String>, Vec<String>)> {
    let at = |name: &str| format!("{field}.capabilities.{name}");
    if !capabilities.add_ambient_capabilities.is_empty() {
        let problem = "ambient capabilities cannot be given yet; let the program run as root, or give its file capabilities";
        return Err(Refusal::unsupported(at("add_ambient_capabilities"), problem));
    }
    let names = |field: &str, names: Vec<String>| {
        check::few(field, &names, MAX_CAPABILITIES)?;
        let known = |name: &String| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        match names.iter().find(|name| !known(name)) {
            Some(name) => {
                let shown: String = name.chars().take(64).collect();
                Err(Refusal::invalid(field, format!("{shown:?} is no capability")))
            }
            None => Ok(names.iter().map(|name| name.to_ascii_uppercase()).collect()),
        }
    };
    Ok((
        names(&at("add_capabilities"), capabilities.add_capabilities)?,
        names(&at("drop_capabilities"), capabilities.drop_capabilities)?,
    ))
}

fn id(field: &str, value: Option<v1::Int64Value>) -> Result<Option<i64>> {
    value.map(|id| check::number(field, id.value, 0..=MAX_ID)).transpose()
}

fn paths(field: &str, values: Vec<String>) -> Result<Vec<String>> {
    check::few(field, &values, MAX_PATHS)?;
    let checked = values.into_iter().map(|path| {
        check::absolute_path(field, path.clone())?;
        Ok(path)
    });
    checked.collect()
}

/// The last user id of Linux; the one after it means "none".
const MAX_ID: i64 = u32::MAX as i64 - 1;
const MAX_NAME: usize = 256;
const MAX_GROUPS: usize = 65_536;
const MAX_CAPABILITIES: usize = 256;
const MAX_PATHS: usize = 1024;
