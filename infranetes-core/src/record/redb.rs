//! The store on disk: one file, written by one thread, many wishes per commit.
//!
//! Commits that wait together become one transaction and share its `fsync`. The file carries a sum over all of its
//! entries; before anything is written to a file that was found, a copy of it is read in memory and compared with its
//! sum, so that a damaged file is refused as it is, and never repaired behind anybody's back. (A file that its last
//! writer did not close is no damaged file: what was committed is there, what was not is not.)

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use async_trait::async_trait;
use redb::backends::InMemoryBackend;
use redb::{Database, StorageBackend};
use tokio::sync::{mpsc, oneshot};

use crate::record::disk::{self, Disk};
use crate::record::{Change, Entry, RecordError, RecordStore};

/// Records in a file. Clones are the same store; the file is closed and its lock free when the last one is dropped.
#[derive(Clone)]
pub struct RedbStore {
    jobs: mpsc::Sender<Job>,
}

enum Job {
    Visit(mpsc::Sender<Result<Vec<Entry>, RecordError>>),
    Commit(Vec<Change>, oneshot::Sender<Result<(), RecordError>>),
}

impl RedbStore {
    /// Opens the file, or makes it when there is none. Its directory has to exist; the file is for its owner alone.
    ///
    /// Fails with [`RecordError::InUse`] while another process, or another store of this one, has it open, with
    /// [`RecordError::Damaged`] or [`RecordError::TooNew`] without having changed it.
    pub async fn open(path: &Path) -> Result<Self, RecordError> {
        let (opened, answer) = oneshot::channel();
        let (jobs, receiver) = mpsc::channel(JOBS_MAX);
        let path = path.to_owned();
        thread::Builder::new()
            .name("record".to_owned())
            .spawn(move || match open_locked(&path) {
                Ok((disk, lock)) => {
                    // Whoever asked may be gone; then there are no jobs either.
                    let _ = opened.send(Ok(()));
                    serve(disk, receiver);
                    drop(lock);
                }
                Err(error) => drop(opened.send(Err(error))),
            })
            .map_err(|error| RecordError::Io(error.into()))?;
        answer.await.unwrap_or_else(|_| Err(stopped()))?;
        Ok(Self { jobs })
    }
}

#[async_trait]
impl RecordStore for RedbStore {
    async fn visit(&self, take: &mut (dyn FnMut(Entry) + Send)) -> Result<(), RecordError> {
        // Piece by piece: memory that this thread gives back, only the other one can use again.
        let (pieces, mut answer) = mpsc::channel(1);
        self.jobs.send(Job::Visit(pieces)).await.map_err(|_| stopped())?;
        while let Some(piece) = answer.recv().await {
            let piece = piece?;
            // An empty one is the end.
            if piece.is_empty() {
                return Ok(());
            }
            piece.into_iter().for_each(&mut *take);
        }
        Err(stopped())
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), RecordError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Commit(changes, reply)).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

/// The thread: takes what waits, writes it as one, answers all.
fn serve(mut disk: Disk, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        let mut changes = Vec::new();
        let mut writers = Vec::new();
        let mut readers = Vec::new();
        for job in batch {
            match job {
                Job::Visit(reader) => readers.push(reader),
                Job::Commit(more, reply) => {
                    changes.extend(more);
                    writers.push(reply);
                }
            }
        }
        if !writers.is_empty() {
            let result = disk.write(&changes);
            for reply in writers {
                let _ = reply.send(match &result {
                    Ok(()) => Ok(()),
                    Err(error) => Err(error.echo()),
                });
            }
        }
        for reader in readers {
            visit(&mut disk, &reader);
        }
    }
}

/// Sends everything in pieces, and then an empty one, or what is wrong. A reader that goes away ends it.
fn visit(disk: &mut Disk, reader: &mpsc::Sender<Result<Vec<Entry>, RecordError>>) {
    let mut piece = Vec::new();
    let read = disk.read(|entry| {
        piece.push(entry);
        if piece.len() == PIECE_ENTRIES {
            let _ = reader.blocking_send(Ok(std::mem::take(&mut piece)));
        }
    });
    if read.is_ok() && !piece.is_empty() {
        let _ = reader.blocking_send(Ok(piece));
    }
    let _ = reader.blocking_send(read.map(|()| Vec::new()));
}

fn open_locked(path: &Path) -> Result<(Disk, File), RecordError> {
    let lock = lock(path)?;
    if !path.try_exists().map_err(disk::io_error)? {
        make(path)?;
    }
    verify_copy(path)?;
    Ok((Disk::open(path)?, lock))
}

/// The lock has a file of its own, so that it is held before the first byte of the record is looked at.
fn lock(path: &Path) -> Result<File, RecordError> {
    let mut options = OpenOptions::new();
    let lock =
        options.create(true).truncate(false).write(true).mode(0o600).open(beside(path, "lock"));
    let lock = lock.map_err(disk::io_error)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => {
            Err(RecordError::InUse { path: path.display().to_string() })
        }
        Err(fs::TryLockError::Error(error)) => Err(disk::io_error(error)),
    }
}

/// A new file gets its name when it is complete: one that is empty under that name was never made by us.
fn make(path: &Path) -> Result<(), RecordError> {
    let half = beside(path, "new");
    match fs::remove_file(&half) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(disk::io_error(error)),
    }
    let mut options = OpenOptions::new();
    let file = options.create_new(true).read(true).write(true).mode(0o600).open(&half);
    let file = file.map_err(disk::io_error)?;
    let database =
        disk::builder().create_file(file).map_err(|error| disk::failed(path, error.into()))?;
    disk::initialise(path, &database)?;
    drop(database);
    fs::rename(&half, path).map_err(disk::io_error)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(directory.unwrap_or(Path::new("."))).map_err(disk::io_error)?;
    directory.sync_all().map_err(disk::io_error)
}

/// Opens, reads and writes a copy in memory: the file itself stays untouched until it is known to be whole.
fn verify_copy(path: &Path) -> Result<(), RecordError> {
    let bytes = fs::read(path).map_err(disk::io_error)?;
    let copy = InMemoryBackend::new();
    let filled = copy.set_len(bytes.len() as u64).and_then(|()| copy.write(0, &bytes));
    filled.map_err(disk::io_error)?;
    drop(bytes);
    disk::caught(path, move || {
        let database: Database = disk::builder()
            .create_with_backend(copy)
            .map_err(|error| disk::damaged(path, redb::Error::from(error)))?;
        disk::rehearse(path, &database)
    })
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn stopped() -> RecordError {
    RecordError::Io("the thread of the record has stopped".into())
}

const JOBS_MAX: usize = 1024;
const BATCH_MAX: usize = 256;
const PIECE_ENTRIES: usize = 64;
