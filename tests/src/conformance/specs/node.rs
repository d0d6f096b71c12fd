//! What the runtime says of itself.

use anyhow::{Result, ensure};
use infranetes_cri::api::v1 as cri;

use crate::conformance::context::Context;
use crate::conformance::spec::{Group, Spec};

pub(super) fn specs() -> Vec<Spec> {
    Group::new("Runtime info > runtime should support returning runtime info")
        .spec("runtime should return version info [Conformance]", |c| Box::pin(version(c)))
        .spec("runtime should return runtime conditions [Conformance]", |c| Box::pin(conditions(c)))
        .done()
}

/// Clients refuse an answer with an empty field.
async fn version(c: &mut Context) -> Result<()> {
    let request = cri::VersionRequest { version: "0.1.0".to_owned() };
    let answer = c.client.runtime.version(request).await?.into_inner();
    let fields = [
        &answer.version,
        &answer.runtime_name,
        &answer.runtime_version,
        &answer.runtime_api_version,
    ];
    ensure!(fields.iter().all(|field| !field.is_empty()), "an empty field: {answer:?}");
    Ok(())
}

async fn conditions(c: &mut Context) -> Result<()> {
    let answer = c.client.runtime.status(cri::StatusRequest::default()).await?.into_inner();
    let conditions = answer.status.unwrap_or_default().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let holds = conditions.iter().any(|condition| condition.r#type == name && condition.status);
        ensure!(holds, "{name} does not hold in {conditions:?}");
    }
    Ok(())
}
