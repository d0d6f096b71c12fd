//! What `create` refuses before it does anything.

use infranetes_sdk::pod::{AddressMode, CreateRequest};

use crate::error::ProcessError;

/// Refuses a request that breaks the contract, or that could not be honoured in full.
pub(crate) fn check_create(request: &CreateRequest) -> Result<(), ProcessError> {
    if request.token.is_empty() {
        return invalid("the request has no token");
    }
    if !is_name(&request.name) {
        return invalid(format!("{:?} is no name: [a-z0-9-]{{1,63}}", request.name));
    }
    if request.user_data.len() as u64 > USER_DATA_LIMIT {
        return invalid(format!(
            "user-data has {} bytes, and at most {USER_DATA_LIMIT} are taken",
            request.user_data.len()
        ));
    }
    if !request.image.is_empty() {
        return invalid(format!(
            "there is no machine image {:?}: this provider runs its own agent",
            request.image
        ));
    }
    if let Some(disk) = request.disks.first() {
        return unsupported(format!("volume {:?}: this provider attaches none", disk.volume_id));
    }
    if !request.checkpoint.is_empty() {
        return unsupported("a checkpoint: processes of the node have none".to_owned());
    }
    for (key, value) in &request.tags {
        if !is_tag(key, 1) || !is_tag(value, 0) {
            return invalid(format!("{key:?} = {value:?} is no tag of [a-z0-9_-]"));
        }
    }
    check_network(request)
}

fn check_network(request: &CreateRequest) -> Result<(), ProcessError> {
    let Some(network) = &request.network else { return Ok(()) };
    let (mode, path) = (network.address_mode(), &network.namespace_path);
    match mode {
        AddressMode::Unspecified | AddressMode::Local if path.is_empty() => {}
        AddressMode::Cni if path.starts_with('/') => {}
        AddressMode::Cni => return invalid(format!("{path:?} is no path of a network namespace")),
        AddressMode::Unspecified | AddressMode::Local => {
            return invalid("a network namespace goes with the address mode CNI alone");
        }
        AddressMode::Private | AddressMode::Public => {
            return unsupported(format!("address mode {mode:?}"));
        }
    }
    match network.options.keys().min() {
        Some(key) => invalid(format!("the network option {key:?} means nothing here")),
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

fn invalid<T>(message: impl Into<String>) -> Result<T, ProcessError> {
    Err(ProcessError::Invalid(message.into()))
}

fn unsupported<T>(what: String) -> Result<T, ProcessError> {
    Err(ProcessError::Unsupported(format!("not done here: {what}")))
}

/// The smallest limit of a large cloud, which is also the most that an agent reads.
pub(crate) const USER_DATA_LIMIT: u64 = 16 * 1024;
