//! A command in a running container: bytes both ways, and how it ended.

use futures::StreamExt;
use infranetes_agent_protocol::v1::{ExecRequest, ExecResponse};
use infranetes_sdk::ProviderError;
use tonic::{Status, Streaming};

use super::containers::{QUERY_TIMEOUT, context, provider};
use super::{ResponseStream, convert};
use crate::machine::Machine;

/// Runs a command. Dropping the answer kills it.
pub(super) async fn exec(
    machine: &Machine,
    input: Streaming<ExecRequest>,
) -> Result<ResponseStream<ExecResponse>, Status> {
    let input = input.map(|part| {
        let part = part.map_err(|status| convert::cut_off(&status))?;
        convert::exec_input(part).map_err(ProviderError::invalid)
    });
    let output = provider(machine)
        .await?
        .exec(context("exec", "any", QUERY_TIMEOUT), Box::pin(input))
        .await
        .map_err(|error| convert::status(&error))?;
    Ok(Box::pin(
        output.map(|part| {
            part.map_err(|error| convert::status(&error)).and_then(convert::exec_output)
        }),
    ))
}
