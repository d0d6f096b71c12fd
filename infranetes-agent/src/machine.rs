//! What all sessions share: the identity, the container provider, and what belongs to the machine as a whole.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use infranetes_agent_protocol::v1::BindRequest;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, broadcast, mpsc, watch};

use crate::identity::Identity;
use crate::lines::Pace;
use crate::plugins::Containers;
use crate::server::Held;
use crate::times::BootTimes;
use crate::volumes::Volumes;

/// The machine as the sessions see it.
pub struct Machine {
    /// Who the agent is.
    pub identity: Arc<Identity>,
    /// Runs the containers.
    pub containers: Containers,
    /// When things happened.
    pub times: Arc<BootTimes>,
    /// New with every start.
    pub boot_id: String,
    /// Files that containers see.
    pub etc: Etc,
    /// What containers mount besides.
    pub volumes: Volumes,
    /// Whether hostname and kernel parameters are the pod's: not so for an agent that shares them with other programs.
    pub owned: bool,
    /// Where its addresses come from.
    pub(crate) interfaces: Interfaces,
    /// What the machine was bound to.
    pub(crate) binding: AsyncMutex<Option<BindRequest>>,
    /// Containers that stand still.
    pub(crate) held: Held,
    /// Ids of removed containers, for those who watch.
    pub(crate) removals: broadcast::Sender<String>,
    /// Counts the containers that were started.
    pub(crate) starts: watch::Sender<u64>,
    /// A permit for each connection that may be open.
    pub(crate) places: Arc<Semaphore>,
    /// The protocol version that the enrolment agreed on.
    pub(crate) first_version: OnceLock<u32>,
    shutdown: mpsc::Sender<Duration>,
    refusals: Mutex<Pace>,
}

/// Who sets the machine's interfaces up, and knows their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// Somebody: the kernel is asked for the addresses.
    Found,
    /// The agent did, with these addresses.
    Given(Vec<IpAddr>),
    /// They wait for the node's word: so where the agent is reached by a way of its own.
    Apart,
}

impl Machine {
    /// A machine, and what tells its owner to shut down: the grace that containers get.
    pub fn new(
        identity: Arc<Identity>,
        containers: Containers,
        times: Arc<BootTimes>,
        etc: Etc,
        volumes: Volumes,
        owned: bool,
        interfaces: Interfaces,
    ) -> (Arc<Self>, mpsc::Receiver<Duration>) {
        let (shutdown, requests) = mpsc::channel(1);
        let machine = Self {
            identity,
            containers,
            times,
            boot_id: boot_id(),
            etc,
            volumes,
            owned,
            interfaces,
            binding: AsyncMutex::new(None),
            held: Held::default(),
            removals: broadcast::channel(REMOVALS_MAX).0,
            starts: watch::Sender::new(0),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX as usize)),
            first_version: OnceLock::new(),
            shutdown,
            refusals: Mutex::default(),
        };
        (Arc::new(machine), requests)
    }

    /// Asks for the end. A second request joins the first.
    pub fn shut_down(&self, grace: Duration) {
        let _ = self.shutdown.try_send(grace);
    }

    /// Returns when no connection is open any more, or after `limit`.
    pub(crate) async fn quiet(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.places.acquire_many(CONNECTIONS_MAX)).await;
    }

    /// Notes a peer that got nothing.
    pub(crate) fn refused(&self, peer: &str, reason: &dyn fmt::Display) {
        let mut pace = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if pace.permits() {
            let more = pace.suppressed();
            tracing::warn!(peer, reason = %reason, more, "a peer was refused");
        }
    }
}

/// Files of the machine that its containers see below /etc. They are written in place, never replaced: a container that
/// has one mounted sees what is written later.
#[derive(Clone, Debug)]
pub struct Etc {
    dir: PathBuf,
}

impl Etc {
    /// Makes the directory and the files, filled with what the machine itself has.
    pub fn prepare(dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let etc = Self { dir };
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        let own_hosts = format!("{LOCAL_HOSTS}127.0.1.1 {}\n", hostname.to_string_lossy());
        std::fs::write(etc.path(HOSTNAME), format!("{}\n", hostname.to_string_lossy()))?;
        std::fs::write(etc.path(HOSTS), own_hosts)?;
        std::fs::write(
            etc.path(RESOLV_CONF),
            std::fs::read("/etc/resolv.conf").unwrap_or_default(),
        )?;
        Ok(etc)
    }

    /// The file of this name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What containers get, and where.
    pub fn mounts(&self) -> impl Iterator<Item = (PathBuf, &'static str)> + '_ {
        [(RESOLV_CONF, "/etc/resolv.conf"), (HOSTS, "/etc/hosts"), (HOSTNAME, "/etc/hostname")]
            .into_iter()
            .map(|(name, destination)| (self.path(name), destination))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Name of the file with DNS settings.
pub const RESOLV_CONF: &str = "resolv.conf";
/// Name of the file with host names.
pub const HOSTS: &str = "hosts";
/// Name of the file with the machine's own name.
pub const HOSTNAME: &str = "hostname";

/// How every hosts file starts.
pub const LOCAL_HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

fn boot_id() -> String {
    let mut bytes = [0_u8; 16];
    // Without randomness there is no TLS either: whoever gets here has it.
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The node needs one, for a moment two; the rest is room for strangers, who are cut off after the handshake's time.
const CONNECTIONS_MAX: u32 = 32;

/// A reader that is so many removals behind starts over with a new snapshot.
const REMOVALS_MAX: usize = 256;
