//! Looks at a provider from outside the sandboxes: machines that nobody owns, what was left behind of machines, and machines that
//! ended by themselves.
//!
//! An orphan is destroyed only when all of this holds: its tags name this cluster and node; no sandbox of the record owns
//! its name; it was seen so several times over a long time; it is younger than the record, so that a record that was lost
//! never costs a machine; the record can be written at this moment; and no other orphan was destroyed in this round. What is no
//! machine (a disk, an address) is an orphan on the same terms, where its tags name no sandbox of the record: those take care of
//! what is theirs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use infranetes_sdk::RetryAdvice;
use infranetes_sdk::pod::{Leftover, Machine, MachineEventKind};
use tokio::time::{Instant, sleep};

use crate::engine::board::Request;
use crate::engine::boot::{Judged, judge};
use crate::engine::calls::Calls;
use crate::engine::naming::{TAG_SANDBOX, node_tags};
use crate::engine::node::Node;
use crate::engine::retry::Backoff;
use crate::record::{Change, node as node_record};

/// Sweeps one provider for as long as the engine lives. `born` is when the record began.
pub(crate) async fn run(node: Arc<Node>, calls: Calls, born: SystemTime) {
    let (mut machines, mut leftovers) = (Sightings::default(), Sightings::default());
    loop {
        sleep(EVERY).await;
        let orphan = machine(&node, &calls, &mut machines, born).await;
        // Looked for in each round, so that each look counts; a machine goes before what it may have left.
        let left = leftover(&node, &calls, &mut leftovers, born).await;
        let Some(orphan) = orphan.or(left) else { continue };
        if !is_healthy(&node, born).await {
            continue;
        }
        tracing::warn!(orphan = %orphan.id, kind = orphan.kind, name = %orphan.name, provider = %calls.name, "what no sandbox owns is destroyed");
        if let Err(error) = calls.destroy(&orphan.id).await {
            tracing::warn!(orphan = %orphan.id, error = %error.chain(), "the orphan could not be destroyed yet");
        }
    }
}

/// Something that is to be destroyed.
struct Orphan {
    id: String,
    kind: String,
    name: String,
}

/// A machine that nobody owns, and that was seen so long enough.
async fn machine(
    node: &Node,
    calls: &Calls,
    seen: &mut Sightings,
    born: SystemTime,
) -> Option<Orphan> {
    let machines = match calls.list(&node_tags(&node.config)).await {
        Ok(machines) => machines,
        Err(error) => {
            tracing::debug!(provider = %calls.name, error = %error.chain(), "the machines could not be listed");
            return None;
        }
    };
    doubt(node, &calls.name, &machines);
    let owned = node.board.machine_names();
    let unowned: Vec<&Machine> = machines
        .iter()
        .filter(|machine| !owned.contains(&machine.name))
        .filter(|machine| is_younger(machine.created_unix_ms, born))
        .collect();
    let id = seen.ripe(unowned.iter().map(|machine| machine.id.as_str()))?;
    let machine = unowned.iter().find(|machine| machine.id == id)?;
    Some(Orphan { id, kind: "machine".to_owned(), name: machine.name.clone() })
}

/// Something that is no machine, of no sandbox that we know.
async fn leftover(
    node: &Node,
    calls: &Calls,
    seen: &mut Sightings,
    born: SystemTime,
) -> Option<Orphan> {
    let leftovers = match calls.leftovers(&node_tags(&node.config)).await {
        Ok(leftovers) => leftovers,
        Err(error) => {
            tracing::debug!(provider = %calls.name, error = %error.chain(), "what was left behind could not be listed");
            return None;
        }
    };
    // What names no sandbox was not made for one.
    let is_ours = |left: &&Leftover| {
        left.tags.get(TAG_SANDBOX).is_some_and(|tag| !node.board.has_tag(tag))
            && is_younger(left.created_unix_ms, born)
    };
    let unowned: Vec<&Leftover> = leftovers.iter().filter(is_ours).collect();
    let id = seen.ripe(unowned.iter().map(|left| left.id.as_str()))?;
    let left = unowned.iter().find(|left| left.id == id)?;
    Some(Orphan { id, kind: left.kind.clone(), name: String::new() })
}

/// Younger than the record, so that a record that was lost does not cost what it owned. What does not say is not.
fn is_younger(created_unix_ms: u64, born: SystemTime) -> bool {
    let born_ms = born.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    u128::from(created_unix_ms) > born_ms
}

/// What was seen without an owner, since when, and how often.
#[derive(Default)]
struct Sightings(BTreeMap<String, (Instant, u32)>);

impl Sightings {
    /// Counts what is seen now, and names one that was seen often and for long enough. One that was owned, or away, in between
    /// is counted anew.
    fn ripe<'a>(&mut self, ids: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
        self.0.retain(|id, _| ids.clone().any(|seen| seen == id));
        for id in ids {
            self.0.entry(id.to_owned()).or_insert((Instant::now(), 0)).1 += 1;
        }
        let ripe = |(first, times): &(Instant, u32)| *times >= TIMES && first.elapsed() >= OVER;
        self.0.iter().find(|(_, sighting)| ripe(sighting)).map(|(id, _)| id.clone())
    }
}

/// Listens to what a provider tells by itself, where it does; looking is what counts, this only makes it sooner.
pub(crate) async fn listen(node: Arc<Node>, calls: Calls) {
    let mut backoff = Backoff::new(Duration::from_secs(5), 0);
    loop {
        match calls.events().await {
            Ok(mut events) => {
                while let Some(Ok(event)) = events.next().await {
                    if event.kind() == MachineEventKind::Gone {
                        let of = |id: &str| id == event.machine_id;
                        node.board.doubt(&calls.name, of, || Request::Doubt);
                    }
                }
            }
            Err(error) if !error.is_retryable() => return,
            Err(_) => {}
        }
        sleep(backoff.pause(RetryAdvice::ByKind)).await;
    }
}

/// Lets the owners of machines that are missing, or ended, look for themselves.
fn doubt(node: &Node, provider: &str, machines: &[Machine]) {
    let well = |id: &str| {
        let found = machines.iter().find(|machine| machine.id == id);
        found.is_some_and(|machine| !matches!(judge(machine), Judged::Ended(_)))
    };
    node.board.doubt(provider, |id| !well(id), || Request::Doubt);
}

/// Whether the record takes a write now.
async fn is_healthy(node: &Node, born: SystemTime) -> bool {
    node.commit(vec![Change::Put(node_record::encode_born(born))]).await.is_ok()
}

const EVERY: Duration = Duration::from_secs(60);
const TIMES: u32 = 3;
const OVER: Duration = Duration::from_secs(600);
