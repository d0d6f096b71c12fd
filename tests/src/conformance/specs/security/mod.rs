//! What containers may do, and whom they see.

mod capabilities;
mod escalation;
mod namespaces;
mod paths;
mod seccomp;
mod user_namespaces;
mod users;

use infranetes_cri::api::v1 as cri;

use crate::conformance::spec::Spec;

pub(super) fn specs() -> Vec<Spec> {
    [
        namespaces::specs(),
        users::specs(),
        capabilities::specs(),
        paths::specs(),
        seccomp::specs(),
        escalation::specs(),
        user_namespaces::specs(),
    ]
    .concat()
}

/// The group of what has no group of its own.
const BUCKET: &str = "Security Context > bucket";

/// The security context of a container that is being described.
fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}
