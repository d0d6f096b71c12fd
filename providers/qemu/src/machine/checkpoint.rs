//! A machine's state on its way to a checkpoint, and out of one.
//!
//! The guest stands still while it is written, and goes on in any case: when all is written, when the disk is full, when the caller gives
//! up, and, if the daemon dies meanwhile, when the next one takes the machine up.

use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::{Machine, POLL, Phase, lock};
use crate::checkpoint::{CHUNK, Directory, Hash, Manifest, Shape, VERSION};
use crate::client::{Migration, Qmp};
use crate::error::QemuError;
use crate::process::Process;
use crate::record::Record;

impl Machine {
    /// Writes a checkpoint of a machine that runs, until `deadline` or until the caller is `gone`.
    pub(crate) async fn checkpoint(
        self: Arc<Self>,
        directory: PathBuf,
        deadline: Instant,
        gone: oneshot::Receiver<()>,
    ) -> Result<(), QemuError> {
        let directory = Directory::open(&directory)?;
        let _operation = self.operation.lock().await;
        let control = lock(&self.control).clone();
        let (Phase::Running, Some(control)) = (self.phase(), control) else {
            let (id, phase) = (self.id(), self.phase());
            return Err(QemuError::Conflict(format!("machine {id} is {phase:?}, not running")));
        };
        let qmp = control.qmp.ok_or_else(|| {
            QemuError::Conflict(format!("the QEMU of machine {} cannot be talked to", self.id()))
        })?;
        let state = directory.begin()?;
        let work = self.write(&qmp, control.process.record.pid, File::from_std(state));
        let written = tokio::select! {
            written = work => written,
            () = tokio::time::sleep_until(deadline) => Err(QemuError::Abandoned),
            _ = gone => Err(QemuError::Abandoned),
        };
        let finished = written.and_then(|manifest| directory.finish(&manifest));
        if finished.is_err() {
            directory.clear();
        }
        let went_on = self.go_on(&qmp).await;
        self.remove_socket();
        finished.and(went_on)
    }

    async fn write(&self, qmp: &Qmp, pid: i32, mut state: File) -> Result<Manifest, QemuError> {
        let control = |source| QemuError::Control { source };
        let record = self.record();
        let shape = self.shape(&record, qmp).await?;
        qmp.stop().await.map_err(control)?;
        let listener = self.listen(&record)?;
        qmp.migrate(&format!("unix:{SOCKET}")).await.map_err(control)?;
        let most = (record.memory_mib << 20) * 2 + DEVICES_BYTES;
        let copied = {
            let copying = receive(&listener, pid, &mut state, most);
            let migrating = async {
                // Its end is that of the stream as well, but for a failure before there is one.
                let ended = migrated(qmp).await;
                sleep(STREAM_REST).await;
                ended
            };
            tokio::pin!(copying, migrating);
            tokio::select! {
                copied = &mut copying => copied?,
                ended = &mut migrating => return Err(ended.err().unwrap_or(QemuError::Broken)),
            }
        };
        migrated(qmp).await?;
        state.sync_all().await.map_err(|source| QemuError::State { source })?;
        let (state_bytes, state_sha256) = copied;
        Ok(Manifest { version: VERSION, shape, state_bytes, state_sha256 })
    }

    /// Lets the guest run, whatever was on its way.
    async fn go_on(&self, qmp: &Qmp) -> Result<(), QemuError> {
        let deadline = Instant::now() + GO_ON_LIMIT;
        let control = |source| QemuError::Control { source };
        while qmp.migration().await.map_err(control)?.goes_on() {
            // Refused where it ended meanwhile.
            let _ = qmp.cancel_migration().await;
            if Instant::now() >= deadline {
                break;
            }
            sleep(POLL).await;
        }
        qmp.go_on().await.map_err(control)
    }

    /// Feeds a checkpoint to a QEMU that waits for it, and lets the guest go on from there.
    pub(super) async fn take_in(
        &self,
        qmp: &Qmp,
        process: &Process,
        path: &Path,
    ) -> Result<(), QemuError> {
        let control = |source| QemuError::Control { source };
        let directory = Directory::open(path)?;
        let manifest = directory.manifest()?;
        let record = self.record();
        let now = self.shape(&record, qmp).await?;
        manifest.shape.check(&now, path)?;
        let state = directory.state(&manifest)?;
        qmp.migrate_incoming(&format!("unix:{SOCKET}")).await.map_err(control)?;
        let pid = process.record.pid;
        let dir = std::fs::File::open(self.dir()).map_err(QemuError::io("open", self.dir()))?;
        let stream = UnixStream::connect(at(&dir)).await;
        let stream = stream.map_err(QemuError::io("connect to", self.dir()))?;
        if stream.peer_cred().ok().and_then(|peer| peer.pid()) != Some(pid) {
            return Err(QemuError::Control { source: crate::error::QmpError::Stranger });
        }
        let digest = send(File::from_std(state), stream).await;
        // What QEMU thinks of a stream that it broke off says more than that it did.
        migrated(qmp).await?;
        let digest = digest.map_err(QemuError::io("read", path))?;
        directory.check(&manifest, &digest)?;
        self.remove_socket();
        qmp.go_on().await.map_err(control)
    }

    async fn shape(&self, record: &Record, qmp: &Qmp) -> Result<Shape, QemuError> {
        let qemu = qmp.version().await.map_err(|source| QemuError::Control { source })?;
        Ok(self.shared.launcher.shape(record, qemu))
    }

    /// A socket in the machine's directory that its QEMU may connect to.
    fn listen(&self, record: &Record) -> Result<UnixListener, QemuError> {
        self.remove_socket();
        let dir = std::fs::File::open(self.dir()).map_err(QemuError::io("open", self.dir()))?;
        let bound = UnixListener::bind(at(&dir)).and_then(|listener| {
            chown(at(&dir), record.uid, record.uid)?;
            Ok(listener)
        });
        bound.map_err(QemuError::io("listen in", self.dir()))
    }

    fn remove_socket(&self) {
        // Not there is what is wanted.
        let _ = std::fs::remove_file(self.dir().join(SOCKET));
    }
}

/// Takes the one stream that QEMU sends; its length and digest.
async fn receive(
    listener: &UnixListener,
    pid: i32,
    state: &mut File,
    most: u64,
) -> Result<(u64, String), QemuError> {
    let failed = |source| QemuError::State { source };
    let mut stream = loop {
        let (stream, _) = timeout(CONNECT_LIMIT, listener.accept())
            .await
            .map_err(|_| QemuError::Deadline { doing: "the stream of the state" })?
            .map_err(failed)?;
        if stream.peer_cred().ok().and_then(|peer| peer.pid()) == Some(pid) {
            break stream;
        }
    };
    let (mut bytes, mut hash) = (0, Hash::new());
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = stream.read(&mut chunk).await.map_err(failed)?;
        if read == 0 {
            state.flush().await.map_err(failed)?;
            return Ok((bytes, hash.end()));
        }
        bytes += read as u64;
        if bytes > most {
            let problem = format!("the state has more than {most} bytes");
            return Err(failed(io::Error::other(problem)));
        }
        hash.take(&chunk[..read]);
        state.write_all(&chunk[..read]).await.map_err(failed)?;
    }
}

/// Sends all of a file, and answers its digest. QEMU closes the stream when it has what it needs.
async fn send(mut state: File, mut stream: UnixStream) -> io::Result<String> {
    let mut hash = Hash::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = state.read(&mut chunk).await?;
        if read == 0 {
            return Ok(hash.end());
        }
        hash.take(&chunk[..read]);
        stream.write_all(&chunk[..read]).await?;
    }
}

/// Waits for the end of a migration.
async fn migrated(qmp: &Qmp) -> Result<(), QemuError> {
    loop {
        match qmp.migration().await.map_err(|source| QemuError::Control { source })? {
            Migration::Completed => return Ok(()),
            Migration::Failed(reason) => return Err(QemuError::Migration { reason }),
            Migration::None | Migration::Active => sleep(POLL).await,
        }
    }
}

/// The socket, by a name that is short enough wherever the directory is.
fn at(dir: &std::fs::File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

/// Seen from the directory in which QEMU runs.
const SOCKET: &str = "control/state";
/// What a stream may have beside memory.
const DEVICES_BYTES: u64 = 64 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const GO_ON_LIMIT: Duration = Duration::from_secs(10);
/// How long the end of a stream may come after that of its migration.
const STREAM_REST: Duration = Duration::from_secs(5);
