//! Images: names, lists, removal, identifiers, and images as volumes.

mod identifiers;
mod manager;
mod removal;
mod volumes;

use crate::conformance::context::Context;
use crate::conformance::images::staged;
use crate::conformance::spec::Spec;

use anyhow::{Context as _, Result};
use infranetes_cri::api::v1 as cri;

pub(super) fn specs() -> Vec<Spec> {
    [manager::specs(), removal::specs(), identifiers::specs(), volumes::specs()].concat()
}

/// Pulls an image that the node does not have; its status.
async fn pulled_anew(c: &mut Context, name: &str) -> Result<cri::Image> {
    c.remove_image(name).await?;
    c.pull(name).await?;
    c.image(name).await?.with_context(|| format!("{name} is not there after its pull"))
}

/// The image that the public suite pulls most.
fn tagged() -> String {
    staged("tag:test")
}
