//! Filters of system calls: the default, one from a file of the node, none.

use anyhow::{Context as _, Result, ensure};
use infranetes_cri::api::v1 as cri;
use infranetes_cri::api::v1::security_profile::ProfileType;

use super::security;
use crate::conformance::context::Context;
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Security Context > SeccompProfilePath")
        .spec("should support seccomp unconfined on the container", |c| {
            Box::pin(mode(c, Some(ProfileType::Unconfined), "0"))
        })
        .spec("should support seccomp localhost profile on the container", |c| {
            Box::pin(of_a_file(c))
        })
        .spec("should support seccomp default on the container", |c| {
            Box::pin(mode(c, Some(ProfileType::RuntimeDefault), "2"))
        })
        .spec("should support nil profile, which is unconfined", |c| Box::pin(mode(c, None, "0")))
        .spec(
            "runtime should not block setting host name with unconfined seccomp and SYS_ADMIN",
            |c| Box::pin(sets_hostname(c, false, false, true)),
        )
        .spec(
            "runtime should support an seccomp profile that blocks setting hostname with SYS_ADMIN",
            |c| Box::pin(sets_hostname(c, true, false, false)),
        )
        .spec(
            "runtime should ignore a seccomp profile that blocks setting hostname when privileged",
            |c| Box::pin(sets_hostname(c, true, true, true)),
        )
        .done()
}

/// What the kernel says of the filter: 0 is none, 2 is a filter.
async fn mode(c: &mut Context, kind: Option<ProfileType>, expected: &str) -> Result<()> {
    let profile =
        kind.map(|kind| cri::SecurityProfile { profile_type: kind as i32, ..Default::default() });
    let id = running(c, profile).await?;
    let line = c.exec(&id, &["grep", "Seccomp:", "/proc/self/status"]).await?;
    let seen = line.split_whitespace().nth(1).context("no Seccomp")?;
    ensure!(seen == expected, "the kernel says {line:?}");
    Ok(())
}

async fn of_a_file(c: &mut Context) -> Result<()> {
    let profile = profile(c, &["chmod", "fchmodat", "fchmodat2"])?;
    let id = running(c, Some(profile)).await?;
    let output = c.exec_fails(&id, &["chmod", "400", "/"]).await?;
    ensure!(output.stderr.contains("Operation not permitted"), "{output:?}");
    Ok(())
}

async fn sets_hostname(
    c: &mut Context,
    filtered: bool,
    privileged: bool,
    possible: bool,
) -> Result<()> {
    let profile = match filtered {
        true => profile(c, &["sethostname"])?,
        false => cri::SecurityProfile {
            profile_type: ProfileType::Unconfined as i32,
            ..Default::default()
        },
    };
    let mut config = c.sandbox_config();
    config.linux.get_or_insert_default().security_context =
        Some(cri::LinuxSandboxSecurityContext { privileged, ..Default::default() });
    let sandbox = c.sandbox_of(config).await?;
    let mut config = c.container_config(&[]);
    let context = security(&mut config);
    context.privileged = privileged;
    context.seccomp = Some(profile);
    if !privileged {
        let add_capabilities = vec!["SYS_ADMIN".to_owned()];
        context.capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
    }
    let id = c.running_of(&sandbox, config).await?;
    let output = c.try_exec(&id, &["hostname", "another-name"]).await?;
    ensure!((output.code == 0) == possible, "setting the hostname: {output:?}");
    Ok(())
}

/// Sandbox and container have the same profile.
async fn running(c: &mut Context, profile: Option<cri::SecurityProfile>) -> Result<String> {
    let mut config = c.sandbox_config();
    config.linux.get_or_insert_default().security_context =
        Some(cri::LinuxSandboxSecurityContext { seccomp: profile.clone(), ..Default::default() });
    let sandbox = c.sandbox_of(config).await?;
    let mut config = c.container_config(&[]);
    security(&mut config).seccomp = profile;
    c.running_of(&sandbox, config).await
}

/// A file of the node that refuses these calls.
fn profile(c: &mut Context, calls: &[&str]) -> Result<cri::SecurityProfile> {
    let rules = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": calls, "action": "SCMP_ACT_ERRNO" }],
    });
    let path = c.host_dir("seccomp")?.join("profile.json");
    std::fs::write(&path, rules.to_string())?;
    let localhost_ref = path.display().to_string();
    Ok(cri::SecurityProfile { profile_type: ProfileType::Localhost as i32, localhost_ref })
}
