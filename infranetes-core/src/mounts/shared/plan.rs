//! What has to be done so that node and machine have the same: a pure function of how both are and what they agreed on.
//!
//! ```text
//!  since both agreed     the machine changed it     the machine removed it     the machine did nothing
//!  node changed it       the machine's is taken     the node's is brought      the node's is brought
//!  node removed it       the machine's is taken     -                          it is removed in the machine
//!  node did nothing      the machine's is taken     it is removed on the node  -
//! ```
//!
//! So a removal takes away what the remover had seen, and nothing else. Where both changed an entry, the machine's wins, as a whole:
//! it is what a crash between taking it and agreeing on it looks like. Directories that both have are one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{SharedEntry, SharedKind};
use crate::mounts::EntryKind;
use crate::session::MachineEntry;

/// What to do, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) to_node: Vec<ToNode>,
    pub(crate) to_machine: Vec<ToMachine>,
    /// What both changed.
    pub(crate) conflicts: Vec<PathBuf>,
    /// What cannot be brought to the node, because it, or what is there, is no file, directory or link.
    pub(crate) refused: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToNode {
    Put { path: PathBuf, expected: Option<Vec<u8>> },
    Remove { path: PathBuf, expected: Vec<u8> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToMachine {
    /// `expected`: the machine's stamp of what is there; empty is nothing.
    Put {
        path: PathBuf,
        expected: Vec<u8>,
    },
    Remove {
        path: PathBuf,
        expected: Vec<u8>,
    },
    /// Both have the same already. Without a stamp: neither has it.
    Agree {
        path: PathBuf,
        stamp: Vec<u8>,
        token: Vec<u8>,
    },
}

impl Plan {
    pub(crate) fn is_empty(&self) -> bool {
        self.to_node.is_empty() && self.to_machine.is_empty()
    }
}

/// Compares. `writable`: below which paths the machine's changes count; elsewhere it is to have what the node has.
pub(crate) fn plan(
    node: &BTreeMap<PathBuf, SharedEntry>,
    machine: &BTreeMap<PathBuf, MachineEntry>,
    writable: &[PathBuf],
) -> Plan {
    let paths: BTreeSet<&PathBuf> = node.keys().chain(machine.keys()).collect();
    let mut made = BTreeMap::new();
    let mut plan = Plan::default();
    let mut closed = Closed::default();
    for path in paths {
        let pair = Pair { node: node.get(path), machine: machine.get(path) };
        let inner = closed.around(path);
        let verdict = match pair.special() {
            _ if inner => Verdict::Nothing,
            Some(verdict) => {
                closed.0.push(path.clone());
                verdict
            }
            None => pair.verdict(writable.iter().any(|at| path.starts_with(at))),
        };
        match verdict {
            Verdict::Nothing => {}
            Verdict::Refused => plan.refused.push(path.clone()),
            verdict => {
                if verdict == Verdict::ToNode && pair.conflict() {
                    plan.conflicts.push(path.clone());
                }
                made.insert(path.clone(), verdict);
            }
        }
    }
    keep_parents(&mut made, node, machine);
    order(made, node, machine, &mut plan);
    plan
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Nothing,
    Refused,
    /// What the machine has is to be on the node.
    ToNode,
    /// What the node has is to be in the machine.
    ToMachine,
    RemoveOnNode,
    RemoveInMachine,
    Agree,
    Forget,
}

struct Pair<'a> {
    node: Option<&'a SharedEntry>,
    machine: Option<&'a MachineEntry>,
}

/// Paths below which nothing travels.
#[derive(Default)]
struct Closed(Vec<PathBuf>);

impl Closed {
    fn around(&self, path: &Path) -> bool {
        self.0.last().is_some_and(|last| path.starts_with(last))
    }
}

impl Pair<'_> {
    fn now(&self) -> Option<&SharedEntry> {
        self.machine.and_then(|machine| machine.now.as_ref())
    }

    /// Where something is that does not travel, and below it.
    fn special(&self) -> Option<Verdict> {
        let kind = |entry: Option<&SharedEntry>| entry.map(|entry| entry.kind.clone());
        match (kind(self.node), kind(self.now())) {
            // What something is mounted on is a directory in the machine, too.
            (Some(SharedKind::Covered), None) => Some(Verdict::ToMachine),
            (Some(SharedKind::Covered), Some(_)) => Some(Verdict::Nothing),
            (Some(SharedKind::Special), None) => Some(Verdict::Nothing),
            (Some(SharedKind::Special), Some(_)) | (_, Some(SharedKind::Special)) => {
                Some(Verdict::Refused)
            }
            _ => None,
        }
    }

    fn node_changed(&self) -> bool {
        let token = self.machine.and_then(|machine| machine.token.as_ref());
        token != self.node.map(|node| &node.stamp)
    }

    fn machine_changed(&self) -> bool {
        self.machine.is_some_and(|machine| machine.changed)
    }

    fn conflict(&self) -> bool {
        let both = self.node_changed() && self.machine_changed();
        both && self.node.is_some_and(|node| !node.is_directory())
    }

    fn verdict(&self, writable: bool) -> Verdict {
        let same = || match (self.node, self.now()) {
            (Some(node), Some(now)) => node.looks_like(now),
            _ => false,
        };
        let from_node = || match (self.node, self.now()) {
            (None, None) => Verdict::Forget,
            (None, Some(_)) => Verdict::RemoveInMachine,
            (Some(_), _) => Verdict::ToMachine,
        };
        match (self.node_changed(), self.machine_changed()) {
            (false, false) => Verdict::Nothing,
            (true, _) if same() => Verdict::Agree,
            (true, false) => from_node(),
            (_, true) if !writable => from_node(),
            (false, true) => match self.now() {
                Some(_) => Verdict::ToNode,
                None => Verdict::RemoveOnNode,
            },
            (true, true) => match self.now() {
                Some(_) => Verdict::ToNode,
                None => from_node(),
            },
        }
    }
}

/// A directory in which something comes to be stays, whoever removed it.
fn keep_parents(
    made: &mut BTreeMap<PathBuf, Verdict>,
    node: &BTreeMap<PathBuf, SharedEntry>,
    machine: &BTreeMap<PathBuf, MachineEntry>,
) {
    let coming: Vec<(PathBuf, Verdict)> = made
        .iter()
        .filter(|(_, verdict)| matches!(verdict, Verdict::ToNode | Verdict::ToMachine))
        .map(|(path, verdict)| (path.clone(), *verdict))
        .collect();
    for (path, verdict) in coming {
        for above in path.ancestors().skip(1) {
            let Some(removal) = made.get_mut(above) else { continue };
            let there = match *removal {
                Verdict::RemoveInMachine => machine.get(above).and_then(|entry| entry.now.as_ref()),
                Verdict::RemoveOnNode => node.get(above),
                _ => continue,
            };
            if there.is_some_and(SharedEntry::is_directory) {
                *removal = verdict;
            }
        }
    }
}

/// What has to make room goes first; then all that comes, directories before what is in them; the rest goes last, so that what was
/// renamed is nowhere missing. Of removals the innermost goes first.
fn order(
    made: BTreeMap<PathBuf, Verdict>,
    node: &BTreeMap<PathBuf, SharedEntry>,
    machine: &BTreeMap<PathBuf, MachineEntry>,
    plan: &mut Plan,
) {
    let now = |path: &Path| machine.get(path).and_then(|entry| entry.now.as_ref());
    let stamp = |path: &Path| now(path).map(|now| now.stamp.clone()).unwrap_or_default();
    let expected = |path: &Path| node.get(path).map(|node| node.stamp.clone());
    let is_directory = |entry: Option<&SharedEntry>| entry.is_some_and(SharedEntry::is_directory);
    let rooms = |wanted: Verdict| -> Vec<PathBuf> {
        let makes_room = |(path, verdict): &(&PathBuf, &Verdict)| {
            let (to, of) = match wanted {
                Verdict::ToNode => (now(path), node.get(*path)),
                _ => (node.get(*path), now(path)),
            };
            **verdict == wanted && is_directory(of) && !is_directory(to)
        };
        made.iter().filter(makes_room).map(|(path, _)| path.clone()).collect()
    };
    let (node_rooms, machine_rooms) = (rooms(Verdict::ToNode), rooms(Verdict::ToMachine));
    let within = |rooms: &[PathBuf], path: &Path| rooms.iter().any(|room| path.starts_with(room));
    let (mut first_node, mut last_node, mut first_machine, mut last_machine) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut node_puts, mut machine_puts) = (Vec::new(), Vec::new());
    for (path, verdict) in &made {
        let path = path.clone();
        match verdict {
            Verdict::Nothing | Verdict::Refused => {}
            Verdict::ToNode => {
                node_puts.push(ToNode::Put { expected: expected(&path), path });
            }
            Verdict::RemoveOnNode => {
                let early = within(&node_rooms, &path);
                let Some(expected) = expected(&path) else { continue };
                let removals = if early { &mut first_node } else { &mut last_node };
                removals.push(ToNode::Remove { path, expected });
            }
            Verdict::ToMachine => {
                machine_puts.push(ToMachine::Put { expected: stamp(&path), path });
            }
            Verdict::RemoveInMachine => {
                let early = within(&machine_rooms, &path);
                let removals = if early { &mut first_machine } else { &mut last_machine };
                removals.push(ToMachine::Remove { expected: stamp(&path), path });
            }
            Verdict::Agree => {
                let token = expected(&path).unwrap_or_default();
                machine_puts.push(ToMachine::Agree { stamp: stamp(&path), token, path });
            }
            Verdict::Forget => {
                let (stamp, token) = (Vec::new(), Vec::new());
                last_machine.push(ToMachine::Agree { path, stamp, token });
            }
        }
    }
    [&mut first_node, &mut last_node].into_iter().for_each(|removals| removals.reverse());
    [&mut first_machine, &mut last_machine].into_iter().for_each(|removals| removals.reverse());
    plan.to_node = [first_node, node_puts, last_node].concat();
    plan.to_machine = [first_machine, machine_puts, last_machine].concat();
}

/// The directory that a machine has where something is mounted on the node.
pub(crate) fn cover(entry: &SharedEntry) -> SharedEntry {
    SharedEntry { kind: SharedKind::Plain(EntryKind::Directory), size: 0, ..entry.clone() }
}
