//! Volumes on their way into a machine, and what its containers wrote on its way out.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::future::ready;
use futures::stream::{BoxStream, once};
use futures::{Stream, StreamExt};
use infranetes_agent_protocol::v1;
use infranetes_agent_protocol::v1::agent_client::AgentClient;
use infranetes_agent_protocol::v1::put_volumes_request::Part as Message;
use tonic::transport::Channel;

use super::failure::failed;
use crate::mounts::{Entry, EntryKind, FilesError, Part, Parts};
use crate::session::{SessionError, VolumeKind, VolumeSource};

/// Brings a volume in. The agent's pace is the reader's; it is committed when all of it was read without an error.
pub(super) async fn put(
    mut client: AgentClient<Channel>,
    source: VolumeSource,
) -> Result<(), SessionError> {
    let broken = Arc::new(Mutex::new(None));
    let begin = begin(&source);
    let answer = client.put_volumes(messages(begin, source.parts, Arc::clone(&broken))).await;
    // Our own reader's failure is the reason for whatever the agent says of a stream that ended early.
    match broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(SessionError::Files(error)),
        None => answer.map(drop).map_err(failed),
    }
}

/// The volumes that the machine has, with their revisions.
pub(super) async fn list(
    mut client: AgentClient<Channel>,
) -> Result<BTreeMap<String, String>, SessionError> {
    let answer = client.volumes(v1::VolumesRequest {}).await.map_err(failed)?.into_inner();
    Ok(answer.volumes.into_iter().map(|volume| (volume.id, volume.revision)).collect())
}

/// The content of a volume that is one file; `None` when it is as it was delivered.
pub(super) async fn read(
    mut client: AgentClient<Channel>,
    id: &str,
    bytes_max: u64,
) -> Result<Option<Vec<u8>>, SessionError> {
    use v1::read_volume_response::Part;
    let violation = |what: &str| Err(SessionError::Violation(what.to_owned()));
    let request = v1::ReadVolumeRequest { id: id.to_owned(), bytes_max };
    let mut parts = client.read_volume(request).await.map_err(failed)?.into_inner();
    let first = parts.message().await.map_err(failed)?.and_then(|message| message.part);
    let Some(Part::File(file)) = first else {
        return violation("the content of a file without its beginning");
    };
    let mut content = Vec::new();
    while let Some(message) = parts.message().await.map_err(failed)? {
        let Some(Part::Data(data)) = message.part else {
            return violation("the content of a file that begins twice");
        };
        content.extend_from_slice(&data);
        if content.len() as u64 > bytes_max {
            return violation("more of a file than was asked for");
        }
    }
    Ok(file.changed.then_some(content))
}

fn begin(source: &VolumeSource) -> v1::VolumeBegin {
    let (kind, memory_bytes) = match source.kind {
        VolumeKind::Tree => (v1::VolumeKind::Tree, 0),
        VolumeKind::File => (v1::VolumeKind::File, 0),
        VolumeKind::Shared => (v1::VolumeKind::Shared, 0),
        VolumeKind::Empty { memory_bytes } => (v1::VolumeKind::Empty, memory_bytes),
    };
    v1::VolumeBegin {
        id: source.id.clone(),
        kind: kind.into(),
        revision: source.revision.clone(),
        memory_bytes,
    }
}

/// What is sent.
///
/// A type of its own: the compiler cannot prove that a call with a boxed stream in it is `Send`.
struct Messages(BoxStream<'static, v1::PutVolumesRequest>);

impl Stream for Messages {
    type Item = v1::PutVolumesRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

fn messages(
    begin: v1::VolumeBegin,
    parts: Parts,
    broken: Arc<Mutex<Option<FilesError>>>,
) -> Messages {
    let first = once(ready(Ok(Message::Begin(begin))));
    let last = once(ready(Ok(Message::Commit(v1::VolumeCommit {}))));
    let parts = parts.map(|part| part.map(message));
    // An error ends the stream before its commit.
    let all = first.chain(parts).chain(last).scan(broken, |broken, message| {
        ready(match message {
            Ok(part) => Some(v1::PutVolumesRequest { part: Some(part) }),
            Err(error) => {
                *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                None
            }
        })
    });
    Messages(Box::pin(all))
}

fn message(part: Part) -> Message {
    match part {
        Part::Entry(part) => Message::Entry(entry(part)),
        Part::Data(data) => Message::Data(data.into()),
    }
}

fn entry(entry: Entry) -> v1::VolumeEntry {
    let (kind, target) = match entry.kind {
        EntryKind::Directory => (v1::VolumeEntryKind::Directory, Vec::new()),
        EntryKind::File => (v1::VolumeEntryKind::File, Vec::new()),
        EntryKind::Symlink(target) => {
            (v1::VolumeEntryKind::Symlink, target.as_os_str().as_bytes().to_vec())
        }
    };
    v1::VolumeEntry {
        path: entry.path.as_os_str().as_bytes().to_vec(),
        kind: kind.into(),
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        modified_unix_s: entry.modified.0,
        modified_ns: entry.modified.1,
        target,
    }
}
