//! Messages as bytes.

use abi_stable::std_types::{RResult, RVec};
use futures::StreamExt;
use infranetes_abi::RawReply;
use prost::Message;

use crate::error::{ProviderError, Result};
use crate::stream::BoxStream;
use crate::v1;

/// Reads a message of `method`.
pub(crate) fn decode<M: Message + Default>(method: &str, bytes: &[u8]) -> Result<M> {
    M::decode(bytes).map_err(|source| {
        ProviderError::internal(format!("a message of {method} is not readable"))
            .with_source(source)
    })
}

pub(super) fn encode_error(error: &ProviderError) -> RVec<u8> {
    v1::Status::from(error).encode_to_vec().into()
}

pub(super) fn decode_error(method: &str, bytes: &[u8]) -> ProviderError {
    decode::<v1::Status>(method, bytes).map_or_else(|error| error, ProviderError::from)
}

pub(super) fn encode_reply(reply: Result<Vec<u8>>) -> RawReply {
    match reply {
        Ok(body) => RResult::ROk(body.into()),
        Err(error) => RResult::RErr(encode_error(&error)),
    }
}

pub(super) fn decode_reply(method: &str, reply: RawReply) -> Result<Vec<u8>> {
    match reply {
        RResult::ROk(body) => Ok(body.into_vec()),
        RResult::RErr(status) => Err(decode_error(method, &status)),
    }
}

/// Items as bytes.
pub(crate) fn encode_stream<M: Message + 'static>(items: BoxStream<M>) -> BoxStream<Vec<u8>> {
    Box::pin(items.map(|item| item.map(|message| message.encode_to_vec())))
}

/// Items as messages; one that is not readable is an error and so ends the stream.
pub(crate) fn decode_stream<M: Message + Default + 'static>(
    method: &'static str,
    items: BoxStream<Vec<u8>>,
) -> BoxStream<M> {
    let messages = items.map(move |item| item.and_then(|bytes| decode(method, &bytes)));
    Box::pin(messages.scan(false, |ended, item| {
        let before = std::mem::replace(ended, *ended || item.is_err());
        std::future::ready((!before).then_some(item))
    }))
}
