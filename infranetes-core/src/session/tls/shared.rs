//! Shared volumes on the wire. What a machine says is checked here: its names lead down, are spelled in one way, and are no
//! more and no longer than a directory of the node may have.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use futures::StreamExt;
use futures::stream::unfold;
use infranetes_agent_protocol::v1;
use infranetes_agent_protocol::v1::agent_client::AgentClient;
use infranetes_agent_protocol::v1::put_entries_request::Part as Message;
use infranetes_agent_protocol::v1::read_entries_response::Part;
use prost::Message as _;
use tonic::transport::Channel;

use super::failure::failed;
use super::upload::upload;
use crate::mounts::{DEPTH_MAX, EntryKind, Limits, SharedEntry, SharedKind, is_temporary};
use crate::session::{
    MachineEntry, SessionError, VolumeChange, VolumeChanges, VolumePart, VolumeParts, VolumeScan,
};

type Result<T> = std::result::Result<T, SessionError>;

/// What the machine has.
pub(super) async fn scan(
    mut client: AgentClient<Channel>,
    id: &str,
    known: &[u8],
    limits: Limits,
) -> Result<VolumeScan> {
    let request = v1::ScanVolumeRequest {
        id: id.to_owned(),
        known_revision: known.to_vec(),
        entries_max: limits.entries as u64,
        bytes_max: limits.bytes,
    };
    let mut messages = client.scan_volume(request).await.map_err(failed)?.into_inner();
    let mut found = Found { limits, entries: BTreeMap::new(), said_bytes: 0, file_bytes: 0 };
    let mut head: Option<(Vec<u8>, bool)> = None;
    while let Some(message) = messages.message().await.map_err(failed)? {
        found.said_bytes += message.encoded_len();
        head.get_or_insert((message.revision, message.unchanged));
        message.entries.into_iter().try_for_each(|entry| found.take(entry))?;
    }
    let (revision, unchanged) = head.unwrap_or_default();
    if revision.len() > NAME_BYTES_MAX {
        return violation("a revision that is too long");
    }
    // An answer that nothing changed counts only if we said since when.
    let unchanged = unchanged && !known.is_empty();
    Ok(VolumeScan { revision, entries: (!unchanged).then_some(found.entries) })
}

/// Entries with their contents.
pub(super) async fn read(
    mut client: AgentClient<Channel>,
    id: &str,
    paths: Vec<PathBuf>,
) -> Result<VolumeParts> {
    let paths = paths.into_iter().map(|path| path.into_os_string().into_vec()).collect();
    let request = v1::ReadEntriesRequest { id: id.to_owned(), paths };
    let messages = client.read_entries(request).await.map_err(failed)?.into_inner();
    Ok(unfold(Some(messages), |messages| async move {
        let mut messages = messages?;
        let part = match messages.message().await {
            Ok(None) => return None,
            Ok(Some(message)) => part(message),
            Err(status) => Err(failed(status)),
        };
        let rest = part.is_ok().then_some(messages);
        Some((part, rest))
    })
    .boxed())
}

/// Changes what the machine has; says how much it left alone.
pub(super) async fn put(
    mut client: AgentClient<Channel>,
    id: &str,
    changes: VolumeChanges,
) -> Result<u64> {
    let begin = request(Message::Begin(v1::PutEntriesBegin { id: id.to_owned() }));
    let commit = request(Message::Commit(v1::VolumeCommit {}));
    let (messages, reading) = upload(begin, changes, commit, |change| request(message(change)));
    let answer = client.put_entries(messages).await;
    reading.end(answer).map(|answer| answer.left_alone)
}

/// What a machine said until now.
struct Found {
    limits: Limits,
    entries: BTreeMap<PathBuf, MachineEntry>,
    said_bytes: usize,
    file_bytes: u64,
}

impl Found {
    fn take(&mut self, said: v1::SharedEntry) -> Result<()> {
        let (token, changed) = (said.token.clone(), said.changed);
        if token.len() > NAME_BYTES_MAX {
            return violation("a token that is too long");
        }
        let (path, now) = entry(said)?;
        // Such names are the node's own; what a container calls so stays in its machine.
        if is_temporary(&path) {
            return Ok(());
        }
        self.file_bytes = self.file_bytes.saturating_add(now.as_ref().map_or(0, |now| now.size));
        let token = (!token.is_empty()).then_some(token);
        let again = self.entries.insert(path, MachineEntry { now, token, changed });
        // As many as there are, and as many that were agreed on and are gone.
        let entries_max = self.limits.entries.saturating_mul(2).saturating_add(2);
        let said_max = entries_max.saturating_mul(ENTRY_BYTES);
        let too_much = self.entries.len() > entries_max
            || self.said_bytes > said_max.max(SAID_BYTES_LEAST)
            || self.file_bytes > self.limits.bytes;
        match (again, too_much) {
            (Some(_), _) => violation("an entry of a volume twice"),
            (None, true) => violation("more of a volume than was asked for"),
            (None, false) => Ok(()),
        }
    }
}

/// A machine's entry; nothing without a stamp, which means that it is gone.
fn entry(said: v1::SharedEntry) -> Result<(PathBuf, Option<SharedEntry>)> {
    let Some(entry) = said.entry else { return violation("an entry without a name") };
    let path = path(entry.path.clone())?;
    if said.stamp.is_empty() {
        return Ok((path, None));
    }
    if said.stamp.len() > NAME_BYTES_MAX {
        return violation("a stamp that is too long");
    }
    let kind = match entry.kind() {
        v1::VolumeEntryKind::Directory => SharedKind::Plain(EntryKind::Directory),
        v1::VolumeEntryKind::File => SharedKind::Plain(EntryKind::File),
        v1::VolumeEntryKind::Symlink => {
            let (target, bytes) = (entry.target, 1..PATH_BYTES_MAX);
            if !bytes.contains(&target.len()) || target.contains(&0) {
                return violation("a link that leads nowhere");
            }
            SharedKind::Plain(EntryKind::Symlink(OsString::from_vec(target).into()))
        }
        v1::VolumeEntryKind::Unspecified => SharedKind::Special,
    };
    let is_file = kind == SharedKind::Plain(EntryKind::File);
    let is_root = path.as_os_str().is_empty();
    if is_root && kind != SharedKind::Plain(EntryKind::Directory) {
        return violation("a volume that is no directory");
    }
    let now = SharedEntry {
        kind,
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        modified: (entry.modified_unix_s, entry.modified_ns.min(999_999_999)),
        size: if is_file { said.size_bytes } else { 0 },
        stamp: said.stamp,
        fresh: false,
    };
    Ok((path, Some(now)))
}

/// A path that leads down, in the one way in which it can be spelled; empty is the volume itself.
fn path(said: Vec<u8>) -> Result<PathBuf> {
    let path = PathBuf::from(OsString::from_vec(said));
    let bytes = path.as_os_str().as_bytes();
    let plain = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.len() <= NAME_MAX),
        _ => None,
    };
    let fits = path.components().all(|part| plain(part) == Some(true));
    let spelled = path.components().collect::<PathBuf>();
    let short = bytes.len() < PATH_BYTES_MAX && path.components().count() <= DEPTH_MAX + 1;
    if fits && short && !bytes.contains(&0) && spelled.as_os_str().as_bytes() == bytes {
        return Ok(path);
    }
    violation("a name that cannot be in a volume")
}

fn part(message: v1::ReadEntriesResponse) -> Result<VolumePart> {
    match message.part {
        Some(Part::Entry(said)) => match entry(said)? {
            (path, Some(now)) => Ok(VolumePart::Entry(path, now)),
            (_, None) => violation("an entry to be read that is gone"),
        },
        Some(Part::Data(data)) if data.len() <= DATA_BYTES_MAX => Ok(VolumePart::Data(data.into())),
        _ => violation("a piece of a volume that is none"),
    }
}

fn violation<T>(what: &str) -> Result<T> {
    Err(SessionError::Violation(what.to_owned()))
}

fn request(part: Message) -> v1::PutEntriesRequest {
    v1::PutEntriesRequest { part: Some(part) }
}

fn message(change: VolumeChange) -> Message {
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    match change {
        VolumeChange::Put { path, entry, expected, token } => {
            let (kind, target) = match &entry.kind {
                SharedKind::Plain(EntryKind::File) => (v1::VolumeEntryKind::File, Vec::new()),
                SharedKind::Plain(EntryKind::Symlink(target)) => {
                    (v1::VolumeEntryKind::Symlink, bytes(target))
                }
                _ => (v1::VolumeEntryKind::Directory, Vec::new()),
            };
            let entry = v1::VolumeEntry {
                path: bytes(&path),
                kind: kind.into(),
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                modified_unix_s: entry.modified.0,
                modified_ns: entry.modified.1,
                target,
            };
            Message::Put(v1::SharedPut { entry: Some(entry), expected_stamp: expected, token })
        }
        VolumeChange::Data(data) => Message::Data(data.into()),
        VolumeChange::Remove { path, expected } => {
            Message::Remove(v1::SharedRemoval { path: bytes(&path), expected_stamp: expected })
        }
        VolumeChange::Agree { path, stamp, token } => {
            Message::Agree(v1::SharedAgreement { path: bytes(&path), stamp, token })
        }
    }
}

const NAME_BYTES_MAX: usize = 64;
/// Linux has no longer names and paths.
const NAME_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 4096;
const DATA_BYTES_MAX: usize = 256 * 1024;
/// What an entry may take on average, with its path.
const ENTRY_BYTES: usize = 1024;
/// Some long paths are fine where few entries are allowed.
const SAID_BYTES_LEAST: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_down_and_are_spelled_in_one_way() {
        let long = vec![b'a'; NAME_MAX + 1];
        let deep = "d/".repeat(DEPTH_MAX + 1) + "d";
        let far = ["a".repeat(NAME_MAX).as_str(); 17].join("/");
        let cases: [(&[u8], bool); 17] = [
            (b"", true),
            (b"a", true),
            (b"a/b.c/..d", true),
            (b"\xff\xfe", true),
            (&long[..NAME_MAX], true),
            (&long, false),
            (deep.as_bytes(), false),
            (far.as_bytes(), false),
            (b"..", false),
            (b"a/../b", false),
            (b"../../etc/passwd", false),
            (b"/etc/passwd", false),
            (b".", false),
            (b"a/./b", false),
            (b"a//b", false),
            (b"a/", false),
            (b"a\0b", false),
        ];
        for (said, possible) in cases {
            let text = String::from_utf8_lossy(said).into_owned();
            assert_eq!(path(said.to_vec()).is_ok(), possible, "{text:?}");
        }
    }

    #[test]
    fn what_a_machine_says_too_much_of_is_refused() {
        let said = |path: &str, size_bytes| v1::SharedEntry {
            entry: Some(v1::VolumeEntry {
                path: path.into(),
                kind: v1::VolumeEntryKind::File.into(),
                ..Default::default()
            }),
            size_bytes,
            stamp: vec![1],
            ..Default::default()
        };
        let cases = [
            (vec![said("a", 5), said("b", 5)], true),
            (vec![said("a", 5), said("b", 6)], false),
            (vec![said("a", 1), said("a", 1)], false),
            ((0..5).map(|n| said(&n.to_string(), 0)).collect(), false),
            (vec![said("", 1)], false),
            (vec![v1::SharedEntry { token: vec![0; 65], ..said("a", 1) }], false),
            (vec![v1::SharedEntry { stamp: vec![0; 65], ..said("a", 1) }], false),
            (vec![v1::SharedEntry { entry: None, ..said("a", 1) }], false),
        ];
        for (number, (all, possible)) in cases.into_iter().enumerate() {
            let limits = Limits { bytes: 10, entries: 1 };
            let entries = BTreeMap::new();
            let mut found = Found { limits, entries, said_bytes: 0, file_bytes: 0 };
            let taken = all.into_iter().try_for_each(|one| found.take(one));
            assert_eq!(taken.is_ok(), possible, "{number}");
        }
    }
}
