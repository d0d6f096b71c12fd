//! How a QEMU is started: its command line, its user, its limits.
//!
//! A shell of one line stands at the beginning: it waits until its number is on disk and its cgroup is set, bounds the
//! size of files, and becomes QEMU. If the daemon dies before it gives the word, it ends. QEMU runs in the machine's
//! directory and names files relative to it, so that directories above may stay closed to its user.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};

use command_fds::{CommandFdExt, FdMapping};
use rustix::thread::{disable_transparent_huge_pages, transparent_huge_pages_are_disabled};
use tokio::process::{Child, Command};

use crate::checkpoint::Shape;
use crate::config::Config;
use crate::convert::GUEST_ADDRESS;
use crate::error::QemuError;
use crate::node::{self, Acceleration};
use crate::record::Record;
use crate::taps::Tap;

/// What all machines of an instance are started with.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    pub(crate) config: Config,
    pub(crate) acceleration: Acceleration,
}

/// The files that a machine boots from, as QEMU is to name them.
#[derive(Clone, Debug)]
pub(crate) struct BootFiles {
    pub(crate) qemu: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl Launcher {
    /// Starts the shell that becomes QEMU. It waits for a line on its standard input.
    pub(crate) fn spawn(
        &self,
        dir: &Path,
        record: &Record,
        files: &BootFiles,
        user_data: &[u8],
        taps: Vec<Tap>,
    ) -> Result<Child, QemuError> {
        let handle = File::open(dir).map_err(QemuError::io("open", dir))?;
        let log_path = dir.join(LOG);
        let log = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(QemuError::io("write", &log_path))?;
        let setsid = node::find_program(Path::new("setsid")).map_err(|source| {
            let remedy = "it comes with util-linux";
            QemuError::Missing { what: "the program", path: "setsid".into(), remedy, source }
        })?;
        let mut command = Command::new(setsid);
        command
            .args(["/bin/sh", "-c", SCRIPT, "qemu"])
            .arg((self.config.console_kib * CONSOLE_LIMIT_FACTOR * 2).to_string())
            .arg(&files.qemu)
            .args(self.arguments(dir, record, files, fits_smbios(user_data), &taps))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            // Resolved by the child after it became the other user: works whatever the directories above allow.
            .current_dir(format!("/proc/self/fd/{}", handle.as_raw_fd()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(uid) = record.uid {
            let gid = if self.acceleration.kvm { node::kvm_group() } else { None };
            command.uid(uid).gid(gid.unwrap_or(uid));
        }
        let taps = taps.into_iter().zip(FIRST_TAP..);
        let mappings =
            taps.map(|(tap, child_fd)| FdMapping { parent_fd: tap.fd, child_fd }).collect();
        // Numbers that follow each other do not collide.
        command.fd_mappings(mappings).map_err(|_| QemuError::Broken)?;
        let _small = (!self.acceleration.kvm).then(SmallPages::begin);
        command.spawn().map_err(|source| QemuError::Spawn { source })
    }

    /// QEMU's arguments. They are no secret: anybody on the node can read them.
    fn arguments(
        &self,
        dir: &Path,
        record: &Record,
        files: &BootFiles,
        smbios: bool,
        taps: &[Tap],
    ) -> Vec<OsString> {
        let config = &self.config;
        let cpus = cpus(record);
        let mut line = Arguments::default();
        line.pair("-name", format!("guest={}", escaped(&dir.display().to_string())));
        line.pair("-machine", config.machine.clone());
        if let Some(firmware) = self.firmware() {
            line.pair("-bios", firmware);
        }
        match self.acceleration.kvm {
            true => line.pair("-accel", "kvm"),
            false => line.pair("-accel", format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}")),
        }
        line.pair("-cpu", self.cpu());
        line.pair("-m", format!("{}M", record.memory_mib));
        line.pair("-smp", cpus.to_string());
        for plain in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            line.0.push(plain.into());
        }
        if record.checkpoint.is_some() {
            line.pair("-incoming", "defer");
            // It runs when all of the checkpoint is in and was looked at.
            line.0.push("-S".into());
        }
        line.pair("-display", "none");
        if config.sandbox {
            line.pair("-sandbox", SANDBOX);
        }
        line.pair("-chardev", format!("file,id=console,path={CONSOLE},append=on"));
        line.pair("-serial", "chardev:console");
        line.pair("-qmp", format!("unix:{QMP},server=on,wait=off"));
        // Beside a network of the pod's, this is the node's way to the agent and nothing else.
        let restrict = if config.restrict_network || !taps.is_empty() { "on" } else { "off" };
        let port = config.agent_port;
        line.pair(
            "-netdev",
            format!("user,id=net,ipv6=off,restrict={restrict},hostfwd=tcp:127.0.0.1:0-:{port}"),
        );
        // A link that cannot go down is up as soon as the guest wants it; of others it has to find out first, and loses what it
        // sends meanwhile.
        let interrupts = self.interrupts();
        line.pair(
            "-device",
            format!("virtio-net-pci,netdev=net,mac={OWN_MAC},status=off,romfile={interrupts}"),
        );
        for (tap, fd) in taps.iter().zip(FIRST_TAP..) {
            line.pair("-netdev", format!("tap,id=pod{fd},fd={fd}"));
            let mac = &tap.mac;
            let device = format!("virtio-net-pci,netdev=pod{fd},mac={mac},romfile={interrupts}");
            line.pair("-device", device);
        }
        if self.needs_random_device() {
            line.pair("-device", "virtio-rng-pci");
        }
        line.pair("-fw_cfg", format!("name=opt/infranetes/user-data,file={BOOT_USER_DATA}"));
        if smbios {
            line.pair("-smbios", format!("type=11,path={BOOT_USER_DATA}"));
        }
        line.pair("-kernel", &files.kernel);
        line.pair("-initrd", &files.initramfs);
        line.pair("-append", self.kernel_command_line(!taps.is_empty()));
        line.0
    }

    fn cpu(&self) -> &str {
        let usual = if self.acceleration.kvm { NODE_CPU } else { EMULATED_CPU };
        self.config.cpu.as_deref().unwrap_or(usual)
    }

    /// All that a machine and one that is to go on from its checkpoint have to have in common.
    pub(crate) fn shape(&self, record: &Record, qemu: String) -> Shape {
        let kvm = self.acceleration.kvm;
        Shape {
            qemu,
            machine: self.config.machine.clone(),
            cpu: self.cpu().to_owned(),
            node_cpu: if kvm { node::cpu_model() } else { String::new() },
            accelerator: if kvm { "kvm" } else { "tcg" }.to_owned(),
            firmware: self.firmware().unwrap_or_default().to_owned(),
            memory_mib: record.memory_mib,
            cpus: cpus(record),
            interfaces: record.interfaces.clone(),
        }
    }

    /// A machine that goes on from a checkpoint draws new random numbers from its processor (RDRAND), or from a device if that
    /// has none; which of a processor of the configuration's choice is not known. Each device costs a boot some milliseconds.
    /// Decided by what a [`Shape`] has: a machine and one that is to go on from its checkpoint have the same devices.
    fn needs_random_device(&self) -> bool {
        match self.cpu() {
            EMULATED_CPU => false,
            NODE_CPU => !node::cpu_has_random_numbers(),
            _ => true,
        }
    }

    /// An emulated machine is as fast with one interrupt line as with several, and has less to set up.
    fn interrupts(&self) -> &str {
        if self.acceleration.kvm { "" } else { ",vectors=0" }
    }

    fn firmware(&self) -> Option<&str> {
        let quick = || Path::new(QBOOT).exists().then_some("qboot.rom");
        self.config.firmware.as_deref().or_else(quick)
    }

    fn kernel_command_line(&self, pod_network: bool) -> String {
        let Config { kernel_args, extra_kernel_args, .. } = &self.config;
        let address = match pod_network {
            false => format!("infranetes.ip={GUEST_ADDRESS}/24,{GATEWAY},10.0.2.3"),
            true => format!("infranetes.control={GUEST_ADDRESS}/24,{OWN_MAC},{GATEWAY}"),
        };
        let tuning = if self.acceleration.kvm { "" } else { EMULATED_LIBC };
        let words = [kernel_args, tuning, &address, "infranetes.ipv6=off", extra_kernel_args];
        let words = words.into_iter().map(|part| part.trim());
        words.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Memory that the process may take in all: the guest's, and what QEMU needs for itself.
    pub(crate) fn memory_bytes(&self, record: &Record) -> u64 {
        (record.memory_mib + OWN_MEMORY_MIB + TCG_CACHE_MIB) << 20
    }
}

fn cpus(record: &Record) -> u64 {
    record.cpu_millis.div_ceil(1000).max(1)
}

/// All that the emulator can do, but for what makes guests slow: with the first two, Linux copies memory by an instruction that is
/// emulated byte by byte (both or neither: a kernel that sees one alone hangs); the third makes page tables a level deeper. AVX2 stays:
/// images that are built for x86-64-v3 do not start without it.
const EMULATED_CPU: &str = "max,-erms,-fsrm,-la57";

/// All that the node's own can do.
const NODE_CPU: &str = "host";

/// For the C library of the agent, by its environment; what runs in containers has another one. The emulator runs 256-bit instructions as
/// such ones of the node, and after them, until it comes back to its own loop, its routines for AES are thirty times as slow. So
/// nothing that runs between two records of TLS may have such instructions, not even the copying of memory.
const EMULATED_LIBC: &str = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX_Fast_Unaligned_Load";

/// User-data is handed over in two ways: as a file of QEMU's firmware interface, for which the guest needs a module, and,
/// where it fits, as a string of the SMBIOS tables, which every kernel shows. A string holds no zero.
fn fits_smbios(user_data: &[u8]) -> bool {
    !user_data.is_empty() && user_data.len() <= SMBIOS_MAX && !user_data.contains(&0)
}

/// The last words of a QEMU, at most a few lines.
pub(crate) fn last_words(dir: &Path) -> Vec<String> {
    let text = std::fs::read(dir.join(LOG)).unwrap_or_default();
    let start = text.len().saturating_sub(LAST_WORDS_BYTES);
    let tail = String::from_utf8_lossy(&text[start..]);
    let lines: Vec<&str> = tail.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(LAST_WORDS_LINES);
    lines[from..].iter().map(|line| (*line).to_owned()).collect()
}

/// Gives the word to the shell that `spawn` started.
pub(crate) async fn give_the_word(child: &mut Child) -> io::Result<()> {
    use tokio::io::AsyncWriteExt;
    match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(b"go\n").await,
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// While it lives, what this process starts has its memory in small pages, for good. An emulated machine gains nothing from huge
/// ones (its CPU's page tables are not the node's), and each first touch while it boots would clear two MiB.
///
/// A child takes this over from its parent, so the parent has it for that moment; of its own memory nothing changes but the size of
/// pages that it touches for the first time meanwhile. A node that knows no such setting starts machines without it.
struct SmallPages {
    _turn: MutexGuard<'static, ()>,
    before: bool,
}

impl SmallPages {
    fn begin() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let before = transparent_huge_pages_are_disabled().unwrap_or(false);
        let _ = disable_transparent_huge_pages(true);
        Self { _turn: turn, before }
    }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        let _ = disable_transparent_huge_pages(self.before);
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

/// QEMU separates the parts of a value by commas, and reads two as one.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

/// Without a word on standard input (the daemon died): the end. Files stay small even while nobody watches: a write over
/// the limit fails, and QEMU drops the guest's output.
const SCRIPT: &str = "umask 077; read -r word || exit 97; ulimit -c 0; ulimit -f \"$1\"; shift; \
                      trap '' XFSZ; exec \"$@\" </dev/null";
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
pub(crate) const CONSOLE: &str = "console.log";
pub(crate) const QMP: &str = "control/qmp";
/// QEMU's copy, there only until it is read.
pub(crate) const BOOT_USER_DATA: &str = "user-data.boot";
/// The tables have 64 KiB in all.
const SMBIOS_MAX: usize = 32 * 1024;
const QBOOT: &str = "/usr/share/qemu/qboot.rom";
const LOG: &str = "qemu.log";
/// Blocks of `ulimit -f` have 512 bytes.
const CONSOLE_LIMIT_FACTOR: u64 = 4;
/// Translated code of a guest under TCG.
const TCG_CACHE_MIB: u64 = 128;
const OWN_MEMORY_MIB: u64 = 192;
/// Where QEMU's user-mode network has its own end; connections of the node come from there.
const GATEWAY: &str = "10.0.2.2";
/// Of the interface that every machine has; it means nothing outside.
const OWN_MAC: &str = "52:54:00:12:34:56";
/// The number of the first tap in QEMU: above those that a shell may use.
const FIRST_TAP: i32 = 30;
const LAST_WORDS_BYTES: usize = 4096;
const LAST_WORDS_LINES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Power, VERSION};

    #[test]
    fn the_command_line_names_no_secret_and_closes_what_it_can() {
        let launcher = Launcher {
            config: Config { extra_kernel_args: "debug".to_owned(), ..Default::default() },
            acceleration: Acceleration { kvm: false, why: "test" },
        };
        let record = Record {
            version: VERSION,
            id: "vm-1".to_owned(),
            token: "t0ken".to_owned(),
            name: "n".to_owned(),
            tags: Default::default(),
            machine_type: String::new(),
            cpu_millis: 1500,
            memory_mib: 320,
            created_unix_ms: 0,
            namespace: None,
            interfaces: Vec::new(),
            checkpoint: None,
            uid: None,
            wanted: Power::On,
            boot_id: String::new(),
            process: None,
            port: None,
            end: None,
        };
        let files =
            BootFiles { qemu: "qemu".into(), kernel: "/k".into(), initramfs: "../boot/i".into() };
        let arguments = launcher.arguments(Path::new("/run/a,b/vm-1"), &record, &files, true, &[]);
        let line: Vec<String> =
            arguments.into_iter().map(|word| word.into_string().expect("text")).collect();
        let line = line.join(" ");
        for part in [
            "-name guest=/run/a,,b/vm-1 ",
            "-m 320M ",
            "-smp 2 ",
            "-accel tcg,",
            "-nodefaults -no-user-config -no-reboot ",
            "-sandbox on,",
            "file=user-data.boot ",
            "-smbios type=11,path=user-data.boot ",
            "-kernel /k -initrd ../boot/i ",
            "=-AVX2,-AVX_Fast_Unaligned_Load infranetes.ip=10.0.2.15/24,10.0.2.2,10.0.2.3 infranetes.ipv6=off debug",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains("t0ken"));
        assert!(!line.contains("virtio-rng"), "its processor has random numbers: {line}");
        // With a tap, the user-mode network leads to the agent and nowhere else.
        let fd = std::fs::File::open("/dev/null").expect("opened").into();
        let tap = Tap { fd, mac: "ee:00:00:00:00:01".to_owned(), name: "eth0".to_owned() };
        let arguments = launcher.arguments(Path::new("/m"), &record, &files, true, &[tap]);
        let line: Vec<String> =
            arguments.into_iter().map(|word| word.into_string().expect("text")).collect();
        let line = line.join(" ");
        for part in [
            ",restrict=on,hostfwd=tcp:127.0.0.1:0-:7443 ",
            "-netdev tap,id=pod30,fd=30 -device virtio-net-pci,netdev=pod30,mac=ee:00:00:00:00:01,",
            "infranetes.control=10.0.2.15/24,52:54:00:12:34:56,10.0.2.2 infranetes.ipv6=off debug",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains("infranetes.ip="), "{line}");
        let fast = Launcher { acceleration: Acceleration { kvm: true, why: "test" }, ..launcher };
        assert!(!fast.kernel_command_line(false).contains("GLIBC_TUNABLES"));
        let config = Config { cpu: Some("qemu64".to_owned()), ..Default::default() };
        assert!(Launcher { config, ..fast }.needs_random_device());
    }
}
