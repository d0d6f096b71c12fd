//! A new key and certificate on the open session.

use std::sync::{Mutex, PoisonError};

use infranetes_agent_protocol::v1::{
    BeginRotationResponse, CompleteRotationRequest, CompleteRotationResponse,
};
use rustls_pki_types::ServerName;
use tonic::Status;

use crate::identity::{IdentityError, PendingKey};
use crate::lines::chain;
use crate::machine::Machine;

/// Makes a key; one that was begun before and not completed is dropped.
pub(super) fn begin(
    machine: &Machine,
    pending: &Mutex<Option<PendingKey>>,
) -> Result<BeginRotationResponse, Status> {
    let (certificate_request, key) = machine.identity.begin_rotation().map_err(refused)?;
    *pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    Ok(BeginRotationResponse { certificate_request })
}

/// Puts the certificate of the key that was begun into use.
pub(super) fn complete(
    machine: &Machine,
    pending: &Mutex<Option<PendingKey>>,
    request: CompleteRotationRequest,
) -> Result<CompleteRotationResponse, Status> {
    let key = pending
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
        .ok_or_else(|| Status::failed_precondition("no rotation was begun on this session"))?;
    let name = Some(request.agent_name).filter(|name| !name.is_empty());
    let renamed = name.is_some();
    let name = name.map(ServerName::try_from).transpose();
    let name = name.map_err(|_| Status::invalid_argument("agent_name is no name"))?;
    machine.identity.complete_rotation(&key, request.certificate_chain, name).map_err(refused)?;
    tracing::info!(renamed, "the certificate was rotated");
    Ok(CompleteRotationResponse {})
}

fn refused(error: IdentityError) -> Status {
    match error {
        IdentityError::Chain(_) | IdentityError::Certificate(_) => {
            Status::invalid_argument(chain(&error))
        }
        _ => Status::internal(chain(&error)),
    }
}
