//! All machines of an instance: what there is on disk, and what runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use infranetes_sdk::pod::{CreateRequest, Leftover};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep};

use crate::cgroup::Cgroups;
use crate::check::check_create;
use crate::checkpoint::Directory;
use crate::config::Config;
use crate::dir::{self, Entry, MachineDir};
use crate::error::QemuError;
use crate::files::Files;
use crate::launch::Launcher;
use crate::machine::{Machine, Phase, Shared};
use crate::node;
use crate::plan::{Size, Sizes};
use crate::process;
use crate::record::{Power, Record, VERSION};

/// The machines of one run directory. There is one registry for it at a time.
#[derive(Debug)]
pub(crate) struct Registry {
    shared: Arc<Shared>,
    machines: PathBuf,
    sizes: Sizes,
    memory_limit_mib: u64,
    drops_root: bool,
    known: Mutex<BTreeMap<String, Arc<Machine>>>,
    /// Held while a machine is made, so that limits, users and tokens are given out once.
    making: Mutex<()>,
    /// Kept locked.
    _lock: File,
}

impl Registry {
    /// Takes up a run directory and every machine in it.
    pub(crate) async fn open(config: Config, run_dir: &Path) -> Result<Arc<Self>, QemuError> {
        let machines = run_dir.join("machines");
        make_dirs(run_dir, &machines)?;
        let lock = lock_dir(run_dir).await?;
        let drops_root = process::is_root();
        let acceleration = node::acceleration(config.accel, drops_root);
        tracing::info!(kvm = acceleration.kvm, why = acceleration.why, "how guests run");
        let node_mib = node::memory_mib();
        let memory_limit_mib = config.memory_limit_mib.unwrap_or(node_mib);
        let registry = Arc::new(Self {
            sizes: Sizes {
                types: config.types.clone(),
                floor_mib: config.memory_floor_mib,
                max_cpus: config.max_cpus.unwrap_or((2 * node::cpus()).max(4)),
                max_memory_mib: memory_limit_mib,
            },
            memory_limit_mib,
            drops_root,
            known: Mutex::default(),
            making: Mutex::default(),
            _lock: lock,
            shared: Arc::new(Shared {
                files: Files::new(&config, &machines),
                cgroups: Cgroups::new(&config.cgroup),
                cgroup_prefix: format!(
                    "{:08x}",
                    fnv(run_dir.as_os_str().as_encoded_bytes()) as u32
                ),
                events: broadcast::Sender::new(EVENTS),
                closing: watch::Sender::new(false),
                launcher: Launcher { config, acceleration },
            }),
            machines,
        });
        if let Err(error) = registry.shared.files.check() {
            tracing::warn!(%error, "no machine can be made before this is there");
        }
        registry.load()?;
        Ok(registry)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    pub(crate) fn get(&self, id: &str) -> Result<Arc<Machine>, QemuError> {
        let found = lock(&self.known).get(id).cloned();
        found
            .filter(|machine| machine.phase() != Phase::Gone)
            .ok_or_else(|| QemuError::NoSuchMachine { id: id.to_owned() })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Machine>> {
        let known = lock(&self.known);
        known.values().filter(|machine| machine.phase() != Phase::Gone).cloned().collect()
    }

    /// Makes the machine of a request and starts it, or finds the one that an earlier call made. Blocks on the disk.
    pub(crate) fn create(
        self: &Arc<Self>,
        request: &CreateRequest,
        runtime: &Handle,
    ) -> Result<Arc<Machine>, QemuError> {
        check_create(request)?;
        let size = self.sizes.resolve(request.machine_type.as_ref())?;
        let id = id_of(&request.token);
        let _making = lock(&self.making);
        if let Ok(there) = self.get(&id) {
            return same_shape(&there, request, &size).map(|()| there);
        }
        self.shared.files.check()?;
        self.check_room(&size)?;
        let record = self.new_record(id, request, size)?;
        let dir = MachineDir::of(&self.machines, &record.id);
        dir.make(&record, &request.user_data)?;
        let id = record.id.clone();
        let machine = Machine::new(self.shared.clone(), dir, record, Phase::Creating);
        let machine = Arc::new(machine);
        lock(&self.known).insert(id, machine.clone());
        runtime.spawn(machine.clone().launch());
        Ok(machine)
    }

    /// Reads all of a checkpoint that a machine is to go on from, unless that machine is there already. Blocks on the disk.
    pub(crate) fn check_checkpoint(&self, request: &CreateRequest) -> Result<(), QemuError> {
        let Some(path) = checkpoint(request) else { return Ok(()) };
        if self.get(&id_of(&request.token)).is_ok() {
            return Ok(());
        }
        let directory = Directory::open(&path)?;
        let manifest = directory.manifest()?;
        let size = self.sizes.resolve(request.machine_type.as_ref())?;
        let (then, now) = (manifest.shape.memory_mib, size.memory_mib);
        if (then, manifest.shape.cpus) != (now, size.cpus()) {
            let cpus = (manifest.shape.cpus, size.cpus());
            let problem = format!(
                "its machine had {then} MiB and {} CPUs, and this one has {now} MiB and {}",
                cpus.0, cpus.1
            );
            return Err(QemuError::Checkpoint { path, problem });
        }
        directory.verify(&manifest)
    }

    /// Removes a machine and all that it owns. Not there is success.
    pub(crate) async fn destroy(&self, id: &str) -> Result<(), QemuError> {
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
    ) -> Result<Vec<Leftover>, QemuError> {
        let _making = lock(&self.making);
        let mut left = Vec::new();
        let entries =
            dir::entries(&self.machines).map_err(QemuError::io("list", &self.machines))?;
        for entry in entries {
            let id = match &entry {
                Entry::Machine(id) if lock(&self.known).contains_key(id) => continue,
                Entry::Machine(id) | Entry::New(id) | Entry::Gone(id) => id.clone(),
            };
            let record = Record::load(&dir::path_of(&self.machines, &entry)).ok();
            let (found, created_unix_ms) =
                record.map(|record| (record.tags, record.created_unix_ms)).unwrap_or_default();
            if tags.iter().all(|(key, value)| found.get(key) == Some(value)) {
                let tags = found.into_iter().collect();
                left.push(Leftover { kind: "directory".to_owned(), id, tags, created_unix_ms });
            }
        }
        if tags.is_empty() {
            left.extend(self.stray_cgroups().into_iter().map(|id| Leftover {
                kind: "cgroup".to_owned(),
                id,
                ..Default::default()
            }));
        }
        Ok(left)
    }

    /// Memory of machines that run or may run again by themselves.
    pub(crate) fn used_memory_mib(&self) -> u64 {
        self.all()
            .iter()
            .filter(|machine| !matches!(machine.phase(), Phase::Stopped | Phase::Failed))
            .map(|machine| machine.record().memory_mib)
            .sum()
    }

    pub(crate) fn memory_limit_mib(&self) -> u64 {
        self.memory_limit_mib
    }

    fn check_room(&self, size: &Size) -> Result<(), QemuError> {
        let limit = self.shared.launcher.config.max_machines;
        if self.all().len() >= limit as usize {
            return Err(QemuError::TooMany { limit });
        }
        let free_mib = self.memory_limit_mib.saturating_sub(self.used_memory_mib());
        if size.memory_mib > free_mib {
            let (needed_mib, limit_mib) = (size.memory_mib, self.memory_limit_mib);
            return Err(QemuError::NoMemory { needed_mib, free_mib, limit_mib });
        }
        Ok(())
    }

    fn new_record(
        &self,
        id: String,
        request: &CreateRequest,
        size: Size,
    ) -> Result<Record, QemuError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Record {
            version: VERSION,
            id,
            token: request.token.clone(),
            name: request.name.clone(),
            tags: request.tags.clone().into_iter().collect(),
            machine_type: size.name,
            cpu_millis: size.cpu_millis,
            memory_mib: size.memory_mib,
            created_unix_ms: u64::try_from(now.as_millis()).unwrap_or_default(),
            namespace: namespace(request),
            interfaces: Vec::new(),
            checkpoint: checkpoint(request),
            uid: if self.drops_root { Some(self.free_uid()?) } else { None },
            wanted: Power::On,
            boot_id: process::boot_id(),
            process: None,
            port: None,
            end: None,
        })
    }

    fn free_uid(&self) -> Result<u32, QemuError> {
        let range = self.shared.launcher.config.uids;
        let taken: BTreeSet<u32> =
            lock(&self.known).values().filter_map(|machine| machine.record().uid).collect();
        (range.first..range.first + range.count)
            .find(|uid| !taken.contains(uid))
            .ok_or(QemuError::NoUid { first: range.first, count: range.count })
    }

    /// Takes up what an earlier daemon left. A directory whose record cannot be read is left alone.
    fn load(self: &Arc<Self>) -> Result<(), QemuError> {
        let entries =
            dir::entries(&self.machines).map_err(QemuError::io("list", &self.machines))?;
        for entry in entries {
            let path = dir::path_of(&self.machines, &entry);
            let Entry::Machine(id) = entry else {
                if let Err(error) = dir::remove_if_there(&path) {
                    tracing::warn!(path = %path.display(), %error, "a leftover cannot be removed");
                }
                continue;
            };
            match Record::load(&path) {
                Ok(record) if record.id == id => self.take_up(record),
                Ok(_) => tracing::error!(path = %path.display(), "the record is another machine's"),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a machine's record cannot be read");
                }
            }
        }
        for name in self.stray_cgroups() {
            self.shared.cgroups.remove(&name);
        }
        Ok(())
    }

    fn take_up(self: &Arc<Self>, record: Record) {
        let phase = phase_of(&record);
        let id = record.id.clone();
        let dir = MachineDir::of(&self.machines, &id);
        let machine = Arc::new(Machine::new(self.shared.clone(), dir, record, phase));
        lock(&self.known).insert(id, machine.clone());
        tokio::spawn(machine.adopt());
    }

    fn stray_cgroups(&self) -> Vec<String> {
        let known = lock(&self.known);
        let own = format!("{}-", self.shared.cgroup_prefix);
        let mut names = self.shared.cgroups.names();
        names.retain(|name| name.strip_prefix(&own).is_some_and(|id| !known.contains_key(id)));
        names
    }

    fn remove_leftovers(&self, id: &str) -> Result<(), QemuError> {
        let _making = lock(&self.making);
        if id.is_empty() || id.starts_with('.') || id.contains('/') {
            return Ok(());
        }
        if self.machines.join(id).exists() {
            let dir = self.machines.join(id).display().to_string();
            return Err(QemuError::Conflict(format!(
                "the record of machine {id} cannot be read: end its process and remove {dir}"
            )));
        }
        self.shared.cgroups.remove(id);
        for entry in [Entry::New(id.to_owned()), Entry::Gone(id.to_owned())] {
            let path = dir::path_of(&self.machines, &entry);
            dir::remove_if_there(&path).map_err(QemuError::io("remove", &path))?;
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.closing.send_replace(true);
    }
}

fn checkpoint(request: &CreateRequest) -> Option<PathBuf> {
    (!request.checkpoint.is_empty()).then(|| PathBuf::from(&request.checkpoint))
}

fn namespace(request: &CreateRequest) -> Option<PathBuf> {
    let path = request.network.as_ref().map(|network| network.namespace_path.as_str());
    path.filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// What a machine does as far as its record tells; taking it up then finds out.
fn phase_of(record: &Record) -> Phase {
    match (&record.end, record.wanted, record.process, record.port) {
        (Some(end), ..) if end.failed => Phase::Failed,
        (Some(_), ..) => Phase::Stopped,
        (None, Power::On, Some(_), Some(_)) => Phase::Running,
        (None, Power::Off, Some(_), Some(_)) => Phase::Stopping,
        (None, Power::On, ..) => Phase::Creating,
        (None, Power::Off, ..) => Phase::Stopped,
    }
}

fn same_shape(there: &Machine, request: &CreateRequest, size: &Size) -> Result<(), QemuError> {
    let record = there.record();
    let user_data = there.user_data();
    let same = record.token == request.token
        && record.name == request.name
        && record.machine_type == size.name
        && record.namespace == namespace(request)
        // One that went on from its checkpoint says no more from which.
        && (record.checkpoint.is_none() || record.checkpoint == checkpoint(request))
        && record.tags == request.tags.clone().into_iter().collect()
        && user_data.is_ok_and(|user_data| user_data == request.user_data);
    if there.phase() == Phase::Destroying {
        let id = record.id;
        return Err(QemuError::Conflict(format!("machine {id} of this token is being destroyed")));
    }
    match same {
        true => Ok(()),
        false => {
            let id = record.id;
            Err(QemuError::Conflict(format!("machine {id} was made with another shape")))
        }
    }
}

fn make_dirs(run_dir: &Path, machines: &Path) -> Result<(), QemuError> {
    fs::create_dir_all(run_dir).map_err(QemuError::io("make", run_dir))?;
    fs::create_dir_all(machines).map_err(QemuError::io("make", machines))?;
    // The users of machines pass through it, and see nothing.
    let open = fs::set_permissions(machines, Permissions::from_mode(0o711));
    open.map_err(QemuError::io("open", machines))
}

/// The last registry of this directory may be about to end: its tasks let go one by one.
async fn lock_dir(run_dir: &Path) -> Result<File, QemuError> {
    let path = run_dir.join("lock");
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(QemuError::io("open", &path))?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(LOCK_POLL).await,
            Err(TryLockError::WouldBlock) => {
                return Err(QemuError::InUse { path: run_dir.to_owned() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(QemuError::Io { doing: "lock", path, source });
            }
        }
    }
}

fn id_of(token: &str) -> String {
    format!("vm-{:016x}", fnv(token.as_bytes()))
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

const EVENTS: usize = 256;
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(20);
