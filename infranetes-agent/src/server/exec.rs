//! A command in a running container: bytes both ways, and how it ended.

use futures::StreamExt;
use infranetes_agent_protocol::v1::exec_request::Input;
use infranetes_agent_protocol::v1::exec_response::Output;
use infranetes_agent_protocol::v1::{ExecRequest, ExecResponse};
use infranetes_sdk::ProviderError;
use tonic::{Status, Streaming};

use super::containers::{QUERY_TIMEOUT, context, provider};
use super::{ResponseStream, convert, credit};
use crate::machine::Machine;

/// Runs a command. Dropping the answer kills it.
pub(super) async fn exec(
    machine: &Machine,
    input: Streaming<ExecRequest>,
) -> Result<ResponseStream<ExecResponse>, Status> {
    let (input, taken) = credit::counted(input, |part| match part {
        Ok(ExecRequest { input: Some(Input::Stdin(data)) }) => data.len(),
        _ => 0,
    });
    let input = input.map(|part| {
        let part = part.map_err(|status| convert::cut_off(&status))?;
        convert::exec_input(part).map_err(ProviderError::invalid)
    });
    let output = provider(machine)
        .await?
        .exec(context("exec", "any", QUERY_TIMEOUT), Box::pin(input))
        .await
        .map_err(|error| convert::status(&error))?;
    let output = output
        .map(|part| part.map_err(|error| convert::status(&error)).and_then(convert::exec_output));
    Ok(credit::with_taken(output, taken, |taken| ExecResponse {
        output: Some(Output::Taken(taken)),
    }))
}
