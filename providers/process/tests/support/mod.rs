//! A provider over a directory of its own, with the real agent and the oci plugin. Root makes namespaces, so root runs these.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use infranetes_provider_process::{Config, ProcessProvider};
use infranetes_sdk::pod::{
    ConsoleRequest, CreateRequest, DestroyRequest, GetRequest, Machine, MachineState, PlanRequest,
};
use infranetes_sdk::{CallContext, PodProvider, StreamExt};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// A directory that takes its machines along when it goes, so that a test that failed leaves none behind.
pub(crate) struct Dir(TempDir);

impl Dir {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        for pid in processes_naming(&self.path().display().to_string()) {
            kill(pid);
        }
    }
}

pub(crate) struct World {
    pub(crate) dir: Dir,
    pub(crate) config: Config,
    pub(crate) provider: ProcessProvider,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With a configuration that is changed before it is used.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let user = Command::new("id").arg("-u").output().expect("it runs");
        assert_eq!(user.stdout, b"0\n", "this test makes namespaces: run it as root");
        let dir = Dir(tempfile::Builder::new().prefix("infranetes-p-").tempdir().expect("made"));
        let mut config = Config {
            agent: programs().join("infranetes-agent"),
            plugins: dir.path().join("plugins"),
            cgroup: format!("infranetes-test-{}-{:x}", std::process::id(), unique()),
            ..Default::default()
        };
        fs::create_dir(&config.plugins).expect("made");
        let plugin = programs().join("libinfranetes_provider_oci.so");
        fs::copy(plugin, config.plugins.join("oci.so")).expect("copied");
        change(&mut config);
        let provider = open(&config, &dir).await;
        Self { dir, config, provider }
    }

    /// The daemon dies and comes back; machines do not notice.
    pub(crate) async fn restarted(self) -> Self {
        let Self { dir, config, provider } = self;
        drop(provider);
        let provider = open(&config, &dir).await;
        Self { dir, config, provider }
    }

    pub(crate) async fn request(&self, name: &str) -> CreateRequest {
        let wish = PlanRequest { cpu_millis: 500, memory_bytes: 64 << 20, ..Default::default() };
        let plan = self.provider.plan(ctx(), wish).await.expect("a plan");
        CreateRequest {
            token: format!("token-of-{name}"),
            name: name.to_owned(),
            machine_type: plan.candidates.into_iter().next(),
            user_data: user_data(),
            tags: [("sandbox".to_owned(), name.to_owned())].into(),
            ..Default::default()
        }
    }

    pub(crate) async fn create(&self, name: &str) -> Machine {
        let request = self.request(name).await;
        self.provider.create(ctx(), request).await.expect("created")
    }

    /// A machine that runs.
    pub(crate) async fn run(&self, name: &str) -> Machine {
        let machine = self.create(name).await;
        self.wait_for(&machine.id, MachineState::Running).await
    }

    pub(crate) async fn get(&self, id: &str) -> Machine {
        self.provider.get(ctx(), GetRequest { id: id.to_owned() }).await.expect("there")
    }

    pub(crate) async fn wait_for(&self, id: &str, state: MachineState) -> Machine {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let machine = self.get(id).await;
            if machine.state() == state {
                return machine;
            }
            assert!(Instant::now() < deadline, "it is not {state:?} but {machine:?}");
            sleep(POLL).await;
        }
    }

    pub(crate) async fn console(&self, id: &str) -> String {
        let request = ConsoleRequest { id: id.to_owned(), replay_bytes: u64::MAX, follow: false };
        let mut stream = self.provider.console(ctx(), request).await.expect("a console");
        let mut all = Vec::new();
        while let Some(chunk) = stream.next().await {
            all.extend(chunk.expect("a chunk").data);
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    pub(crate) async fn destroy(&self, id: &str) {
        let request = DestroyRequest { id: id.to_owned() };
        self.provider.destroy(ctx(), request).await.expect("destroyed");
    }

    pub(crate) fn machine_dir(&self, id: &str) -> PathBuf {
        self.dir.path().join("run/m").join(id)
    }

    /// Numbers of the processes of this world: keepers and agents.
    pub(crate) fn processes(&self) -> Vec<i32> {
        processes_naming(&self.dir.path().display().to_string())
    }

    /// Fails if anything of this world is left but its own empty directories.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.processes(), Vec::<i32>::new(), "processes are left");
        let machines = fs::read_dir(self.dir.path().join("run/m")).expect("a directory");
        let left: Vec<_> = machines.map(|entry| entry.expect("an entry").file_name()).collect();
        assert!(left.is_empty(), "directories are left: {left:?}");
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups are left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let own = self.dir.path().display().to_string();
        assert!(!mounts.contains(&own), "mounts are left: {mounts}");
    }

    /// Directories of this world's cgroups, in each hierarchy.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        hierarchies()
            .into_iter()
            .map(|hierarchy| hierarchy.join(&self.config.cgroup))
            .filter(|dir| dir.exists())
            .collect()
    }
}

/// Where the hierarchies of cgroups are mounted.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let cgroups = mounts.filter(|words| words[2] == "cgroup" || words[2] == "cgroup2");
    cgroups.map(|words| PathBuf::from(words[1])).collect()
}

/// An invitation that nobody will ever accept.
pub(crate) fn user_data() -> Vec<u8> {
    static USER_DATA: OnceLock<Vec<u8>> = OnceLock::new();
    let made = USER_DATA.get_or_init(|| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).expect("signed").pem();
        let token = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        serde_json::json!({
            "version": 1, "agent_name": "a1.agent.infranetes", "ca_pem": ca_pem, "token": token,
        })
        .to_string()
        .into_bytes()
    });
    made.clone()
}

pub(crate) fn ctx() -> CallContext {
    CallContext::new("test")
}

/// Living processes whose command line has `text` in it, this one aside.
pub(crate) fn processes_naming(text: &str) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).expect("a number");
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != own)
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}

pub(crate) fn kill(pid: i32) {
    // It may be gone already.
    let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).output();
}

async fn open(config: &Config, dir: &Dir) -> ProcessProvider {
    let run = dir.path().join("run");
    ProcessProvider::open(config.clone(), &run).await.expect("a provider")
}

/// Where the agent and the plugin are: `INFRANETES_BIN`, else what is built here beside this test.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(dir) = std::env::var_os("INFRANETES_BIN") {
            return dir.into();
        }
        let build = ["build", "-q", "-p", "infranetes-agent", "-p", "infranetes-provider-oci"];
        let built = Command::new(env!("CARGO"))
            .args(build)
            .current_dir(std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo"))
            .status()
            .expect("cargo runs");
        assert!(built.success(), "the agent is not built");
        let test = std::env::current_exe().expect("a path");
        let deps = test.parent().expect("a directory");
        deps.parent().expect("a directory").to_owned()
    })
}

fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
