//! The `[config]` table of an instance.

use std::path::PathBuf;

use serde::Deserialize;

/// What an instance is started with. Everything may be left out.
///
/// ```toml
/// [config]
/// kernel = "/usr/lib/infranetes/guest/vmlinux"
/// initramfs = "/usr/lib/infranetes/guest/initramfs"
/// accel = "auto"                    # or "kvm", "tcg"
/// max_machines = 110
/// memory_floor_mib = 256
/// uids = { first = 2110000000, count = 1000 }
///
/// [[config.types]]                  # none: sizes are cut to fit each pod
/// name = "small"
/// cpu_millis = 1000
/// memory_mib = 512
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The QEMU program: a path, or a name to look up in `PATH`.
    pub qemu: PathBuf,
    /// The guest's kernel. `cargo xtask guest` makes it.
    pub kernel: PathBuf,
    /// The guest's initramfs. `cargo xtask guest` makes it.
    pub initramfs: PathBuf,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// QEMU's `-machine`. Without ACPI a guest cannot say that it powered itself off: it then counts as failed.
    pub machine: String,
    /// QEMU's `-bios`; absent: qboot, which is quicker, where QEMU brings it, else QEMU's default.
    pub firmware: Option<String>,
    /// QEMU's `-cpu`; absent: `host` under KVM, `max` without what is slow to emulate under TCG.
    pub cpu: Option<String>,
    /// Where machines keep their files; absent: the instance's state directory. One instance per directory.
    pub run_dir: Option<PathBuf>,
    /// No machine has less memory.
    pub memory_floor_mib: u64,
    /// All machines together have at most so much; absent: the memory of this node.
    pub memory_limit_mib: Option<u64>,
    /// Machines have at most so many CPUs; absent: twice those of this node, at least 4.
    pub max_cpus: Option<u32>,
    /// How many machines there may be.
    pub max_machines: u32,
    /// Under root, each machine's QEMU runs as a user of its own out of this range, which nobody else should use.
    pub uids: UidRange,
    /// The guest's kernel command line, but for the guest's address.
    pub kernel_args: String,
    /// Added to it.
    pub extra_kernel_args: String,
    /// Where the agent listens in the guest.
    pub agent_port: u16,
    /// The guest reaches nothing but the node's connection to its agent.
    pub restrict_network: bool,
    /// QEMU gives up all system calls that it does not need. Off only for a QEMU built without seccomp.
    pub sandbox: bool,
    /// How much of a console is kept, at least half of it at any time.
    pub console_kib: u64,
    /// Name of the cgroup below which each machine has one, in every hierarchy that can be written. Empty: none.
    pub cgroup: String,
    /// Sizes to choose from; none: sizes are cut to fit each pod.
    pub types: Vec<TypeEntry>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            qemu: PathBuf::from("qemu-system-x86_64"),
            kernel: PathBuf::from("/usr/lib/infranetes/guest/vmlinux"),
            initramfs: PathBuf::from("/usr/lib/infranetes/guest/initramfs"),
            accel: Accel::Auto,
            machine: "pc,i8042=off,smm=off,vmport=off,usb=off".to_owned(),
            firmware: None,
            cpu: None,
            run_dir: None,
            memory_floor_mib: 256,
            memory_limit_mib: None,
            max_cpus: None,
            max_machines: 110,
            uids: UidRange { first: 2_110_000_000, count: 1000 },
            kernel_args: KERNEL_ARGS.to_owned(),
            extra_kernel_args: String::new(),
            agent_port: 7443,
            restrict_network: false,
            sandbox: true,
            console_kib: 1024,
            cgroup: "infranetes".to_owned(),
            types: Vec::new(),
        }
    }
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// KVM where it truly works, else TCG. That `/dev/kvm` opens is not enough: the CPU has to show vmx or svm.
    #[default]
    Auto,
    /// KVM, or nothing.
    Kvm,
    /// QEMU's own translator: slow, and works everywhere.
    Tcg,
}

/// User ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UidRange {
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// A size to choose from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypeEntry {
    /// Its name.
    pub name: String,
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Memory.
    pub memory_mib: u64,
}

impl Config {
    /// Finds what no machine could be made with.
    pub(crate) fn check(&self) -> Result<(), String> {
        let below_i32 =
            self.uids.first.checked_add(self.uids.count).is_some_and(|end| end < MAX_UID);
        let rules = [
            (self.max_machines > 0, "max_machines is 0"),
            (self.memory_floor_mib >= 64, "memory_floor_mib is below 64"),
            (self.agent_port > 0, "agent_port is 0"),
            (self.console_kib >= 16, "console_kib is below 16"),
            (self.uids.first > 0 && self.uids.count > 0, "uids is empty or holds root"),
            (below_i32, "uids goes over the greatest user id"),
            (!self.machine.is_empty(), "machine is empty"),
            (is_cgroup_name(&self.cgroup), "cgroup is not one plain name"),
        ];
        if let Some((_, problem)) = rules.into_iter().find(|(fine, _)| !fine) {
            return Err(problem.to_owned());
        }
        for (index, entry) in self.types.iter().enumerate() {
            if entry.name.is_empty() || entry.cpu_millis == 0 || entry.memory_mib < 64 {
                return Err(format!("types[{index}] has no name, no CPU, or less than 64 MiB"));
            }
        }
        Ok(())
    }
}

fn is_cgroup_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        && !name.starts_with('.')
}

/// Quiet, because a serial console is slow; no self-tests and no patching of a kernel that lives for one pod; and a kernel
/// that panics ends its machine at once. Memory is not cleared before its first use: all of a machine's belongs to one pod.
/// The test of the timer's interrupt fails on a node that is too busy to deliver ten ticks in time, and then panics
/// ("IO-APIC + timer doesn't work"): the timer of a virtual machine needs no test. AppArmor and TOMOYO are left out of Debian's security
/// modules: nothing in a guest loads a policy for them, and both would look at each file that is opened.
/// What the kernel does not know goes into its first process's environment: malloc gives memory back, so that the agent does
/// not keep what layers took on their way in (2 MiB with a container that runs). The pieces of a log are below these bounds: a page
/// that is given back and wanted again costs an emulated CPU more than the bytes in it.
const KERNEL_ARGS: &str = "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t no_timer_check \
                           cryptomgr.notests=1 noreplace-smp init_on_alloc=0 \
                           lsm=landlock,lockdown,yama,integrity,bpf \
                           MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=1048576 \
                           MALLOC_MMAP_THRESHOLD_=131072";
/// The last one means "unchanged" to the kernel.
const MAX_UID: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_fine_and_typing_errors_are_not() {
        Config::default().check().expect("fine");
        let error = serde_json::from_str::<Config>(r#"{"kernle": "/x"}"#).expect_err("refused");
        assert!(error.to_string().contains("kernle"), "{error}");
        for wrong in [
            r#"{"max_machines": 0}"#,
            r#"{"uids": {"first": 0, "count": 5}}"#,
            r#"{"uids": {"first": 4294967290, "count": 50}}"#,
            r#"{"cgroup": "../x"}"#,
            r#"{"types": [{"name": "", "cpu_millis": 1, "memory_mib": 64}]}"#,
        ] {
            let config: Config = serde_json::from_str(wrong).expect("it reads");
            config.check().expect_err(wrong);
        }
    }
}
