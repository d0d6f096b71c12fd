//! Which capabilities a container has.

use infranetes_sdk::v1::Security;
use infranetes_sdk::{ProviderError, Result};

use super::spec::Capabilities;

/// What a security context asks for; `machine` is what the machine itself may give, as a bit set.
///
/// "ALL" comes before single names, and adding before dropping. Nothing is inheritable: a file in the image must not raise
/// what the container was given.
pub(crate) fn capabilities(security: &Security, machine: u64) -> Result<Capabilities> {
    let added = names(&security.add_capabilities)?;
    let dropped = names(&security.drop_capabilities)?;
    let all = |names: &[Name]| names.contains(&Name::All);
    let mut set = if security.privileged || (all(&added) && !all(&dropped)) {
        machine
    } else if all(&dropped) {
        0
    } else {
        DEFAULT.iter().fold(0, |set, index| set | 1 << index)
    };
    set |= bits(&added);
    set &= !bits(&dropped);
    let names: Vec<String> = (0..NAMES.len())
        .filter(|index| set & 1 << index != 0)
        .map(|index| format!("CAP_{}", NAMES[index]))
        .collect();
    Ok(Capabilities { bounding: names.clone(), effective: names.clone(), permitted: names })
}

/// The bounding set of this process: more than that no container can have.
pub(crate) fn of_this_machine() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// Whether a capability, by its number, is in a set of bits.
pub(crate) fn has(set: u64, name: &str) -> bool {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| *known == name).is_some_and(|index| set & 1 << index != 0)
}

/// Whether a set of names holds a capability.
pub(crate) fn holds(capabilities: &Capabilities, name: &str) -> bool {
    capabilities.bounding.iter().any(|known| known == name)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    All,
    One(usize),
}

fn names(texts: &[String]) -> Result<Vec<Name>> {
    let parse = |text: &String| {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            return Ok(Name::All);
        }
        let index = NAMES.iter().position(|known| *known == name);
        index
            .map(Name::One)
            .ok_or_else(|| ProviderError::invalid(format!("{text:?} is no capability")))
    };
    texts.iter().map(parse).collect()
}

fn bits(names: &[Name]) -> u64 {
    names.iter().fold(0, |set, name| match name {
        Name::All => set,
        Name::One(index) => set | 1 << index,
    })
}

/// In the order of the kernel's numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What images expect to have when nothing is said; the other runtimes of Kubernetes give the same.
const DEFAULT: [usize; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(privileged: bool, add: &[&str], drop: &[&str], expected: &[&str]) {
        let security = Security {
            privileged,
            add_capabilities: add.iter().map(|name| (*name).to_owned()).collect(),
            drop_capabilities: drop.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        let found = capabilities(&security, 0b1_0000_0011).unwrap();
        assert_eq!(found.effective, expected, "add {add:?} drop {drop:?}");
    }

    #[test]
    fn names_are_added_and_dropped() {
        check(false, &[], &["ALL"], &[]);
        check(false, &["NET_ADMIN"], &["all"], &["CAP_NET_ADMIN"]);
        check(false, &["cap_chown", "CAP_BPF"], &["ALL", "CHOWN"], &["CAP_BPF"]);
        check(false, &["ALL"], &["CHOWN"], &["CAP_DAC_OVERRIDE", "CAP_SETPCAP"]);
        check(false, &["ALL"], &["ALL"], &[]);
        check(true, &[], &[], &["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETPCAP"]);
    }

    #[test]
    fn the_default_set_is_what_images_expect() {
        let found = capabilities(&Security::default(), u64::MAX).unwrap();
        assert_eq!(found.effective.len(), 14);
        assert!(holds(&found, "CAP_NET_BIND_SERVICE") && !holds(&found, "CAP_SYS_ADMIN"));
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let security = Security { add_capabilities: vec!["FLY".into()], ..Default::default() };
        capabilities(&security, u64::MAX).unwrap_err();
    }
}
