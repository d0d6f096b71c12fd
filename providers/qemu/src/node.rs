//! What this node has: CPUs, memory, and whether KVM truly works.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::Accel;

/// The accelerator that was decided on, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acceleration {
    pub(crate) kvm: bool,
    pub(crate) why: &'static str,
}

/// The group that may use KVM, or `None` where all may, or none but root.
pub(crate) fn kvm_group() -> Option<u32> {
    let meta = fs::metadata(KVM).ok()?;
    let for_group = meta.mode() & 0o060 == 0o060 && meta.mode() & 0o006 != 0o006;
    (for_group && meta.gid() != 0).then_some(meta.gid())
}

/// Whether a user that is not root may use KVM, given the right group.
fn kvm_is_shared() -> bool {
    let others = fs::metadata(KVM).is_ok_and(|meta| meta.mode() & 0o006 == 0o006);
    others || kvm_group().is_some()
}

/// Decides between KVM and TCG. A node in a VM may have a `/dev/kvm` that opens and hangs every stock kernel, so the CPU
/// has to show its virtualization extension as well.
pub(crate) fn acceleration(wanted: Accel, drops_root: bool) -> Acceleration {
    match wanted {
        Accel::Kvm => Acceleration { kvm: true, why: "configured" },
        Accel::Tcg => Acceleration { kvm: false, why: "configured" },
        Accel::Auto => {
            let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let opens = OpenOptions::new().read(true).write(true).open(KVM).is_ok();
            decide(opens && (!drops_root || kvm_is_shared()), has_extension(&cpuinfo))
        }
    }
}

fn decide(opens: bool, extension: bool) -> Acceleration {
    match (opens, extension) {
        (true, true) => {
            Acceleration { kvm: true, why: "/dev/kvm opens and the CPU shows vmx or svm" }
        }
        (true, false) => Acceleration {
            kvm: false,
            why: "/dev/kvm opens, but the CPU shows neither vmx nor svm",
        },
        (false, _) => {
            Acceleration { kvm: false, why: "/dev/kvm does not open for the machine's user" }
        }
    }
}

fn has_extension(cpuinfo: &str) -> bool {
    cpu_flags(cpuinfo).any(|flag| matches!(flag, "vmx" | "svm"))
}

fn cpu_flags(cpuinfo: &str) -> impl Iterator<Item = &str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    line.split_ascii_whitespace()
}

/// Memory of this node, in MiB.
pub(crate) fn memory_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let kib = line.split_ascii_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// What the node's CPU calls itself.
pub(crate) fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    line.split_once(':').map_or("", |(_, name)| name.trim()).to_owned()
}

/// Whether its instructions make random numbers (RDRAND).
pub(crate) fn cpu_has_random_numbers() -> bool {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu_flags(&text).any(|flag| flag == "rdrand")
}

/// CPUs of this node.
pub(crate) fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

/// The program behind a path or a name.
pub(crate) fn find_program(program: &Path) -> io::Result<PathBuf> {
    if program.components().count() > 1 {
        return fs::metadata(program).map(|_| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no directory of PATH has it"))
}

pub(crate) const KVM: &str = "/dev/kvm";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_device_and_the_cpu() {
        for (opens, cpuinfo, kvm) in [
            (true, "processor : 0\nflags\t\t: fpu vmx sse\n", true),
            (true, "flags : fpu svm\n", true),
            (true, "flags : fpu hypervisor\nbugs : vmx\n", false),
            (false, "flags : fpu vmx\n", false),
            (true, "", false),
        ] {
            assert_eq!(decide(opens, has_extension(cpuinfo)).kvm, kvm, "{opens} {cpuinfo}");
        }
    }

    #[test]
    fn a_program_is_found_by_name_or_path() {
        assert!(find_program(Path::new("sh")).expect("found").is_absolute());
        find_program(Path::new("/no/such/program")).expect_err("missing");
        find_program(Path::new("no-such-program")).expect_err("missing");
    }
}
