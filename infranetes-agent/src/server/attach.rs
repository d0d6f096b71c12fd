//! A running container's own streams, for a client that comes and goes.

use futures::StreamExt;
use infranetes_agent_protocol::v1::attach_request::Input;
use infranetes_agent_protocol::v1::attach_response::Output;
use infranetes_agent_protocol::v1::{AttachRequest, AttachResponse};
use infranetes_sdk::ProviderError;
use tonic::{Status, Streaming};

use super::containers::{QUERY_TIMEOUT, context, provider};
use super::{ResponseStream, convert, credit};
use crate::machine::Machine;

/// Attaches. Dropping the answer leaves the container as it is, but for a standard input that was to be there once.
pub(super) async fn attach(
    machine: &Machine,
    input: Streaming<AttachRequest>,
) -> Result<ResponseStream<AttachResponse>, Status> {
    let (input, taken) = credit::counted(input, |part| match part {
        Ok(AttachRequest { input: Some(Input::Stdin(data)) }) => data.len(),
        _ => 0,
    });
    let input = input.map(|part| {
        let part = part.map_err(|status| convert::cut_off(&status))?;
        convert::attach_input(part).map_err(ProviderError::invalid)
    });
    let output = provider(machine)
        .await?
        .attach(context("attach", "any", QUERY_TIMEOUT), Box::pin(input))
        .await
        .map_err(|error| convert::status(&error))?;
    let output = output
        .map(|part| part.map_err(|error| convert::status(&error)).and_then(convert::attach_output));
    Ok(credit::with_taken(output, taken, |taken| AttachResponse {
        output: Some(Output::Taken(taken)),
    }))
}
