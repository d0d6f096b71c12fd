//! The pod network as the engine sees it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use infranetes_core::ids::SandboxId;
use infranetes_core::network::{Attachment, NetworkError, NetworkWish, PodNetwork, Prefix};
use tokio::sync::RwLock;
use tokio::time::sleep;

use crate::care::{self, Place, Readiness};
use crate::chain::Chain;
use crate::error::CniError;
use crate::list::NetworkList;
use crate::state::{self, Connection, StateDir};
use crate::unhurried::unhurried;
use crate::{capabilities, layout, namespace, orphans, plugin, result};

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniSettings {
    /// Directory of CNI configurations; the first by name counts.
    pub conf_dir: PathBuf,
    /// Directories of plugins, in the order in which they are searched.
    pub bin_dirs: Vec<PathBuf>,
    /// Directory in which namespaces are pinned; better not on a disk.
    pub namespace_dir: PathBuf,
    /// Directory for what has to survive this process.
    pub state_dir: PathBuf,
}

/// The pod network that the node's CNI plugins make.
#[derive(Debug)]
pub struct CniNetwork {
    settings: CniSettings,
    ranges: Mutex<Vec<Prefix>>,
    readiness: Readiness,
    /// A GC has it alone: what is being connected meanwhile would be neither among what stays nor safe.
    gate: RwLock<()>,
}

impl CniNetwork {
    /// A network over these directories. Nothing is made before the first sandbox.
    pub fn new(settings: CniSettings) -> Self {
        let ranges = state::load::<Vec<String>>(&ranges_file(&settings));
        let ranges = ranges.unwrap_or_else(|error| {
            tracing::warn!(%error, "the kubelet has to tell the pods' ranges again");
            None
        });
        let ranges = ranges.unwrap_or_default().into_iter().filter_map(|text| text.parse().ok());
        Self {
            ranges: Mutex::new(ranges.collect()),
            settings,
            readiness: Readiness::default(),
            gate: RwLock::default(),
        }
    }

    async fn connect(&self, wish: &NetworkWish) -> Result<Attachment, CniError> {
        self.clear(&wish.sandbox).await?;
        let list = NetworkList::first(&self.settings.conf_dir)?;
        let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut connection = Connection {
            version: state::VERSION,
            runtime: capabilities::of(wish, &ranges, &list)?,
            list,
            bin_dirs: self.settings.bin_dirs.clone(),
            args: args(wish)?,
            interface: INTERFACE.to_owned(),
            result: None,
        };
        let dir = self.dir(&wish.sandbox);
        unhurried(|| dir.save(&connection))?;
        let path = self.namespace(&wish.sandbox);
        let pinned = path.clone();
        let made = tokio::task::spawn_blocking(move || namespace::make(&pinned)).await;
        made.map_err(std::io::Error::other)
            .and_then(|made| made)
            .map_err(CniError::io("make the network namespace", &path))?;
        let result = self.chain(&connection, &wish.sandbox).add().await?;
        connection.result = Some(result.clone());
        unhurried(|| dir.save(&connection))?;
        let name = &connection.list.name;
        let made = result::made(&result, INTERFACE).map_err(|problem| CniError::NoResult {
            plugin: name.clone(),
            verb: "ADD",
            problem,
        })?;
        if made.ips.is_empty() {
            return Err(CniError::NoAddress(name.clone()));
        }
        tracing::info!(sandbox = %wish.sandbox, network = name, ips = ?made.ips, "connected");
        let layout = layout::read(&path).await?;
        Ok(Attachment { namespace: path, ips: made.ips, dns: made.dns, layout })
    }

    /// Takes down what an earlier attempt made. A plugin that was killed half-way may refuse the first DEL over what it
    /// does not find, and has less to look for at the next: Debian's bridge does so over the chain of its masquerading.
    async fn clear(&self, sandbox: &SandboxId) -> Result<(), CniError> {
        for _ in 1..CLEAR_TRIES {
            match self.disconnect(sandbox).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(sandbox = %sandbox, %error, "an earlier attempt is not taken down yet")
                }
            }
            sleep(CLEAR_PAUSE).await;
        }
        self.disconnect(sandbox).await
    }

    async fn examine(&self, sandbox: &SandboxId) -> Result<(), CniError> {
        let connection = self.dir(sandbox).load()?.ok_or(CniError::NotConnected)?;
        let path = self.namespace(sandbox);
        if !namespace::is_there(&path) {
            return Err(CniError::NamespaceGone(path));
        }
        if !connection.list.can_check() {
            return Ok(());
        }
        self.chain(&connection, sandbox).check().await
    }

    async fn disconnect(&self, sandbox: &SandboxId) -> Result<(), CniError> {
        let dir = self.dir(sandbox);
        orphans::end(&dir.stdin(), orphans::GRACE).await?;
        if let Some(connection) = dir.load()? {
            self.chain(&connection, sandbox).del().await?;
            tracing::info!(sandbox = %sandbox, network = connection.list.name, "disconnected");
        }
        let path = self.namespace(sandbox);
        unhurried(|| {
            namespace::remove(&path)
                .map_err(CniError::io("remove the network namespace", &path))?;
            // Last: as long as it is there, this is done again.
            dir.remove()
        })
    }

    fn chain<'a>(&self, connection: &'a Connection, sandbox: &SandboxId) -> Chain<'a> {
        let path = self.namespace(sandbox);
        let namespace = match namespace::is_there(&path) {
            true => path.to_string_lossy().into_owned(),
            false => String::new(),
        };
        let stdin = self.dir(sandbox).stdin();
        Chain::new(connection, sandbox.as_str(), namespace, stdin, &self.settings.bin_dirs)
    }

    fn dir(&self, sandbox: &SandboxId) -> StateDir {
        StateDir::of(&self.settings.state_dir, sandbox.as_str())
    }

    fn namespace(&self, sandbox: &SandboxId) -> PathBuf {
        self.settings.namespace_dir.join(sandbox.as_str())
    }

    fn look(&self) -> Result<NetworkList, CniError> {
        let list = NetworkList::first(&self.settings.conf_dir)?;
        for part in &list.plugins {
            plugin::find(&self.settings.bin_dirs, part.kind())?;
        }
        Ok(list)
    }

    fn place(&self) -> Place {
        let CniSettings { bin_dirs, state_dir, .. } = self.settings.clone();
        Place { bin_dirs, state_dir }
    }

    /// What is connected, by all that may know of it: the caller, what is durable here, and the namespaces that are.
    fn connected(&self, known: &[SandboxId]) -> Result<BTreeSet<(String, String)>, CniError> {
        let mut connected: BTreeSet<_> =
            known.iter().map(|id| (id.as_str().to_owned(), INTERFACE.to_owned())).collect();
        for dir in [&self.settings.state_dir, &self.settings.namespace_dir] {
            for name in names(dir).map_err(CniError::io("list", dir))? {
                // One that cannot be read is one all the same.
                let connection =
                    StateDir::of(&self.settings.state_dir, &name).load().ok().flatten();
                let interface =
                    connection.map_or(INTERFACE.to_owned(), |connection| connection.interface);
                connected.insert((name, interface));
            }
        }
        Ok(connected)
    }

    async fn collect_now(&self, known: &[SandboxId]) -> Result<(), CniError> {
        let list = match self.look() {
            Ok(list) => list,
            // Nothing was made here, or not by what is here now; whoever needs it is told by `problem`.
            Err(CniError::NoConfiguration(_) | CniError::NoPlugin { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.readiness.problem(&list, &self.place());
        let _alone = self.gate.write().await;
        let connected = unhurried(|| self.connected(known))?;
        if care::collect(&list, &self.place(), &connected).await? {
            let stay = connected.len();
            tracing::info!(
                network = list.name,
                stay,
                "the CNI plugins gave back what no sandbox has"
            );
        }
        Ok(())
    }
}

#[async_trait]
impl PodNetwork for CniNetwork {
    async fn set_up(&self, wish: &NetworkWish) -> Result<Attachment, NetworkError> {
        let _gate = self.gate.read().await;
        Ok(self.connect(wish).await?)
    }

    async fn check(&self, sandbox: &SandboxId) -> Result<(), NetworkError> {
        let _gate = self.gate.read().await;
        Ok(self.examine(sandbox).await?)
    }

    async fn tear_down(&self, sandbox: &SandboxId) -> Result<(), NetworkError> {
        let _gate = self.gate.read().await;
        Ok(self.disconnect(sandbox).await?)
    }

    async fn collect(&self, known: &[SandboxId]) -> Result<(), NetworkError> {
        Ok(self.collect_now(known).await?)
    }

    fn problem(&self) -> Option<String> {
        match self.look() {
            Ok(list) => self.readiness.problem(&list, &self.place()),
            Err(error) => Some(NetworkError::from(error).to_string()),
        }
    }

    fn use_ranges(&self, ranges: &[Prefix]) -> Result<(), NetworkError> {
        let mut held = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let path = ranges_file(&self.settings);
        let words: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        let made = std::fs::create_dir_all(&self.settings.state_dir);
        let saved = made.and_then(|()| unhurried(|| state::save(&path, &words)));
        saved.map_err(CniError::io("write", &path))?;
        *held = ranges.to_vec();
        Ok(())
    }
}

/// What plugins may want to know of the pod. Values with the signs that part them cannot be told.
fn args(wish: &NetworkWish) -> Result<String, CniError> {
    let pairs = [
        ("K8S_POD_NAMESPACE", wish.pod.namespace.as_str()),
        ("K8S_POD_NAME", wish.pod.name.as_str()),
        ("K8S_POD_INFRA_CONTAINER_ID", wish.sandbox.as_str()),
        ("K8S_POD_UID", wish.pod.uid.as_str()),
    ];
    let mut args = "IgnoreUnknown=1".to_owned();
    for (key, value) in pairs {
        if value.contains([';', '=', '\0', '\n']) {
            return Err(CniError::Wish(format!("{value:?} holds a sign that parts arguments")));
        }
        args += &format!(";{key}={value}");
    }
    Ok(args)
}

/// What lies in a directory of ours and belongs to a sandbox.
fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.contains('.') {
            names.push(name);
        }
    }
    Ok(names)
}

fn ranges_file(settings: &CniSettings) -> PathBuf {
    Path::new(&settings.state_dir).join("ranges.json")
}

/// The first interface of every pod.
const INTERFACE: &str = "eth0";
const CLEAR_TRIES: u32 = 3;
const CLEAR_PAUSE: Duration = Duration::from_millis(200);
