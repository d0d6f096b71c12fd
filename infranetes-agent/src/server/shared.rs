//! Shared volumes: what containers changed on its way out, what the node changed on its way in.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use futures::StreamExt;
use futures::stream::{iter, unfold};
use infranetes_agent_protocol::v1::put_entries_request::Part;
use infranetes_agent_protocol::v1::{
    PutEntriesRequest, PutEntriesResponse, ReadEntriesRequest, ReadEntriesResponse,
    ScanVolumeRequest, ScanVolumeResponse, SharedEntry, VolumeEntry, VolumeEntryKind,
    read_entries_response,
};
use prost::Message;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tonic::{Status, Streaming};

use super::ResponseStream;
use super::containers::check_id;
use super::volumes::{DATA_BYTES_MAX, entry_of, status};
use crate::machine::Machine;
use crate::volumes::{
    EntryKind, Found, Limits, Now, Put, Putting, SETTLED, Scan, Shared, VolumeError,
};

/// What is there, unless the node knows.
pub(super) async fn scan(
    machine: &Machine,
    request: ScanVolumeRequest,
) -> Result<ResponseStream<ScanVolumeResponse>, Status> {
    check_id(&request.id)?;
    let shared = machine.volumes.shared(&request.id).map_err(|error| status(&error))?;
    let limits = Limits { entries: request.entries_max, bytes: request.bytes_max };
    let mut scanned = scan_once(&shared, limits).await?;
    for _ in 0..SETTLE_TRIES {
        if !scanned.revision.is_empty() {
            break;
        }
        // What is told now may be what changes next, and would have to be told again.
        sleep(SETTLED).await;
        scanned = scan_once(&shared, limits).await?;
    }
    let unchanged = !scanned.revision.is_empty() && scanned.revision == request.known_revision;
    let first = ScanVolumeResponse { revision: scanned.revision, unchanged, entries: Vec::new() };
    let found = if unchanged { Vec::new() } else { scanned.found };
    Ok(Box::pin(iter(messages(first, found).into_iter().map(Ok))))
}

async fn scan_once(shared: &Shared, limits: Limits) -> Result<Scan, Status> {
    let shared = shared.clone();
    working(move || shared.scan(limits)).await
}

fn messages(first: ScanVolumeResponse, found: Vec<Found>) -> Vec<ScanVolumeResponse> {
    let mut messages = vec![first];
    let mut bytes = 0;
    for entry in found.into_iter().map(shared_entry) {
        bytes += entry.encoded_len() + ENTRY_EXTRA_BYTES;
        if bytes > DATA_BYTES_MAX {
            bytes = entry.encoded_len() + ENTRY_EXTRA_BYTES;
            messages.push(ScanVolumeResponse::default());
        }
        if let Some(last) = messages.last_mut() {
            last.entries.push(entry);
        }
    }
    messages
}

/// The entries that are asked for, with their contents.
pub(super) fn read(
    machine: &Machine,
    request: ReadEntriesRequest,
) -> Result<ResponseStream<ReadEntriesResponse>, Status> {
    check_id(&request.id)?;
    let shared = machine.volumes.shared(&request.id).map_err(|error| status(&error))?;
    let paths = request.paths.into_iter().map(|path| PathBuf::from(OsString::from_vec(path)));
    let reader = Reader { shared, paths: paths.collect(), file: None };
    Ok(Box::pin(unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        let read = working(move || {
            let part = reader.next()?;
            Ok((part, reader))
        });
        match read.await {
            Ok((Some(part), reader)) => {
                Some((Ok(ReadEntriesResponse { part: Some(part) }), Some(reader)))
            }
            Ok((None, _)) => None,
            Err(error) => Some((Err(error), None)),
        }
    })))
}

struct Reader {
    shared: Shared,
    paths: VecDeque<PathBuf>,
    /// What is being read, and how much of it is left.
    file: Option<(File, u64)>,
}

impl Reader {
    fn next(&mut self) -> Result<Option<read_entries_response::Part>, VolumeError> {
        if let Some((file, rest)) = &mut self.file {
            // No more than it had when it was looked at: it may grow as fast as it is read.
            let most = usize::try_from(*rest).unwrap_or(DATA_BYTES_MAX).min(DATA_BYTES_MAX);
            let mut data = vec![0; most];
            let read = file
                .read(&mut data)
                .map_err(|cause| VolumeError::Io { what: "read an entry of", cause })?;
            if read > 0 {
                data.truncate(read);
                *rest -= read as u64;
                return Ok(Some(read_entries_response::Part::Data(data)));
            }
            self.file = None;
        }
        while let Some(path) = self.paths.pop_front() {
            let Some((now, file)) = self.shared.open(&path)? else { continue };
            self.file = file.map(|file| (file, now.size));
            let found = Found { path, now: Some(now), token: Vec::new(), changed: true };
            return Ok(Some(read_entries_response::Part::Entry(shared_entry(found))));
        }
        Ok(None)
    }
}

/// Takes changes of the node in.
pub(super) async fn put(
    machine: &Machine,
    mut input: Streaming<PutEntriesRequest>,
) -> Result<PutEntriesResponse, Status> {
    let first = input.next().await.transpose()?.and_then(|message| message.part);
    let Some(Part::Begin(begin)) = first else {
        return Err(Status::invalid_argument("changes of a volume begin with begin"));
    };
    check_id(&begin.id)?;
    let mut putting = machine.volumes.change(&begin.id).map_err(|error| status(&error))?;
    while let Some(message) = input.next().await {
        match message?.part {
            Some(Part::Commit(_)) => {
                let left_alone = putting.end().map_err(|error| status(&error))?;
                return Ok(PutEntriesResponse { left_alone });
            }
            Some(part) => take(&mut putting, part)?,
            None => return Err(Status::invalid_argument("a message of a change is empty")),
        }
    }
    Err(Status::aborted("the changes were not committed"))
}

fn take(putting: &mut Putting, part: Part) -> Result<(), Status> {
    let path = |bytes: Vec<u8>| PathBuf::from(OsString::from_vec(bytes));
    let taken = match part {
        Part::Put(put) => {
            let entry =
                put.entry.ok_or_else(|| Status::invalid_argument("a change of no entry"))?;
            let (expected, token) = (put.expected_stamp, short(put.token)?);
            putting.put(Put { entry: entry_of(entry)?, expected, token })
        }
        Part::Data(data) if data.len() > DATA_BYTES_MAX => {
            return Err(Status::invalid_argument("a piece of a file is too long"));
        }
        Part::Data(data) => putting.data(&data),
        Part::Remove(remove) => putting.remove(&path(remove.path), &remove.expected_stamp),
        Part::Agree(agree) => {
            putting.agree(&path(agree.path), short(agree.stamp)?, short(agree.token)?)
        }
        Part::Begin(_) | Part::Commit(_) => {
            return Err(Status::invalid_argument("changes of a volume begin once"));
        }
    };
    taken.map_err(|error| status(&error))
}

fn short(name: Vec<u8>) -> Result<Vec<u8>, Status> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Status::invalid_argument("a stamp or a token is too long"));
    }
    Ok(name)
}

/// As the node hears of it.
fn shared_entry(found: Found) -> SharedEntry {
    let path = found.path.as_os_str().as_bytes().to_vec();
    let mut entry =
        SharedEntry { token: found.token, changed: found.changed, ..Default::default() };
    entry.entry = Some(match found.now {
        None => VolumeEntry { path, ..VolumeEntry::default() },
        Some(Now { kind, mode, uid, gid, modified, size, stamp, .. }) => {
            entry.size_bytes = size;
            entry.stamp = stamp;
            let (kind, target) = match kind {
                None => (VolumeEntryKind::Unspecified, Vec::new()),
                Some(EntryKind::Directory) => (VolumeEntryKind::Directory, Vec::new()),
                Some(EntryKind::File) => (VolumeEntryKind::File, Vec::new()),
                Some(EntryKind::Symlink(target)) => {
                    (VolumeEntryKind::Symlink, target.into_os_string().into_vec())
                }
            };
            let (modified_unix_s, modified_ns) = modified;
            let kind = kind.into();
            VolumeEntry { path, kind, mode, uid, gid, modified_unix_s, modified_ns, target }
        }
    });
    entry
}

/// What waits for the disk does so on a thread of its own.
async fn working<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, Status> {
    match spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| status(&error)),
        Err(_) => Err(Status::internal("a look at a volume panicked")),
    }
}

const NAME_BYTES_MAX: usize = 64;
/// What a message has beside each entry.
const ENTRY_EXTRA_BYTES: usize = 8;
/// A file that is written to all the time is told of as it is, and again the next time.
const SETTLE_TRIES: u32 = 2;
