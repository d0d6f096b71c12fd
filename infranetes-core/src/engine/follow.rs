//! Notices when the node's files change that containers have copies of.
//!
//! One task looks at all of them once a second, which takes a few system calls for each, and asks the task of a sandbox to bring
//! again what changed. That is a poll on purpose: it has no bound of watches as inotify has, loses no event, and needs
//! nothing to be set up again after a restart or when the kubelet mounts something anew. It looks less often when there is so much
//! to look at that it would cost more than a fiftieth of a core.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::engine::board::Request;
use crate::engine::mounts::Kept;
use crate::engine::node::Node;
use crate::ids::SandboxId;
use crate::mounts::NodePath;

/// What is followed, over all sandboxes.
#[derive(Default)]
pub(crate) struct Follower {
    followed: Mutex<BTreeMap<(SandboxId, String), Followed>>,
    more: Notify,
}

struct Followed {
    path: NodePath,
    /// What the machine has, or is about to be brought; `None` is not known.
    revision: Option<String>,
    not_before: Instant,
}

impl Follower {
    /// Follows exactly these of a sandbox.
    pub(crate) fn set(&self, sandbox: &SandboxId, kept: &[&Kept]) {
        let mut followed = self.lock();
        followed.retain(|(of, id), _| of != sandbox || kept.iter().any(|one| one.id == *id));
        for one in kept {
            let key = (sandbox.clone(), one.id.clone());
            followed.entry(key).or_insert_with(|| Followed {
                path: one.path.clone(),
                revision: None,
                not_before: Instant::now(),
            });
        }
        if !followed.is_empty() {
            self.more.notify_one();
        }
    }

    /// A machine has this now; without a revision it could not be brought, and is tried again after a while.
    pub(crate) fn brought(&self, sandbox: &SandboxId, id: &str, revision: Option<String>) {
        if let Some(one) = self.lock().get_mut(&(sandbox.clone(), id.to_owned())) {
            let pause = if revision.is_some() { Duration::ZERO } else { AGAIN };
            one.not_before = Instant::now() + pause;
            one.revision = revision;
        }
    }

    /// Looks for ever.
    pub(crate) async fn run(node: Arc<Node>) {
        let mut pause = LOOK_EVERY;
        loop {
            if node.follower.lock().is_empty() {
                node.follower.more.notified().await;
            }
            sleep(pause).await;
            let began = Instant::now();
            node.follower.look(&node).await;
            pause = (began.elapsed() * 50).clamp(LOOK_EVERY, LOOK_EVERY_MOST);
        }
    }

    async fn look(&self, node: &Node) {
        let now = Instant::now();
        let due: Vec<_> = {
            let followed = self.lock();
            let due = followed.iter().filter(|(_, one)| one.not_before <= now);
            due.map(|(key, one)| (key.clone(), one.path.clone())).collect()
        };
        let (keys, paths): (Vec<_>, Vec<_>) = due.into_iter().unzip();
        let revisions = node.parts.files.revisions(paths, node.config.mounts.limits).await;
        let mut changed = Vec::new();
        {
            let mut followed = self.lock();
            for (key, revision) in keys.into_iter().zip(revisions) {
                // What is gone does not change any more: its pod ends.
                let (Some(one), Ok(revision)) = (followed.get_mut(&key), revision) else {
                    continue;
                };
                if one.revision.as_ref() != Some(&revision) {
                    one.revision = Some(revision);
                    changed.push(key);
                }
            }
        }
        changed.dedup_by(|(later, _), (sooner, _)| later == sooner);
        for (sandbox, id) in changed {
            let door = node.board.door(&sandbox);
            let told =
                door.is_some_and(|door| door.requests.try_send(Box::new(Request::Refresh)).is_ok());
            if !told {
                self.brought(&sandbox, &id, None);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(SandboxId, String), Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(800);
const LOOK_EVERY_MOST: Duration = Duration::from_secs(30);
/// After a delivery that failed.
const AGAIN: Duration = Duration::from_secs(5);
