//! Containers from their creation to their removal.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use infranetes_agent_protocol::v1::{
    CreateContainerRequest, CreateContainerResponse, RemoveContainerRequest,
    RemoveContainerResponse, StartContainerRequest, StartContainerResponse, StopContainerRequest,
    StopContainerResponse, UpdateContainerRequest, UpdateContainerResponse,
};
use infranetes_sdk::container::{
    ContainerRef, ContainerState, CreateContainerRequest as SdkCreateContainerRequest,
    ListContainersRequest, Mount, StopContainerRequest as SdkStopContainerRequest,
};
use infranetes_sdk::{CallContext, ContainerProvider, ErrorKind, ProviderError};
use tonic::Status;

use super::{convert, volumes};
use crate::machine::Machine;

/// Creates a container, with the machine's files below /etc in it.
pub(super) async fn create(
    machine: &Machine,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Status> {
    check_id(&request.id)?;
    let id = request.id.clone();
    let mut request = convert::create(request)?;
    add_etc(machine, &mut request)?;
    let provider = provider(machine).await?;
    machine.volumes.mount(&id, &mut request.mounts).map_err(|error| volumes::status(&error))?;
    let created = provider.create(context("create", &id, CREATE_TIMEOUT), request).await;
    created.map_err(|error| match error.kind {
        // There is another of this id, and what is mounted is its.
        ErrorKind::Conflict => Status::already_exists(convert::text(&error)),
        _ => {
            machine.volumes.release(&id);
            convert::status(&error)
        }
    })?;
    tracing::info!(container = %id, "container created");
    Ok(CreateContainerResponse {})
}

/// Starts a container that was never started; one that runs is success.
pub(super) async fn start(
    machine: &Machine,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Status> {
    let id = request.id;
    check_id(&id)?;
    let reference = || ContainerRef { id: id.clone() };
    if machine.held.has(&id) {
        return go_on(machine, id).await;
    }
    let status = provider(machine)
        .await?
        .status(context("status", &id, QUERY_TIMEOUT), reference())
        .await
        .map_err(|error| convert::status(&error))?;
    match status.state() {
        ContainerState::Running => return Ok(StartContainerResponse {}),
        ContainerState::Exited => {
            return Err(Status::failed_precondition(format!(
                "container {id} exited; a container runs once"
            )));
        }
        ContainerState::Created | ContainerState::Unspecified => (),
    }
    provider(machine)
        .await?
        .start(context("start", &id, START_TIMEOUT), reference())
        .await
        .map_err(|error| convert::status(&error))?;
    machine.starts.send_modify(|starts| *starts += 1);
    tracing::info!(container = %id, "container started");
    Ok(StartContainerResponse {})
}

/// Starts a container that came in a checkpoint, which is to go on from there.
async fn go_on(machine: &Machine, id: String) -> Result<StartContainerResponse, Status> {
    let resume = context("resume", &id, START_TIMEOUT);
    // Before its event goes out, so that it is not shown as one that still waits.
    machine.held.release(&id);
    let resumed = provider(machine).await?.resume(resume, ContainerRef { id: id.clone() }).await;
    resumed.map_err(|error| convert::status(&error))?;
    machine.starts.send_modify(|starts| *starts += 1);
    tracing::info!(container = %id, "container goes on");
    Ok(StartContainerResponse {})
}

/// Stops a container; gone is success.
pub(super) async fn stop(
    machine: &Machine,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Status> {
    check_id(&request.id)?;
    let grace = convert::grace(request.grace_ms);
    gone_is_success(stop_one(machine, request.id, request.signal, grace).await)?;
    Ok(StopContainerResponse {})
}

/// Gives a container new limits.
pub(super) async fn update(
    machine: &Machine,
    request: UpdateContainerRequest,
) -> Result<UpdateContainerResponse, Status> {
    check_id(&request.id)?;
    let id = request.id.clone();
    let context = context("update", &id, UPDATE_TIMEOUT);
    let updated = provider(machine).await?.update(context, convert::update(request)).await;
    updated.map_err(|error| convert::status(&error))?;
    tracing::info!(container = %id, "container has new limits");
    Ok(UpdateContainerResponse {})
}

/// Removes a container; gone is success.
pub(super) async fn remove(
    machine: &Machine,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Status> {
    let id = request.id;
    check_id(&id)?;
    let context = context("remove", &id, REMOVE_TIMEOUT);
    let removed = provider(machine).await?.remove(context, ContainerRef { id: id.clone() }).await;
    gone_is_success(removed.map(drop))?;
    machine.held.release(&id);
    machine.volumes.release(&id);
    tracing::info!(container = %id, "container removed");
    // Without a watcher there is nobody to tell.
    let _ = machine.removals.send(id);
    Ok(RemoveContainerResponse {})
}

/// Stops and removes everything, past errors: the machine ends.
pub(crate) async fn stop_all(machine: &Machine, grace: Duration) {
    let listed = async {
        let context = context("list", "all", QUERY_TIMEOUT);
        let provider = machine.containers.provider().await?;
        let list = provider.list(context, ListContainersRequest {}).await?;
        Ok::<_, ProviderError>((provider, list.containers))
    };
    let (provider, list) = match listed.await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(error = %convert::text(&error), "containers could not be listed");
            return;
        }
    };
    let provider = &provider;
    let ends = list.into_iter().map(|status| async move {
        let id = status.id;
        if let Err(error) = stop_one(machine, id.clone(), String::new(), grace).await {
            tracing::warn!(container = %id, error = %convert::text(&error), "container not stopped");
        }
        let context = context("remove", &id, REMOVE_TIMEOUT);
        if let Err(error) = provider.remove(context, ContainerRef { id: id.clone() }).await {
            tracing::warn!(container = %id, error = %convert::text(&error), "container not removed");
        }
    });
    join_all(ends).await;
}

async fn stop_one(
    machine: &Machine,
    id: String,
    signal: String,
    grace: Duration,
) -> Result<(), ProviderError> {
    let context = context("stop", &id, grace + KILL_TIMEOUT);
    let mut grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    if machine.held.has(&id) {
        // What stands still would not hear of it.
        grace_ms = 0;
    }
    let provider = machine.containers.provider().await?;
    let request = SdkStopContainerRequest { id: id.clone(), signal, grace_ms };
    provider.stop(context, request).await?;
    machine.held.release(&id);
    Ok(())
}

/// What runs the containers; the first call may wait for it.
pub(super) async fn provider(machine: &Machine) -> Result<Arc<dyn ContainerProvider>, Status> {
    machine.containers.provider().await.map_err(|error| convert::status(&error))
}

fn gone_is_success(result: Result<(), ProviderError>) -> Result<(), Status> {
    match result {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| convert::status(&error)),
    }
}

/// The pod's resolv.conf, hosts and hostname, unless the node brings its own.
fn add_etc(machine: &Machine, request: &mut SdkCreateContainerRequest) -> Result<(), Status> {
    let users = request.namespaces.as_ref().and_then(|namespaces| namespaces.users);
    let mounts = &mut request.mounts;
    for (source, destination) in machine.etc.mounts() {
        if mounts.iter().any(|mount| mount.destination == destination) {
            continue;
        }
        if let Some(users) = users {
            // All containers of a pod have the same.
            std::os::unix::fs::chown(&source, Some(users.first_uid), Some(users.first_gid))
                .map_err(|error| Status::internal(format!("cannot give away a file: {error}")))?;
        }
        mounts.push(Mount {
            source: source.display().to_string(),
            destination: destination.to_owned(),
            r#type: "bind".to_owned(),
            options: vec!["bind".to_owned(), "rw".to_owned()],
            ..Mount::default()
        });
    }
    Ok(())
}

/// Ids become names of files and cgroups.
pub(super) fn check_id(id: &str) -> Result<(), Status> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(plain) {
        Ok(())
    } else {
        Err(Status::invalid_argument("a container id has 1 to 64 of a-z, 0-9 and -"))
    }
}

pub(super) fn context(verb: &str, id: &str, timeout: Duration) -> CallContext {
    CallContext::new(format!("{verb}-{id}")).with_timeout(timeout)
}

const ID_BYTES_MAX: usize = 64;
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
const CREATE_TIMEOUT: Duration = Duration::from_secs(90);
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);
const UPDATE_TIMEOUT: Duration = Duration::from_secs(25);
const REMOVE_TIMEOUT: Duration = Duration::from_secs(60);
/// From the kill to the exit, on a slow machine.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
