//! Looks at a provider from outside the sandboxes: machines that nobody owns, and machines that ended by themselves.
//!
//! An orphan is destroyed only when all of this holds: its tags name this cluster and node; no sandbox of the record owns
//! its name; it was seen so several times over a long time; it is younger than the record, so that a record that was lost
//! never costs a machine; the record can be written at this moment; and no other orphan was destroyed in this round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use infranetes_sdk::RetryAdvice;
use infranetes_sdk::pod::{Machine, MachineEventKind};
use tokio::time::{Instant, sleep};

use crate::engine::board::Request;
use crate::engine::boot::{Judged, judge};
use crate::engine::calls::Calls;
use crate::engine::naming::node_tags;
use crate::engine::node::Node;
use crate::engine::retry::Backoff;
use crate::record::{Change, node as node_record};

/// When and how often a machine was seen without an owner.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    first: Instant,
    times: u32,
}

/// Sweeps one provider for as long as the engine lives. `born` is when the record began.
pub(crate) async fn run(node: Arc<Node>, calls: Calls, born: SystemTime) {
    let mut seen = BTreeMap::new();
    loop {
        sleep(EVERY).await;
        match calls.list(&node_tags(&node.config)).await {
            Ok(machines) => {
                doubt(&node, &calls.name, &machines);
                if let Some(orphan) = orphan(&node, &machines, &mut seen, born)
                    && is_healthy(&node, born).await
                {
                    tracing::warn!(machine = %orphan.id, name = %orphan.name, provider = %calls.name, "a machine that no sandbox owns is destroyed");
                    if let Err(error) = calls.destroy(&orphan.id).await {
                        tracing::warn!(machine = %orphan.id, error = %error.chain(), "the orphan could not be destroyed yet");
                    }
                }
            }
            Err(error) => {
                tracing::debug!(provider = %calls.name, error = %error.chain(), "the machines could not be listed");
            }
        }
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

fn orphan(
    node: &Node,
    machines: &[Machine],
    seen: &mut BTreeMap<String, Sighting>,
    born: SystemTime,
) -> Option<Machine> {
    let owned = node.board.machine_names();
    let born_ms = born.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let unowned: Vec<&Machine> = machines
        .iter()
        .filter(|machine| !owned.contains(&machine.name))
        .filter(|machine| u128::from(machine.created_unix_ms) > born_ms)
        .collect();
    // One that was owned, or away, in between is counted anew.
    seen.retain(|id, _| unowned.iter().any(|machine| machine.id == *id));
    for machine in &unowned {
        let sighting = Sighting { first: Instant::now(), times: 0 };
        seen.entry(machine.id.clone()).or_insert(sighting).times += 1;
    }
    let ripe = |machine: &&&Machine| {
        let sighting = seen.get(&machine.id);
        sighting.is_some_and(|one| one.times >= TIMES && one.first.elapsed() >= OVER)
    };
    unowned.iter().find(ripe).map(|machine| (*machine).clone())
}

/// Whether the record takes a write now.
async fn is_healthy(node: &Node, born: SystemTime) -> bool {
    node.commit(vec![Change::Put(node_record::encode_born(born))]).await.is_ok()
}

const EVERY: Duration = Duration::from_secs(60);
const TIMES: u32 = 3;
const OVER: Duration = Duration::from_secs(600);
