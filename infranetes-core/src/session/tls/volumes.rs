//! Volumes on their way into a machine, and what its containers wrote on its way out.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use infranetes_agent_protocol::v1;
use infranetes_agent_protocol::v1::agent_client::AgentClient;
use infranetes_agent_protocol::v1::put_volumes_request::Part as Message;
use tonic::transport::Channel;

use super::failure::failed;
use super::upload::upload;
use crate::mounts::{Entry, EntryKind, Part};
use crate::session::{SessionError, VolumeKind, VolumeSource};

/// Brings a volume in. The agent's pace is the reader's; it is committed when all of it was read without an error.
pub(super) async fn put(
    mut client: AgentClient<Channel>,
    source: VolumeSource,
) -> Result<(), SessionError> {
    let begin = request(Message::Begin(begin(&source)));
    let commit = request(Message::Commit(v1::VolumeCommit {}));
    let (messages, reading) = upload(begin, source.parts, commit, |part| request(message(part)));
    let answer = client.put_volumes(messages).await;
    reading.end(answer).map(drop)
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

fn request(part: Message) -> v1::PutVolumesRequest {
    v1::PutVolumesRequest { part: Some(part) }
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
