//! What is durable about a machine: one small file, written before QEMU is started and after everything that changes
//! what a later daemon has to know. These are types of their own, not the live ones.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A machine, as a daemon of later finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Of this format.
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) name: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) machine_type: String,
    pub(crate) cpu_millis: u64,
    pub(crate) memory_mib: u64,
    pub(crate) created_unix_ms: u64,
    /// The network namespace whose place on the network it takes; `None`: QEMU's user-mode network.
    #[serde(default)]
    pub(crate) namespace: Option<PathBuf>,
    /// What the interfaces that it has there are called.
    #[serde(default)]
    pub(crate) interfaces: Vec<String>,
    /// The checkpoint that it goes on from, until it did.
    #[serde(default)]
    pub(crate) checkpoint: Option<PathBuf>,
    /// The user that QEMU runs as, where that is not our own.
    pub(crate) uid: Option<u32>,
    /// Whether it is wanted to run.
    pub(crate) wanted: Power,
    /// The boot of this node in which it ran last.
    pub(crate) boot_id: String,
    pub(crate) process: Option<ProcessRecord>,
    /// On 127.0.0.1, forwarded to the agent.
    pub(crate) port: Option<u16>,
    /// How the last run ended.
    pub(crate) end: Option<End>,
}

/// Whether a machine is wanted to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Power {
    On,
    Off,
}

/// A process, named so that a reused number is not mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    pub(crate) pid: i32,
    /// In clock ticks since the node booted.
    pub(crate) start_time: u64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// False where the guest powered itself off, or was asked to.
    pub(crate) failed: bool,
    pub(crate) message: String,
    /// Last lines of QEMU's own words.
    pub(crate) details: Vec<String>,
}

impl Record {
    /// Reads the record of a machine's directory.
    pub(crate) fn load(dir: &Path) -> io::Result<Self> {
        let text = fs::read(dir.join(FILE))?;
        let record: Self = serde_json::from_slice(&text).map_err(io::Error::other)?;
        if record.version != VERSION {
            let version = record.version;
            return Err(io::Error::other(format!("records of version {version} are not known")));
        }
        Ok(record)
    }

    /// Writes it whole or not at all, and durably.
    pub(crate) fn save(&self, dir: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        let new = dir.join(NEW_FILE);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_data()?;
        fs::rename(&new, dir.join(FILE))?;
        File::open(dir)?.sync_data()
    }
}

pub(crate) const VERSION: u32 = 1;
const FILE: &str = "machine.json";
const NEW_FILE: &str = "machine.json.new";

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            version: VERSION,
            id: "vm-1".to_owned(),
            token: "t".to_owned(),
            name: "n".to_owned(),
            tags: [("a".to_owned(), "b".to_owned())].into(),
            machine_type: "qemu-1c-256m".to_owned(),
            cpu_millis: 1000,
            memory_mib: 256,
            created_unix_ms: 1,
            namespace: Some("/run/netns/a".into()),
            interfaces: vec!["eth0".to_owned()],
            checkpoint: Some("/c".into()),
            uid: Some(7),
            wanted: Power::On,
            boot_id: "boot".to_owned(),
            process: Some(ProcessRecord { pid: 2, start_time: 3 }),
            port: Some(4),
            end: None,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        record().save(dir.path()).expect("saved");
        assert_eq!(Record::load(dir.path()).expect("loaded"), record());
    }

    #[test]
    fn a_damaged_or_newer_record_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        Record { version: 99, ..record() }.save(dir.path()).expect("saved");
        let error = Record::load(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("version 99"), "{error}");
        fs::write(dir.path().join(FILE), b"{\"version\":").expect("written");
        Record::load(dir.path()).expect_err("refused");
    }
}
