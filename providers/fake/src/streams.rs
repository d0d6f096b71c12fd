//! Streams: they wait for the cloud to change, and let its time go on.

use futures::stream;
use infranetes_sdk::BoxStream;
use infranetes_sdk::pod::{ConsoleChunk, ConsoleRequest, MachineEvent};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::cloud::FakeCloud;
use crate::convert;
use crate::state::Event;

/// What happens to machines, from event number `from` on.
pub(crate) fn events(cloud: FakeCloud, from: u64) -> BoxStream<MachineEvent> {
    let reader = Events { changed: cloud.subscribe(), cloud, from, ready: Vec::new().into_iter() };
    Box::pin(stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await;
        Some((Ok(convert::event(&event)), reader))
    }))
}

/// A machine's console, of which `total` bytes were printed when it was opened.
pub(crate) fn console(
    cloud: FakeCloud,
    request: ConsoleRequest,
    total: u64,
) -> BoxStream<ConsoleChunk> {
    let reader = Console {
        changed: cloud.subscribe(),
        cloud,
        from: total.saturating_sub(request.replay_bytes),
        request,
    };
    Box::pin(stream::unfold(reader, |mut reader| async move {
        let data = reader.next().await?;
        Some((Ok(ConsoleChunk { data }), reader))
    }))
}

struct Events {
    cloud: FakeCloud,
    changed: watch::Receiver<u64>,
    from: u64,
    ready: std::vec::IntoIter<Event>,
}

impl Events {
    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.next() {
                return event;
            }
            self.changed.mark_unchanged();
            let (new, next) = self.cloud.now(|state| state.events_from(self.from));
            self.from = next;
            let nothing = new.is_empty();
            self.ready = new.into_iter();
            if nothing {
                wait(&self.cloud, &mut self.changed).await;
            }
        }
    }
}

struct Console {
    cloud: FakeCloud,
    changed: watch::Receiver<u64>,
    request: ConsoleRequest,
    from: u64,
}

impl Console {
    /// The next piece, or `None` at the end: after the replay, or once the machine is gone.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            self.changed.mark_unchanged();
            let (data, total, exists) = self.cloud.now(|state| {
                let record = state.machines.get(&self.request.id)?;
                Some((record.console.after(self.from), record.console.total, record.exists()))
            })?;
            self.from = total;
            if !data.is_empty() {
                return Some(data);
            }
            if !self.request.follow || !exists {
                return None;
            }
            wait(&self.cloud, &mut self.changed).await;
        }
    }
}

/// Waits for somebody to change the cloud, or for the next thing that time does to it.
async fn wait(cloud: &FakeCloud, changed: &mut watch::Receiver<u64>) {
    let due = cloud.now(|state| state.next_change());
    let time = async {
        match due {
            Some(at) => sleep_until(at.max(Instant::now())).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // The sender lives in the cloud that `cloud` keeps alive.
        _ = changed.changed() => {}
        () = time => {}
    }
}
