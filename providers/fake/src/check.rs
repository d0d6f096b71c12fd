//! What `create` refuses before it does anything.

use infranetes_sdk::pod::{AddressMode, CreateRequest};

use crate::error::CloudError;
use crate::script::Script;

/// Refuses a request that breaks the contract, or that this cloud could not honour in full.
pub(crate) fn check_create(script: &Script, request: &CreateRequest) -> Result<(), CloudError> {
    if request.token.is_empty() {
        return invalid("the request has no token");
    }
    if !is_name(&request.name) {
        return invalid(format!("{:?} is no name: [a-z0-9-]{{1,63}}", request.name));
    }
    let limit = script.user_data_limit_bytes;
    if request.user_data.len() as u64 > limit {
        return invalid(format!(
            "user-data has {} bytes, and at most {limit} are taken",
            request.user_data.len()
        ));
    }
    if !request.image.is_empty() && !script.images.contains(&request.image) {
        return invalid(format!("there is no machine image {:?}", request.image));
    }
    if !request.checkpoint.is_empty() {
        return Err(CloudError::Unsupported("checkpoints"));
    }
    for (key, value) in &request.tags {
        if !is_tag(key, 1) || !is_tag(value, 0) {
            return invalid(format!("{key:?} = {value:?} is no tag of [a-z0-9_-]"));
        }
    }
    check_network(request)
}

fn check_network(request: &CreateRequest) -> Result<(), CloudError> {
    let Some(network) = &request.network else { return Ok(()) };
    if !matches!(network.address_mode(), AddressMode::Unspecified | AddressMode::Private) {
        return Err(CloudError::Unsupported("this address mode"));
    }
    if !network.namespace_path.is_empty() {
        return Err(CloudError::Unsupported("network namespaces of the node"));
    }
    match network.options.keys().min() {
        Some(key) => invalid(format!("the network option {key:?} means nothing to this cloud")),
        None => Ok(()),
    }
}

fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn is_tag(text: &str, least: usize) -> bool {
    (least..=63).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

fn invalid<T>(message: impl Into<String>) -> Result<T, CloudError> {
    Err(CloudError::Invalid(message.into()))
}
