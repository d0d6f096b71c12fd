//! How containers change, told to the node as it happens: first all of them, then each change.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryFutureExt};
use infranetes_agent_protocol::v1::watch_response::Event;
use infranetes_agent_protocol::v1::{Snapshot, WatchResponse};
use infranetes_sdk::BoxStream;
use infranetes_sdk::container::{
    ContainerEvent, ContainerEventsRequest, ContainerStatus, ListContainersRequest,
};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::containers::{QUERY_TIMEOUT, context, provider};
use super::{ResponseStream, convert};
use crate::machine::Machine;

/// Answers at once; a provider that is not there yet is waited for by who waits for the snapshot.
pub(super) fn watch(machine: Arc<Machine>) -> ResponseStream<WatchResponse> {
    let removals = machine.removals.subscribe();
    let begun = async move {
        let (mut watcher, containers) = begin(&machine, removals).await?;
        let first = watcher.snapshot(containers);
        let rest = futures::stream::unfold(watcher, |mut watcher| async {
            watcher.next().await.map(|item| (item, watcher))
        });
        Ok(futures::stream::once(std::future::ready(Ok(first))).chain(rest))
    };
    Box::pin(begun.try_flatten_stream())
}

/// Opens the provider's events before it lists, so that nothing falls between the two.
async fn begin(
    machine: &Arc<Machine>,
    removals: broadcast::Receiver<String>,
) -> Result<(Watcher, Vec<ContainerStatus>), Status> {
    let provider = provider(machine).await?;
    let events = provider
        .events(context("events", "all", QUERY_TIMEOUT), ContainerEventsRequest {})
        .await
        .map_err(|error| convert::status(&error))?;
    let list = provider
        .list(context("list", "all", QUERY_TIMEOUT), ListContainersRequest {})
        .await
        .map_err(|error| convert::status(&error))?;
    let containers = list.containers.into_iter().map(|status| machine.held.view(status)).collect();
    let machine = Arc::clone(machine);
    let known = Known::default();
    let watcher = Watcher { machine, events, removals, known, sequence: 0, ended: false };
    Ok((watcher, containers))
}

struct Watcher {
    machine: Arc<Machine>,
    events: BoxStream<ContainerEvent>,
    removals: broadcast::Receiver<String>,
    known: Known,
    sequence: u64,
    ended: bool,
}

impl Watcher {
    fn snapshot(&mut self, containers: Vec<ContainerStatus>) -> WatchResponse {
        for status in &containers {
            self.known.advance(status);
        }
        let containers = containers.into_iter().map(convert::container_status).collect();
        self.message(Event::Snapshot(Snapshot { containers }))
    }

    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        while !self.ended {
            let event = tokio::select! {
                event = self.events.next() => self.changed(event),
                id = self.removals.recv() => self.removed(id),
            };
            match event {
                Ok(None) => (),
                Ok(Some(event)) => return Some(Ok(self.message(event))),
                Err(status) => {
                    self.ended = true;
                    return Some(Err(status));
                }
            }
        }
        None
    }

    fn changed(
        &mut self,
        event: Option<infranetes_sdk::Result<ContainerEvent>>,
    ) -> Result<Option<Event>, Status> {
        let event = event
            .ok_or_else(|| Status::unavailable("the container provider ended its events"))?
            .map_err(|error| convert::status(&error))?;
        let status = event.status.map(|status| self.machine.held.view(status));
        let news = status.filter(|status| self.known.advance(status));
        Ok(news.map(|status| Event::Container(convert::container_status(status))))
    }

    fn removed(&mut self, id: Result<String, RecvError>) -> Result<Option<Event>, Status> {
        match id {
            Ok(id) => {
                self.known.states.remove(&id);
                Ok(Some(Event::Removed(id)))
            }
            Err(_) => Err(Status::aborted("the watch fell behind; it starts again")),
        }
    }

    fn message(&mut self, event: Event) -> WatchResponse {
        self.sequence += 1;
        WatchResponse { sequence: self.sequence, event: Some(event) }
    }
}

/// What the node was told last of each container. A container goes only forward (created, running, exited): what would
/// lead back was overtaken by the snapshot, and what changes nothing is not news.
#[derive(Default)]
struct Known {
    states: BTreeMap<String, ContainerStatus>,
}

impl Known {
    fn advance(&mut self, status: &ContainerStatus) -> bool {
        if self.states.get(&status.id).is_some_and(|old| old.state > status.state || old == status)
        {
            return false;
        }
        self.states.insert(status.id.clone(), status.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(id: &str, state: i32) -> ContainerStatus {
        ContainerStatus { id: id.into(), state, ..ContainerStatus::default() }
    }

    #[test]
    fn a_container_never_goes_back() {
        let mut known = Known::default();
        let steps =
            [("a", 1, true), ("a", 3, true), ("a", 2, false), ("a", 3, false), ("b", 1, true)];
        for (id, state, news) in steps {
            assert_eq!(known.advance(&status(id, state)), news, "{id} {state}");
        }
    }
}
