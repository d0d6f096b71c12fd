//! All machines of an instance: what there is on disk, and what runs.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use infranetes_sdk::pod::{CreateRequest, Leftover};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::cgroup::Cgroups;
use crate::check::check_create;
use crate::client;
use crate::config::Config;
use crate::dir::{self, Entry, MachineDir};
use crate::error::ProcessError;
use crate::machine::{Machine, Phase, Shared};
use crate::plan::{Size, Sizes};
use crate::process;
use crate::record::{Power, Record, VERSION};

/// The machines of one run directory. There is one registry for it at a time.
#[derive(Debug)]
pub(crate) struct Registry {
    shared: Arc<Shared>,
    machines: PathBuf,
    sizes: Sizes,
    known: Mutex<BTreeMap<String, Arc<Machine>>>,
    /// Held while a machine is made, so that limits and tokens are given out once.
    making: Mutex<()>,
}

impl Registry {
    /// Takes up a run directory and every machine in it.
    pub(crate) async fn open(config: Config, run_dir: &Path) -> Result<Arc<Self>, ProcessError> {
        let run_dir = std::path::absolute(run_dir).map_err(ProcessError::io("find", run_dir))?;
        let machines = run_dir.join(MACHINES);
        let bytes = dir::too_long(&machines, id_of("").len());
        if bytes > 0 {
            return Err(ProcessError::LongPath { path: run_dir, bytes });
        }
        dir::make_private(&machines).map_err(ProcessError::io("make", &machines))?;
        let lock = lock_dir(&run_dir).await?;
        if let Err(error) = client::check(&config) {
            let reason = error.chain();
            tracing::warn!(reason, "no machine can be made before this is changed");
        }
        let registry = Arc::new(Self {
            sizes: Sizes::of(&config),
            known: Mutex::default(),
            making: Mutex::default(),
            shared: Arc::new(Shared {
                cgroups: Cgroups::new(&config.cgroup),
                cgroup_prefix: format!("{:08x}", short_hash(&run_dir)),
                events: broadcast::Sender::new(EVENTS),
                closing: watch::Sender::new(false),
                _lock: lock,
                config,
            }),
            machines,
        });
        registry.load().await?;
        Ok(registry)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn sizes(&self) -> Sizes {
        self.sizes
    }

    pub(crate) fn get(&self, id: &str) -> Result<Arc<Machine>, ProcessError> {
        let found = lock(&self.known).get(id).cloned();
        found
            .filter(|machine| machine.phase() != Phase::Gone)
            .ok_or_else(|| ProcessError::NoSuchMachine { id: id.to_owned() })
    }

    /// In the order of their ids.
    pub(crate) fn all(&self) -> Vec<Arc<Machine>> {
        let known = lock(&self.known);
        known.values().filter(|machine| machine.phase() != Phase::Gone).cloned().collect()
    }

    /// Makes the machine of a request and starts it, or finds the one that an earlier call made. Blocks on the disk.
    pub(crate) fn create(
        &self,
        request: &CreateRequest,
        runtime: &Handle,
    ) -> Result<Arc<Machine>, ProcessError> {
        check_create(request)?;
        let size = self.sizes.resolve(request.machine_type.as_ref())?;
        let id = id_of(&request.token);
        let _making = lock(&self.making);
        if let Ok(there) = self.get(&id) {
            return same_shape(&there, request, size).map(|()| there);
        }
        client::check(&self.shared.config)?;
        let limit = self.shared.config.max_machines;
        if self.all().len() >= limit as usize {
            return Err(ProcessError::TooMany { limit });
        }
        let record = new_record(id.clone(), request, size);
        let dir = MachineDir::of(&self.machines, &id);
        dir.make(&record, &request.user_data)?;
        let machine = Machine::new(self.shared.clone(), dir, record, Phase::Creating);
        let machine = Arc::new(machine);
        lock(&self.known).insert(id, machine.clone());
        runtime.spawn(machine.clone().launch());
        Ok(machine)
    }

    /// Removes a machine and all that it owns. Not there is success.
    pub(crate) async fn destroy(&self, id: &str) -> Result<(), ProcessError> {
        match self.get(id) {
            Ok(machine) => machine.destroy().await?,
            Err(_) => self.remove_leftovers(id)?,
        }
        let _making = lock(&self.making);
        let mut known = lock(&self.known);
        if known.get(id).is_some_and(|machine| machine.phase() == Phase::Gone) {
            known.remove(id);
        }
        Ok(())
    }

    /// What is on disk or in the kernel and belongs to no machine.
    pub(crate) fn sweep(
        &self,
        tags: &BTreeMap<String, String>,
    ) -> Result<Vec<Leftover>, ProcessError> {
        let _making = lock(&self.making);
        let mut left = Vec::new();
        for entry in self.entries()? {
            let id = match &entry {
                Entry::Machine(id) if lock(&self.known).contains_key(id) => continue,
                Entry::Machine(id) | Entry::New(id) | Entry::Gone(id) => id.clone(),
            };
            let record = Record::load(&entry.path(&self.machines)).ok();
            let (found, created_unix_ms) =
                record.map(|record| (record.tags, record.created_unix_ms)).unwrap_or_default();
            if tags.iter().all(|(key, value)| found.get(key) == Some(value)) {
                let kind = "directory".to_owned();
                let tags = found.into_iter().collect();
                left.push(Leftover { kind, id, tags, created_unix_ms });
            }
        }
        if tags.is_empty() {
            left.extend(self.stray_cgroups().into_iter().map(|name| Leftover {
                kind: "cgroup".to_owned(),
                id: name,
                ..Default::default()
            }));
        }
        Ok(left)
    }

    /// Takes up what an earlier daemon left. A directory whose record cannot be read is left alone.
    async fn load(&self) -> Result<(), ProcessError> {
        let mut adoptions = Vec::new();
        for entry in self.entries()? {
            let path = entry.path(&self.machines);
            let Entry::Machine(id) = entry else {
                if let Err(error) = dir::remove_if_there(&path) {
                    tracing::warn!(path = %path.display(), %error, "a leftover cannot be removed");
                }
                continue;
            };
            match Record::load(&path) {
                Ok(record) if record.id == id => adoptions.extend(self.take_up(record)),
                Ok(_) => tracing::error!(path = %path.display(), "the record is another machine's"),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a machine's record cannot be read");
                }
            }
        }
        for name in self.stray_cgroups() {
            if let Err(error) = self.shared.cgroups.remove(&name) {
                tracing::warn!(name, %error, "a cgroup that was left cannot be removed");
            }
        }
        // Normally this takes no time. What has to be cleaned up first goes on by itself.
        if timeout(ADOPTION_LIMIT, join_all(adoptions)).await.is_err() {
            tracing::warn!("not every machine of an earlier daemon is taken up yet");
        }
        Ok(())
    }

    /// The answer is the task that takes up a machine which ran, until it is watched.
    fn take_up(&self, record: Record) -> Option<JoinHandle<()>> {
        let phase = phase_of(&record);
        let id = record.id.clone();
        let dir = MachineDir::of(&self.machines, &id);
        let machine = Arc::new(Machine::new(self.shared.clone(), dir, record, phase));
        lock(&self.known).insert(id, machine.clone());
        let adoption = tokio::spawn(machine.adopt());
        // Waiting for an agent that does not listen yet could take long.
        (phase != Phase::Creating).then_some(adoption)
    }

    /// Of this run directory, and of no machine that is known or has a directory.
    fn stray_cgroups(&self) -> Vec<String> {
        let own = format!("{}-", self.shared.cgroup_prefix);
        let mut names = self.shared.cgroups.names();
        names.retain(|name| {
            name.strip_prefix(&own).is_some_and(|id| {
                !lock(&self.known).contains_key(id) && !self.machines.join(id).exists()
            })
        });
        names
    }

    fn remove_leftovers(&self, id: &str) -> Result<(), ProcessError> {
        let _making = lock(&self.making);
        if id.is_empty() || id.starts_with('.') || id.contains('/') {
            return Ok(());
        }
        if self.machines.join(id).exists() {
            let dir = self.machines.join(id).display().to_string();
            return Err(ProcessError::Conflict(format!(
                "the record of machine {id} cannot be read: end its processes and remove {dir}"
            )));
        }
        if self.stray_cgroups().iter().any(|name| name == id) {
            let cgroup = self.shared.cgroups.remove(id);
            cgroup.map_err(|source| ProcessError::Cgroup { id: id.to_owned(), source })?;
        }
        for entry in [Entry::New(id.to_owned()), Entry::Gone(id.to_owned())] {
            let path = entry.path(&self.machines);
            dir::remove_if_there(&path).map_err(ProcessError::io("remove", &path))?;
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Entry>, ProcessError> {
        dir::entries(&self.machines).map_err(ProcessError::io("list", &self.machines))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.closing.send_replace(true);
    }
}

/// What a machine does as far as its record tells; taking it up then finds out.
fn phase_of(record: &Record) -> Phase {
    match (&record.end, record.wanted) {
        (Some(end), _) if end.failed => Phase::Failed,
        (Some(_), _) => Phase::Stopped,
        (None, Power::Off) => Phase::Stopping,
        (None, Power::On) if record.agent.is_some() => Phase::Running,
        (None, Power::On) => Phase::Creating,
    }
}

fn same_shape(there: &Machine, request: &CreateRequest, size: Size) -> Result<(), ProcessError> {
    let record = there.record();
    let id = &record.id;
    if there.phase() == Phase::Destroying {
        let problem = format!("machine {id} of this token is being destroyed");
        return Err(ProcessError::Conflict(problem));
    }
    let same = record.token == request.token
        && record.name == request.name
        && record.machine_type == size.name()
        && record.namespace == namespace(request)
        && record.tags == request.tags.clone().into_iter().collect()
        && there.dir().user_data().is_ok_and(|user_data| user_data == request.user_data);
    match same {
        true => Ok(()),
        false => Err(ProcessError::Conflict(format!("machine {id} was made with another shape"))),
    }
}

fn namespace(request: &CreateRequest) -> Option<PathBuf> {
    let path = request.network.as_ref().map(|network| network.namespace_path.as_str());
    path.filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn new_record(id: String, request: &CreateRequest, size: Size) -> Record {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Record {
        version: VERSION,
        id,
        token: request.token.clone(),
        name: request.name.clone(),
        tags: request.tags.clone().into_iter().collect(),
        machine_type: size.name(),
        created_unix_ms: u64::try_from(now.as_millis()).unwrap_or_default(),
        namespace: namespace(request),
        wanted: Power::On,
        boot_id: process::boot_id(),
        keeper: None,
        agent: None,
        end: None,
    }
}

/// The last registry of this directory may be about to end: its tasks let go one by one.
async fn lock_dir(run_dir: &Path) -> Result<File, ProcessError> {
    let path = run_dir.join("lock");
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(ProcessError::io("open", &path))?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(LOCK_POLL).await,
            Err(TryLockError::WouldBlock) => {
                return Err(ProcessError::InUse { path: run_dir.to_owned() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(ProcessError::Io { doing: "lock", path, source });
            }
        }
    }
}

fn id_of(token: &str) -> String {
    format!("p-{:016x}", fnv(token.as_bytes()))
}

fn short_hash(path: &Path) -> u32 {
    let hash = fnv(path.as_os_str().as_encoded_bytes());
    u32::try_from(hash >> 32).unwrap_or_default()
}

/// FNV-1a: ids only have to differ; whether the token is truly the same is compared in full.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Short, because sockets are below it.
const MACHINES: &str = "m";
const EVENTS: usize = 256;
const ADOPTION_LIMIT: Duration = Duration::from_secs(5);
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(20);
