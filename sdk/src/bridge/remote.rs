//! The calling side: typed calls over the other side's endpoint.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use abi_stable::std_types::{ROption, RResult};
use infranetes_abi::{EndpointBox, RawRequest, StreamBox};
use prost::Message;
use tokio::runtime::Handle;

use super::stream::{incoming, outgoing};
use super::wire::{decode, decode_error, decode_reply, decode_stream, encode_stream};
use crate::context::CallContext;
use crate::error::{ProviderError, Result};
use crate::stream::BoxStream;
use crate::v1;

/// The other side of the boundary. Cheap to clone; the instance ends with the last clone.
#[derive(Clone)]
pub struct Remote {
    endpoint: Arc<EndpointBox>,
    name: Arc<str>,
}

impl Remote {
    /// Wraps an endpoint; `name` stands in errors.
    pub fn new(endpoint: EndpointBox, name: &str) -> Self {
        Self { endpoint: Arc::new(endpoint), name: name.into() }
    }

    /// Asks for one answer.
    pub async fn call<I: Message, O: Message + Default>(
        &self,
        method: &'static str,
        context: &CallContext,
        request: &I,
    ) -> Result<O> {
        let raw = raw_request(method, context, request.encode_to_vec());
        let reply = self.endpoint.call(raw);
        let reply = self.backstop(method, context, reply).await?;
        let body = decode_reply(method, reply)?;
        if body.len() > MESSAGE_BYTES_MAX {
            let (name, bytes) = (&self.name, body.len());
            return Err(ProviderError::internal(format!(
                "{name} answers {method} with {bytes} bytes, more than the {MESSAGE_BYTES_MAX} of a message"
            )));
        }
        decode(method, &body)
    }

    /// Asks for a stream of answers.
    pub async fn stream<I: Message, O: Message + Default + 'static>(
        &self,
        method: &'static str,
        context: &CallContext,
        request: &I,
    ) -> Result<BoxStream<O>> {
        let raw = raw_request(method, context, request.encode_to_vec());
        self.open(method, context, raw, ROption::RNone).await
    }

    /// Asks for a stream of answers to a stream. Must be called on a tokio runtime, which then reads `input`.
    pub async fn duplex<I: Message + 'static, O: Message + Default + 'static>(
        &self,
        method: &'static str,
        context: &CallContext,
        input: BoxStream<I>,
    ) -> Result<BoxStream<O>> {
        let runtime = Handle::try_current().map_err(|source| {
            ProviderError::internal("a stream needs a tokio runtime").with_source(source)
        })?;
        let input = outgoing(&runtime, format!("the input of {method}"), encode_stream(input));
        let raw = raw_request(method, context, Vec::new());
        self.open(method, context, raw, ROption::RSome(input)).await
    }

    /// Tells something; no answer, no error.
    pub fn notify<I: Message>(&self, method: &str, body: &I) {
        self.endpoint.notify(method.into(), body.encode_to_vec().as_slice().into());
    }

    async fn open<O: Message + Default + 'static>(
        &self,
        method: &'static str,
        context: &CallContext,
        raw: RawRequest,
        input: ROption<StreamBox>,
    ) -> Result<BoxStream<O>> {
        let opening = self.endpoint.open(raw, input);
        match self.backstop(method, context, opening).await? {
            RResult::ROk(stream) => Ok(decode_stream(method, incoming(method, stream))),
            RResult::RErr(status) => Err(decode_error(method, &status)),
        }
    }

    /// The callee ends work at the deadline; this is for one that is stuck.
    async fn backstop<T>(
        &self,
        method: &str,
        context: &CallContext,
        work: impl Future<Output = T>,
    ) -> Result<T> {
        let Some(deadline) = context.deadline else { return Ok(work.await) };
        tokio::time::timeout_at(deadline + BACKSTOP, work).await.map_err(|_| {
            let name = &self.name;
            ProviderError::deadline_exceeded(format!("{name} does not react to {method}"))
        })
    }
}

fn raw_request(method: &str, context: &CallContext, body: Vec<u8>) -> RawRequest {
    let header = v1::CallHeader::from(context).encode_to_vec();
    RawRequest { method: method.into(), header: header.into(), body: body.into() }
}

/// What one message may have, in either direction: as much as the kubelet takes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// How long after the deadline the callee's own DeadlineExceeded may still arrive.
const BACKSTOP: Duration = Duration::from_millis(250);
