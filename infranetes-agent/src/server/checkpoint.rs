//! Containers that stand still for a checkpoint of their machine.
//!
//! ```text
//!  Free ── begin ──► Holding ── end, or a bind of the same sandbox, or ten minutes ──► Free
//!                       └── a bind of another sandbox: this is what was made of the checkpoint ──► Restored
//! ```
//!
//! A machine that is made of a checkpoint wakes up in *Holding*, with the certificate of its first sandbox, a clock that stands where it
//! stood, and random numbers that others may have, too. Clock and random numbers are renewed before it shakes a hand.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use infranetes_agent_protocol::v1::{
    BeginCheckpointRequest, BeginCheckpointResponse, EndCheckpointResponse,
};
use infranetes_sdk::container::{ContainerRef, ContainerState, ContainerStatus};
use tonic::Status;

use super::containers::{START_TIMEOUT, check_id, context, provider};
use super::convert;
use crate::machine::Machine;
use crate::renewal;

/// Which containers stand still.
#[derive(Debug, Default)]
pub struct Held(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Empty is *Free*, or *Restored* with all containers started.
    ids: BTreeSet<String>,
    holding: bool,
    /// Tells the end of one checkpoint from that of the next.
    number: u64,
}

impl Held {
    /// Whether it stands still because of this, and was not started since.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.state().ids.contains(id)
    }

    /// Whether a checkpoint is being made, or this was made of one and is not bound yet.
    pub(crate) fn is_holding(&self) -> bool {
        self.state().holding
    }

    /// It is started or ended.
    pub(super) fn release(&self, id: &str) {
        self.state().ids.remove(id);
    }

    /// A container as the node is to see it.
    pub(super) fn view(&self, mut status: ContainerStatus) -> ContainerStatus {
        if self.has(&status.id) && status.state() == ContainerState::Running {
            status.state = ContainerState::Created as i32;
            status.started_unix_ns = 0;
        }
        status
    }

    fn begin(&self, ids: &BTreeSet<String>) -> Result<u64, Status> {
        let mut state = self.state();
        if state.holding || !state.ids.is_empty() {
            return Err(Status::failed_precondition(
                "containers stand still for a checkpoint already, or were not started since the last one",
            ));
        }
        state.ids.clone_from(ids);
        state.holding = true;
        state.number += 1;
        Ok(state.number)
    }

    /// Ends a checkpoint, or any for `None`; the containers that are to go on, or `None` where there was none.
    fn end(&self, number: Option<u64>) -> Option<BTreeSet<String>> {
        let mut state = self.state();
        if !state.holding || number.is_some_and(|number| number != state.number) {
            return None;
        }
        state.holding = false;
        Some(std::mem::take(&mut state.ids))
    }

    /// This machine is another one from now on.
    fn restored(&self) {
        let mut state = self.state();
        state.holding = false;
        state.number += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets containers stand still. After a failure all run as before.
pub(super) async fn begin(
    machine: &Arc<Machine>,
    request: BeginCheckpointRequest,
) -> Result<BeginCheckpointResponse, Status> {
    let ids: BTreeSet<String> = request.container_ids.into_iter().collect();
    ids.iter().try_for_each(|id| check_id(id))?;
    if machine.owned {
        blocking(renewal::prepare).await.map_err(|error| {
            let problem = "the machine has no hardware that gives random numbers, and all that is made of a checkpoint would draw the same";
            Status::failed_precondition(format!("{problem} ({error})"))
        })?;
    }
    let number = machine.held.begin(&ids)?;
    tokio::spawn(give_up(Arc::clone(machine), number));
    let provider = provider(machine).await?;
    for id in &ids {
        let paused =
            provider.pause(context("pause", id, START_TIMEOUT), ContainerRef { id: id.clone() });
        if let Err(error) = paused.await {
            end(machine).await;
            return Err(convert::status(&error));
        }
    }
    tracing::info!(containers = ids.len(), "containers stand still for a checkpoint");
    Ok(BeginCheckpointResponse {})
}

/// Lets what stands still for a checkpoint go on.
pub(super) async fn end(machine: &Machine) -> EndCheckpointResponse {
    let ids = machine.held.end(None);
    let held = ids.is_some();
    go_on(machine, ids.unwrap_or_default()).await;
    EndCheckpointResponse { held }
}

/// What a bind means: of the same sandbox, that the node does not know of a checkpoint any more; of another one, that this
/// machine was made of one.
pub(super) async fn bind(machine: &Machine, bound: Option<&str>, sandbox: &str) -> bool {
    if !machine.held.is_holding() {
        return false;
    }
    match bound {
        Some(bound) if bound != sandbox => {
            tracing::info!(sandbox, was = bound, "made of a checkpoint");
            machine.held.restored();
            true
        }
        _ => {
            end(machine).await;
            false
        }
    }
}

async fn blocking(work: fn() -> io::Result<()>) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Nobody leaves containers standing still for ever.
async fn give_up(machine: Arc<Machine>, number: u64) {
    tokio::time::sleep(HELD_MAX).await;
    if let Some(ids) = machine.held.end(Some(number)) {
        tracing::warn!("a checkpoint did not end in time; containers go on");
        go_on(&machine, ids).await;
    }
}

/// Whatever is made of the checkpoint has the clock and the random numbers of now: here they become others before anybody draws one.
async fn go_on(machine: &Machine, ids: BTreeSet<String>) {
    if machine.owned
        && !ids.is_empty()
        && let Err(error) = blocking(renewal::renew).await
    {
        tracing::error!(%error, "the random numbers are not renewed; a machine of the checkpoint may draw the same");
    }
    let Ok(provider) = provider(machine).await else { return };
    for id in ids {
        let reference = ContainerRef { id: id.clone() };
        if let Err(error) = provider.resume(context("resume", &id, START_TIMEOUT), reference).await
        {
            tracing::warn!(container = %id, error = %convert::text(&error), "a container does not go on");
        }
    }
}

/// Longer than any checkpoint may take.
const HELD_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn shown(held: &Held, id: &str) -> ContainerState {
        let status = ContainerStatus {
            id: id.to_owned(),
            state: ContainerState::Running as i32,
            ..Default::default()
        };
        held.view(status).state()
    }

    #[test]
    fn what_stands_still_shows_as_created_until_it_goes_on() {
        let held = Held::default();
        let number = held.begin(&ids(&["a", "b"])).unwrap();
        assert!(held.begin(&ids(&["c"])).is_err(), "one at a time");
        assert_eq!(shown(&held, "a"), ContainerState::Created);
        assert_eq!(shown(&held, "c"), ContainerState::Running);
        assert_eq!(held.end(Some(number + 1)), None, "that was another");
        assert_eq!(held.end(Some(number)), Some(ids(&["a", "b"])));
        assert_eq!(held.end(None), None);
        assert_eq!(shown(&held, "a"), ContainerState::Running);
    }

    #[test]
    fn in_a_machine_that_was_restored_containers_wait_to_be_started() {
        let held = Held::default();
        let number = held.begin(&ids(&["a", "b"])).unwrap();
        held.restored();
        assert!(!held.is_holding());
        assert_eq!((held.end(Some(number)), held.end(None)), (None, None));
        held.release("a");
        assert_eq!(shown(&held, "a"), ContainerState::Running);
        assert_eq!(shown(&held, "b"), ContainerState::Created);
        assert!(held.begin(&ids(&["a"])).is_err(), "not before all were started");
        held.release("b");
        held.begin(&ids(&["a", "b"])).unwrap();
    }
}
