//! One round: both sides of a shared directory are looked at, and each is brought what the other changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::join;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Shared;
use crate::mounts::{
    EntryKind, FilesError, Incoming, Limits, NodeFiles, Plan, SharedEntry, SharedKind, SharedTree,
    Taken, ToMachine, ToNode, plan,
};
use crate::session::{AgentSession, MachineEntry, SessionError, VolumeChange, VolumePart};
use crate::spec::UserNamespace;

/// What a round needs.
pub(super) struct Round<'a> {
    pub(super) files: &'a dyn NodeFiles,
    pub(super) limits: Limits,
    pub(super) session: &'a Arc<dyn AgentSession>,
    pub(super) shared: &'a Shared,
    pub(super) users: Option<UserNamespace>,
}

/// How both sides were when there was nothing to do.
pub(super) struct Rest {
    node: Vec<u8>,
    machine: Vec<u8>,
}

/// What came of a round.
#[derive(Default)]
pub(super) struct Made {
    /// Both sides are the same.
    pub(super) rest: Option<Rest>,
    /// For people.
    pub(super) remarks: Vec<String>,
    /// Some of it could not be brought; the rest was.
    pub(super) failed: Option<RoundError>,
}

/// Why a round, or a part of it, failed.
#[derive(Debug)]
pub(super) enum RoundError {
    Files(FilesError),
    Session(SessionError),
}

impl Round<'_> {
    pub(super) async fn run(&self, rest: Option<Rest>) -> Result<Made, RoundError> {
        let tree = self.files.scan_shared(&self.shared.path, self.limits).await;
        let tree = tree.map_err(RoundError::Files)?;
        let node = revision(&tree);
        let known = match &rest {
            Some(rest) if node.as_ref() == Some(&rest.node) => rest.machine.as_slice(),
            _ => &[],
        };
        let scan = self.session.scan_volume(&self.shared.id, known, self.limits).await;
        let scan = scan.map_err(RoundError::Session)?;
        let Some(mut machine) = scan.entries else {
            return Ok(Made { rest, ..Made::default() });
        };
        for entry in machine.values_mut().filter_map(|entry| entry.now.as_mut()) {
            self.to_node(entry);
        }
        // The machine's names for owners become the node's: both sides are compared as the node would have them.
        let plan = plan(&tree.entries, &machine, &self.shared.writable);
        let mut made = Made { remarks: remarks(&plan), ..Made::default() };
        if plan.is_empty() {
            let whole = node.filter(|_| !scan.revision.is_empty());
            made.rest = whole.map(|node| Rest { node, machine: scan.revision });
            return Ok(made);
        }
        let mut changes = plan.to_machine;
        if !plan.to_node.is_empty() {
            made.failed = self.change_node(plan.to_node, &machine, &mut changes).await?;
        }
        if !changes.is_empty() {
            self.change_machine(changes).await?;
        }
        Ok(made)
    }

    /// Brings the machine's changes to the node. What the node has then is for both to agree on.
    async fn change_node(
        &self,
        steps: Vec<ToNode>,
        machine: &BTreeMap<PathBuf, MachineEntry>,
        agreed: &mut Vec<ToMachine>,
    ) -> Result<Option<RoundError>, RoundError> {
        let (sender, incoming) = mpsc::channel(INCOMING_MAX);
        let mut feed = Feed { round: self, sender, stamps: BTreeMap::new(), bytes: 0 };
        let take = self.files.take_shared(&self.shared.path, incoming);
        let feed = async move {
            let fed = feed.run(steps, machine).await;
            // Without its sender the other side ends.
            fed.map(|()| feed.stamps)
        };
        let (taken, fed) = join(take, feed).await;
        let (taken, stamps) =
            (taken.map_err(RoundError::Files)?, fed.map_err(RoundError::Session)?);
        let mut failed = None;
        for Taken { path, result } in taken {
            match result {
                Ok(token) => {
                    let stamp = stamps.get(&path).cloned().unwrap_or_default();
                    agreed.push(ToMachine::Agree { path, stamp, token });
                }
                // It was changed on the node since it was looked at: the next round sees it.
                Err(FilesError::Changed(_)) => {}
                Err(error) => failed = Some(RoundError::Files(error)),
            }
        }
        Ok(failed)
    }

    async fn change_machine(&self, steps: Vec<ToMachine>) -> Result<(), RoundError> {
        let (sender, changes) = mpsc::channel(INCOMING_MAX);
        let changes = ReceiverStream::new(changes).boxed();
        let put = self.session.put_entries(&self.shared.id, changes);
        let feed = async move {
            for step in steps {
                if !self.feed_machine(step, &sender).await {
                    break;
                }
            }
        };
        // What it left alone was changed in the machine meanwhile: the next round sees it.
        join(put, feed).await.0.map(drop).map_err(RoundError::Session)
    }

    /// False when nobody takes more.
    async fn feed_machine(
        &self,
        step: ToMachine,
        sender: &mpsc::Sender<Result<VolumeChange, FilesError>>,
    ) -> bool {
        let (path, expected) = match step {
            ToMachine::Put { path, expected } => (path, expected),
            ToMachine::Remove { path, expected } => {
                return sender.send(Ok(VolumeChange::Remove { path, expected })).await.is_ok();
            }
            ToMachine::Agree { path, stamp, token } => {
                let agree = VolumeChange::Agree { path, stamp, token };
                return sender.send(Ok(agree)).await.is_ok();
            }
        };
        let opened = match self.files.open_shared(&self.shared.path, &path).await {
            Ok(None) => return true,
            Ok(Some(opened)) => opened,
            Err(error) => return sender.send(Err(error)).await.is_ok(),
        };
        let (token, mut entry) = (opened.entry.token(), opened.entry);
        if let Some(users) = self.users {
            (entry.uid, entry.gid) = users.in_machine(entry.uid, entry.gid);
        }
        let put = VolumeChange::Put { path, entry, expected, token };
        if sender.send(Ok(put)).await.is_err() {
            return false;
        }
        let mut data = opened.data.map_ok(VolumeChange::Data);
        while let Some(piece) = data.next().await {
            if sender.send(piece).await.is_err() {
                return false;
            }
        }
        true
    }

    fn to_node(&self, entry: &mut SharedEntry) {
        if let Some(users) = self.users {
            (entry.uid, entry.gid) = users.on_node(entry.uid, entry.gid);
        }
    }
}

/// Hands the node what a machine changed.
struct Feed<'a> {
    round: &'a Round<'a>,
    sender: mpsc::Sender<Incoming>,
    /// How the machine had what it sent.
    stamps: BTreeMap<PathBuf, Vec<u8>>,
    bytes: u64,
}

impl Feed<'_> {
    async fn run(
        &mut self,
        steps: Vec<ToNode>,
        machine: &BTreeMap<PathBuf, MachineEntry>,
    ) -> Result<(), SessionError> {
        let mut puts: Vec<(PathBuf, Option<Vec<u8>>)> = Vec::new();
        for step in steps {
            match step {
                ToNode::Put { path, expected } => {
                    puts.push((path, expected));
                    if puts.len() >= PUTS_MAX {
                        self.put(std::mem::take(&mut puts), machine).await?;
                    }
                }
                ToNode::Remove { path, expected } => {
                    self.put(std::mem::take(&mut puts), machine).await?;
                    self.send(Incoming::Remove { path, expected }).await?;
                }
            }
        }
        self.put(puts, machine).await
    }

    /// Directories and links are known already; of files the contents are asked for.
    async fn put(
        &mut self,
        puts: Vec<(PathBuf, Option<Vec<u8>>)>,
        machine: &BTreeMap<PathBuf, MachineEntry>,
    ) -> Result<(), SessionError> {
        let file = SharedKind::Plain(EntryKind::File);
        let mut files = BTreeMap::new();
        let mut asked = Vec::new();
        for (path, expected) in puts {
            match machine.get(&path).and_then(|entry| entry.now.as_ref()) {
                Some(now) if now.kind == file => {
                    asked.push(path.clone());
                    files.insert(path, expected);
                }
                Some(now) => {
                    self.stamps.insert(path.clone(), now.stamp.clone());
                    self.send(Incoming::Put { path, entry: now.clone(), expected }).await?;
                }
                None => {}
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let mut parts = self.round.session.read_entries(&self.round.shared.id, asked).await?;
        let mut open = false;
        while let Some(part) = parts.try_next().await? {
            match part {
                VolumePart::Entry(path, mut entry) => {
                    if std::mem::take(&mut open) {
                        self.send(Incoming::End).await?;
                    }
                    let Some(expected) = files.remove(&path) else {
                        return violation("an entry that nobody asked for");
                    };
                    // It became something else meanwhile.
                    if entry.kind != file {
                        continue;
                    }
                    open = true;
                    self.round.to_node(&mut entry);
                    self.stamps.insert(path.clone(), entry.stamp.clone());
                    self.send(Incoming::Put { path, entry, expected }).await?;
                }
                VolumePart::Data(data) => {
                    self.bytes = self.bytes.saturating_add(data.len() as u64);
                    if !open || self.bytes > self.round.limits.bytes {
                        return violation("more of a volume than was asked for");
                    }
                    self.send(Incoming::Data(data)).await?;
                }
            }
        }
        if open { self.send(Incoming::End).await } else { Ok(()) }
    }

    /// The other side ends early only where it fails, and says so itself.
    async fn send(&self, incoming: Incoming) -> Result<(), SessionError> {
        let _ = self.sender.send(incoming).await;
        Ok(())
    }
}

fn violation<T>(what: &str) -> Result<T, SessionError> {
    Err(SessionError::Violation(what.to_owned()))
}

/// A name for all that the node has; nothing while something is too fresh for it to mean much.
fn revision(tree: &SharedTree) -> Option<Vec<u8>> {
    if tree.entries.values().any(|entry| entry.fresh) {
        return None;
    }
    let mut hash = Sha256::new();
    for (path, entry) in &tree.entries {
        let path = path.as_os_str().as_encoded_bytes();
        hash.update((path.len() as u64).to_be_bytes());
        hash.update(path);
        hash.update(&entry.stamp);
    }
    Some(hash.finalize().to_vec())
}

fn remarks(plan: &Plan) -> Vec<String> {
    let first = |paths: &[PathBuf], what: &str| {
        let first: &Path = paths.first()?;
        let more = match paths.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        Some(format!("{:?}{more} {what}", first.display()))
    };
    let conflicts = "changed on the node and in the machine; what the machine has was taken";
    let refused =
        "cannot be brought: it is a device, a FIFO or a socket, on the node or in the machine";
    let remarks = [first(&plan.conflicts, conflicts), first(&plan.refused, refused)];
    remarks.into_iter().flatten().collect()
}

impl From<RoundError> for SessionError {
    fn from(error: RoundError) -> Self {
        match error {
            RoundError::Files(error) => Self::Files(error),
            RoundError::Session(error) => error,
        }
    }
}

/// Pieces that wait for the other side.
const INCOMING_MAX: usize = 4;
/// Entries that are asked for at once; their paths have to fit into one message.
const PUTS_MAX: usize = 200;
