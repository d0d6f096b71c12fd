//! Volumes on their way into the machine, and what containers made of them on its way out.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use futures::StreamExt;
use infranetes_agent_protocol::v1::put_volumes_request::Part;
use infranetes_agent_protocol::v1::{
    PutVolumesRequest, PutVolumesResponse, ReadVolumeRequest, ReadVolumeResponse, Volume,
    VolumeBegin, VolumeEntry, VolumeEntryKind, VolumeFile, VolumeKind, VolumesResponse,
    read_volume_response,
};
use tonic::{Code, Status, Streaming};

use super::ResponseStream;
use super::containers::check_id;
use crate::machine::Machine;
use crate::volumes::{Begin, Entry, EntryKind, Kind, Staging, VolumeError};

/// Takes deliveries in, one after the other. What was committed stays, whatever comes of the next.
pub(super) async fn put(
    machine: &Machine,
    mut input: Streaming<PutVolumesRequest>,
) -> Result<PutVolumesResponse, Status> {
    let mut staging: Option<Staging> = None;
    while let Some(message) = input.next().await {
        let early = || Status::invalid_argument("a delivery begins with begin");
        match message?.part {
            Some(Part::Begin(begin)) if staging.is_none() => {
                let delivery = machine.volumes.begin(begin_of(begin)?);
                staging = Some(delivery.map_err(|error| status(&error))?);
            }
            Some(Part::Entry(entry)) => {
                let staging = staging.as_mut().ok_or_else(early)?;
                staging.entry(entry_of(entry)?).map_err(|error| status(&error))?;
            }
            Some(Part::Data(data)) => {
                if data.len() > DATA_BYTES_MAX {
                    return Err(Status::invalid_argument("a piece of a file is too long"));
                }
                let staging = staging.as_mut().ok_or_else(early)?;
                staging.data(&data).map_err(|error| status(&error))?;
            }
            Some(Part::Commit(_)) => {
                let staging = staging.take().ok_or_else(early)?;
                machine.volumes.commit(staging).map_err(|error| status(&error))?;
            }
            Some(Part::Begin(_)) => {
                return Err(Status::invalid_argument("the delivery before was not committed"));
            }
            None => return Err(Status::invalid_argument("a message of a delivery is empty")),
        }
    }
    match staging {
        None => Ok(PutVolumesResponse {}),
        Some(_) => Err(Status::aborted("the last delivery was not committed")),
    }
}

/// What there is.
pub(super) fn list(machine: &Machine) -> VolumesResponse {
    let volumes = machine.volumes.list().into_iter();
    VolumesResponse { volumes: volumes.map(|(id, revision)| Volume { id, revision }).collect() }
}

/// The content of a file, if it changed.
pub(super) fn read(
    machine: &Machine,
    request: &ReadVolumeRequest,
) -> Result<ResponseStream<ReadVolumeResponse>, Status> {
    use read_volume_response::Part;
    check_id(&request.id)?;
    let mut content = machine.volumes.content(&request.id).map_err(|error| status(&error))?;
    let bytes_max = request.bytes_max.min(READ_BYTES_MAX);
    let changed = content.changed(bytes_max).map_err(|error| status(&error))?;
    let (size_bytes, data) = changed.clone().unwrap_or_default();
    let file = VolumeFile { changed: changed.is_some(), size_bytes };
    let mut parts = vec![Part::File(file)];
    parts.extend(data.chunks(DATA_BYTES_MAX).map(|piece| Part::Data(piece.to_vec())));
    let messages = parts.into_iter().map(|part| Ok(ReadVolumeResponse { part: Some(part) }));
    Ok(Box::pin(futures::stream::iter(messages)))
}

/// A failure for the node.
pub(super) fn status(error: &VolumeError) -> Status {
    let code = match error {
        VolumeError::None(_) | VolumeError::NoPart { .. } => Code::NotFound,
        VolumeError::NoFile(_) | VolumeError::Invalid(_) => Code::InvalidArgument,
        VolumeError::OtherKind(_) | VolumeError::NotShared(_) => Code::FailedPrecondition,
        VolumeError::TooMany | VolumeError::TooMuch(_) => Code::ResourceExhausted,
        VolumeError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::StorageFull => {
            Code::ResourceExhausted
        }
        VolumeError::Io { .. } => Code::Internal,
    };
    Status::new(code, crate::lines::chain(error))
}

fn begin_of(begin: VolumeBegin) -> Result<Begin, Status> {
    check_id(&begin.id)?;
    if begin.revision.len() > REVISION_BYTES_MAX {
        return Err(Status::invalid_argument("the revision is too long"));
    }
    let kind = match begin.kind() {
        VolumeKind::Tree => Kind::Tree,
        VolumeKind::File => Kind::File,
        VolumeKind::Empty => Kind::Empty { memory_bytes: begin.memory_bytes },
        VolumeKind::Shared => Kind::Shared,
        VolumeKind::Unspecified => {
            return Err(Status::unimplemented("this agent does not know the kind of volume"));
        }
    };
    Ok(Begin { id: begin.id, kind, revision: begin.revision })
}

pub(super) fn entry_of(entry: VolumeEntry) -> Result<Entry, Status> {
    if entry.path.len() > PATH_BYTES_MAX || entry.target.len() > PATH_BYTES_MAX {
        return Err(Status::invalid_argument("a path of an entry is too long"));
    }
    let kind = match entry.kind() {
        VolumeEntryKind::Directory => EntryKind::Directory,
        VolumeEntryKind::File => EntryKind::File,
        VolumeEntryKind::Symlink => {
            EntryKind::Symlink(OsString::from_vec(entry.target.clone()).into())
        }
        VolumeEntryKind::Unspecified => {
            return Err(Status::unimplemented("this agent does not know the kind of entry"));
        }
    };
    Ok(Entry {
        path: OsString::from_vec(entry.path).into(),
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        modified: (entry.modified_unix_s, entry.modified_ns.min(999_999_999)),
    })
}

pub(super) const DATA_BYTES_MAX: usize = 256 * 1024;
const READ_BYTES_MAX: u64 = 16 << 20;
const REVISION_BYTES_MAX: usize = 256;
const PATH_BYTES_MAX: usize = 4096;
