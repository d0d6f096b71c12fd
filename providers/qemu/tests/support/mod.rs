//! A small guest for tests of the provider alone: Debian's kernel, or that of the guest image, and busybox. No agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use infranetes_provider_qemu::{Accel, Config, QemuProvider};
use infranetes_sdk::pod::{
    ConsoleRequest, CreateRequest, DestroyRequest, GetRequest, ListRequest, Machine, MachineState,
    PlanRequest,
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

/// A provider over a directory of its own.
pub(crate) struct World {
    // Dropped in this order: machines do not outlive their directory.
    pub(crate) provider: QemuProvider,
    pub(crate) dir: Dir,
    pub(crate) config: Config,
}

impl World {
    /// `words` come to the guest's init on its command line.
    pub(crate) async fn new(words: &str) -> Self {
        Self::with(config(words)).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let dir = tempfile::Builder::new().prefix("infranetes-qemu-").tempdir();
        let dir = Dir(dir.expect("a directory"));
        // As closed as the state directory that a host gives.
        let closed = fs::Permissions::from_mode(0o700);
        fs::set_permissions(dir.path(), closed).expect("closed");
        let provider = QemuProvider::open(config.clone(), dir.path()).await.expect("a provider");
        Self { dir, config, provider }
    }

    /// The daemon dies and comes back; machines do not notice.
    pub(crate) async fn restarted(self) -> Self {
        let Self { dir, config, provider } = self;
        drop(provider);
        let provider = QemuProvider::open(config.clone(), dir.path()).await.expect("a provider");
        Self { dir, config, provider }
    }

    pub(crate) async fn request(&self, name: &str) -> CreateRequest {
        let wish = PlanRequest { memory_bytes: 256 << 20, ..Default::default() };
        let plan = self.provider.plan(ctx(), wish).await.expect("a plan");
        CreateRequest {
            token: format!("token-of-{name}"),
            name: name.to_owned(),
            machine_type: plan.candidates.into_iter().next(),
            user_data: format!("hello {name}").into_bytes(),
            tags: [("sandbox".to_owned(), name.to_owned())].into(),
            ..Default::default()
        }
    }

    pub(crate) async fn create(&self, name: &str) -> Machine {
        let request = self.request(name).await;
        self.provider.create(ctx(), request).await.expect("created")
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

    /// Waits until the console shows a text, and answers all of the console.
    pub(crate) async fn wait_for_console(&self, id: &str, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let console = self.console(id).await;
            if console.contains(text) {
                return console;
            }
            let machine = self.get(id).await;
            assert_ne!(machine.state(), MachineState::Failed, "{machine:?}: {console}");
            assert!(Instant::now() < deadline, "no {text:?} on the console: {console}");
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
        destroy(&self.provider, id).await;
    }

    /// Destroys every machine, and fails if anything of this world is left.
    pub(crate) async fn clean_up(&self) {
        let all = self.provider.list(ctx(), ListRequest::default()).await.expect("a list");
        for machine in all.machines {
            self.destroy(&machine.id).await;
        }
        self.assert_clean();
    }

    /// Numbers of the QEMU processes of this world.
    pub(crate) fn processes(&self) -> Vec<i32> {
        processes_naming(&self.dir.path().display().to_string())
    }

    /// Fails if anything of this world is left but its own empty directories.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.processes(), Vec::<i32>::new(), "processes are left");
        let machines = fs::read_dir(self.dir.path().join("machines")).expect("a directory");
        let left: Vec<_> = machines
            .map(|entry| entry.expect("an entry").file_name())
            .filter(|name| name != ".boot")
            .collect();
        assert!(left.is_empty(), "directories are left: {left:?}");
        let cgroup = &self.config.cgroup;
        for hierarchy in ["cpu", "memory", "pids", "unified", "."] {
            let dir = Path::new("/sys/fs/cgroup").join(hierarchy).join(cgroup);
            assert!(!dir.exists(), "{} is left", dir.display());
        }
    }
}

/// A configuration for the test guest, with a cgroup parent that no other test uses.
pub(crate) fn config(words: &str) -> Config {
    let guest = guest();
    Config {
        kernel: guest.kernel.clone(),
        initramfs: guest.initramfs.clone(),
        accel: Accel::Auto,
        extra_kernel_args: words.to_owned(),
        cgroup: format!("infranetes-test-{}-{:x}", std::process::id(), unique()),
        ..Default::default()
    }
}

pub(crate) async fn destroy(provider: &dyn PodProvider, id: &str) {
    let request = DestroyRequest { id: id.to_owned() };
    provider.destroy(ctx(), request).await.expect("destroyed");
}

pub(crate) fn ctx() -> CallContext {
    CallContext::new("test")
}

/// Living processes whose command line has `text` in it, this one aside.
pub(crate) fn processes_naming(text: &str) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).expect("a pid");
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
    run_quietly(Command::new("kill").args(["-KILL", &pid.to_string()]));
}

struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
}

fn unique() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn guest() -> &'static Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu-guest");
        fs::create_dir_all(&dir).expect("a directory");
        // Test programs of one crate may run at the same time.
        let lock = fs::File::create(dir.join("lock")).expect("a lock file");
        lock.lock().expect("the lock");
        install("qemu-system-x86_64", "qemu-system-x86");
        install("busybox", "busybox-static");
        let initramfs = dir.join("initramfs.cpio");
        let new = initramfs.with_extension("new");
        fs::write(&new, make_initramfs()).expect("written");
        fs::rename(&new, &initramfs).expect("renamed");
        Guest { kernel: kernel(&dir), initramfs }
    })
}

/// The kernel of the guest image where there is one, else Debian's, fetched once.
fn kernel(dir: &Path) -> PathBuf {
    let made = std::env::var_os("INFRANETES_GUEST").map(PathBuf::from);
    let names = ["vmlinux", "vmlinuz"].into_iter();
    let made = made.and_then(|dir| names.map(|name| dir.join(name)).find(|path| path.is_file()));
    if let Some(made) = made {
        return made;
    }
    let kernel = dir.join("vmlinuz");
    if !kernel.is_file() {
        let script = "set -e; cd \"$1\"; rm -rf x; \
            name=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -n 1); \
            apt-get download -q \"$name\" >&2; dpkg -x \"$name\"_*.deb x; rm \"$name\"_*.deb; \
            mv x/boot/vmlinuz-* vmlinuz; rm -rf x";
        run(Command::new("sh").args(["-c", script, "sh"]).arg(dir));
    }
    kernel
}

fn install(program: &str, package: &str) {
    let found = run_quietly(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]));
    if !found {
        run(Command::new("apt-get").args([
            "install",
            "-y",
            "-q",
            "--no-install-recommends",
            package,
        ]));
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?} ended with {status}");
}

fn run_quietly(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// An archive of the "newc" format with busybox and an init of a few lines.
fn make_initramfs() -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").expect("busybox");
    let mut archive = Vec::new();
    for dir in ["bin", "dev", "proc", "sys"] {
        add(&mut archive, dir, 0o040_755, &[]);
    }
    add(&mut archive, "bin/busybox", 0o100_755, &busybox);
    add(&mut archive, "init", 0o100_755, INIT.as_bytes());
    add(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn add(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let (size, name_size) = (data.len(), name.len() + 1);
    let header = format!(
        "070701{0:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
        0, 1
    );
    archive.extend(header.as_bytes());
    archive.extend(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend(data);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
echo "guest is up"
echo "user-data: $($b tail -c +6 /sys/firmware/dmi/entries/11-0/raw | $b tr '\000' '.')"
for word in $($b cat /proc/cmdline); do
    case $word in
        test=poweroff) $b poweroff -f ;;
        test=panic) echo c > /proc/sysrq-trigger ;;
        test=flood) $b yes "all work and no play makes the console a full disk" ;;
        test=hang) $b sleep 0 ;;
        test=count) number=0; while :; do number=$((number + 1)); echo "number $number"; $b sleep 0.2; done ;;
    esac
done
while :; do $b sleep 1000; done
"#;
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);
