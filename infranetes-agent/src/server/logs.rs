//! Containers' output. The provider numbers and keeps it until the node says that it is durable there.

use futures::StreamExt;
use infranetes_agent_protocol::v1::{LogChunk, LogsRequest};
use infranetes_sdk::ProviderError;
use tonic::{Status, Streaming};

use super::containers::{QUERY_TIMEOUT, context, provider};
use super::{ResponseStream, convert};
use crate::machine::Machine;

/// Follows a container's output from a number on.
pub(super) async fn logs(
    machine: &Machine,
    input: Streaming<LogsRequest>,
) -> Result<ResponseStream<LogChunk>, Status> {
    let input = input.map(|part| {
        let part = part.map_err(|status| convert::cut_off(&status))?;
        convert::logs_input(part).map_err(ProviderError::invalid)
    });
    let chunks = provider(machine)
        .await?
        .logs(context("logs", "any", QUERY_TIMEOUT), Box::pin(input))
        .await
        .map_err(|error| convert::status(&error))?;
    Ok(Box::pin(
        chunks.map(|chunk| {
            chunk.map_err(|error| convert::status(&error)).and_then(convert::log_chunk)
        }),
    ))
}
