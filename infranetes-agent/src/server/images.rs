//! Layers on their way into the machine.

use futures::StreamExt;
use infranetes_agent_protocol::v1::{
    ImportLayersRequest, ImportLayersResponse, MissingLayersRequest, MissingLayersResponse,
};
use infranetes_sdk::container::MissingRequest;
use infranetes_sdk::{CallContext, ProviderError};
use tonic::{Status, Streaming};

use super::containers::{QUERY_TIMEOUT, context, provider};
use super::convert;
use crate::machine::Machine;

/// What the machine lacks.
pub(super) async fn missing(
    machine: &Machine,
    request: MissingLayersRequest,
) -> Result<MissingLayersResponse, Status> {
    let image = request.image.ok_or_else(|| Status::invalid_argument("image is missing"))?;
    let context = context("missing", &image.id, QUERY_TIMEOUT);
    let missing = provider(machine)
        .await?
        .missing(context, MissingRequest { image: Some(convert::image(image)) })
        .await
        .map_err(|error| convert::status(&error))?;
    Ok(MissingLayersResponse { digests: missing.digests })
}

/// Takes layers in. Answers when every one of them is in place; the provider's pace is the sender's.
pub(super) async fn import(
    machine: &Machine,
    input: Streaming<ImportLayersRequest>,
) -> Result<ImportLayersResponse, Status> {
    let chunks = input.map(|part| {
        let part = part.map_err(|status| convert::cut_off(&status))?;
        convert::import_chunk(part).map_err(ProviderError::invalid)
    });
    // The stream sets the pace and its end; a deadline for all of it would depend on the image's size.
    let context = CallContext::new("import");
    let mut progress = provider(machine)
        .await?
        .import(context, Box::pin(chunks))
        .await
        .map_err(|error| convert::status(&error))?;
    while let Some(step) = progress.next().await {
        let step = step.map_err(|error| convert::status(&error))?;
        if step.done {
            tracing::debug!(layer = %step.digest, "layer in place");
        }
    }
    Ok(ImportLayersResponse {})
}
