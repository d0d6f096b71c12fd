//! Programs that become root.

use anyhow::Result;
use infranetes_cri::api::v1 as cri;

use super::security;
use crate::conformance::context::{Context, image_spec};
use crate::conformance::images::NO_NEW_PRIVILEGES;
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Security Context > NoNewPrivs")
        .spec("should not allow privilege escalation when true", |c| {
            Box::pin(escalates(c, true, "Effective uid: 1000"))
        })
        .spec("should allow privilege escalation when false", |c| {
            Box::pin(escalates(c, false, "Effective uid: 0"))
        })
        .done()
}

async fn escalates(c: &mut Context, no_new_privs: bool, expected: &str) -> Result<()> {
    let sandbox = c.sandbox_with_logs().await?;
    let mut config = c.container_config(&[]);
    config.image = Some(image_spec(NO_NEW_PRIVILEGES));
    config.command.clear();
    config.log_path = "user.log".to_owned();
    security(&mut config).no_new_privs = no_new_privs;
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
    c.ended_of(&sandbox, config).await?;
    c.logs(&sandbox, "user.log", "stdout", expected).await
}
