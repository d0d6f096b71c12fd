//! The files of a checkpoint: what a machine was, written so that another one can go on from there.
//!
//! ```text
//! DIRECTORY/              the caller's, root's alone
//!   machine.state         QEMU's stream of migration: the guest's memory and devices. It holds all of the guest's secrets
//!   machine.json          what it fits, and the digest of the stream; written last, so that without it there is no checkpoint
//! ```
//!
//! QEMU opens neither: it is another user, and the directory may lie where that one cannot go. The bytes come and go through a socket
//! in the machine's own directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::error::QemuError;

/// What a checkpoint is of: a machine of another shape cannot take it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// QEMU's version: a name like "pc" means another machine in another one.
    pub(crate) qemu: String,
    pub(crate) machine: String,
    pub(crate) cpu: String,
    /// The processor that the guest saw, where that is the node's own.
    pub(crate) node_cpu: String,
    pub(crate) accelerator: String,
    pub(crate) firmware: String,
    pub(crate) memory_mib: u64,
    pub(crate) cpus: u64,
    /// What its interfaces in the pod's network are called, in their order.
    #[serde(default)]
    pub(crate) interfaces: Vec<String>,
}

/// The description beside the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    pub(crate) shape: Shape,
    pub(crate) state_bytes: u64,
    /// SHA-256 of the state, in hexadecimal.
    pub(crate) state_sha256: String,
}

/// A directory of a caller.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    handle: File,
}

impl Directory {
    /// Opens a directory that nobody else can write to.
    pub(crate) fn open(path: &Path) -> Result<Self, QemuError> {
        let invalid = |problem: &str| QemuError::Checkpoint {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        if !path.is_absolute() {
            return Err(invalid("it is not an absolute path"));
        }
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW;
        let mut options = OpenOptions::new();
        let opened = options.read(true).custom_flags(flags.bits() as i32).open(path);
        let handle = opened.map_err(|error| invalid(&format!("it cannot be opened ({error})")))?;
        let meta = handle.metadata().map_err(QemuError::io("look at", path))?;
        let own = rustix::process::geteuid().as_raw();
        if meta.uid() != own && meta.uid() != 0 {
            return Err(invalid("it belongs to another user"));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(invalid("others can write to it"));
        }
        Ok(Self { path: path.to_owned(), handle })
    }

    /// The path of a file in it that means this directory whatever becomes of its name.
    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd()))
    }

    /// Makes the file of the state. Only in an empty directory, so that there is never a mixture of two.
    pub(crate) fn begin(&self) -> Result<File, QemuError> {
        let io = |source| QemuError::Io { doing: "write to", path: self.path.clone(), source };
        if fs::read_dir(self.file(".")).map_err(io)?.next().is_some() {
            let problem = "it is not empty".to_owned();
            return Err(QemuError::Checkpoint { path: self.path.clone(), problem });
        }
        new_file(&self.file(STATE)).map_err(io)
    }

    /// Makes the state a checkpoint.
    pub(crate) fn finish(&self, manifest: &Manifest) -> Result<(), QemuError> {
        let written = || -> io::Result<()> {
            let mut file = new_file(&self.file(MANIFEST))?;
            file.write_all(&serde_json::to_vec_pretty(manifest)?)?;
            file.sync_all()?;
            self.handle.sync_all()
        };
        written().map_err(QemuError::io("write to", &self.path))
    }

    /// Takes back what was begun.
    pub(crate) fn clear(&self) {
        for name in [MANIFEST, STATE] {
            match fs::remove_file(self.file(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let path = self.path.join(name);
                    tracing::error!(path = %path.display(), %error, "a part of a checkpoint is left behind");
                }
                _ => {}
            }
        }
    }

    /// The description of a whole checkpoint.
    pub(crate) fn manifest(&self) -> Result<Manifest, QemuError> {
        let damaged = |problem: String| QemuError::Checkpoint { path: self.path.clone(), problem };
        let mut text = Vec::new();
        let file = open_file(&self.file(MANIFEST))
            .map_err(|error| damaged(format!("{MANIFEST} cannot be read ({error})")))?;
        file.take(MANIFEST_MAX)
            .read_to_end(&mut text)
            .map_err(QemuError::io("read", &self.path))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| damaged(format!("{MANIFEST} is damaged ({error})")))?;
        if manifest.version != VERSION {
            return Err(damaged(format!("its version {} is not known", manifest.version)));
        }
        Ok(manifest)
    }

    /// The state, if it is as long as its description says.
    pub(crate) fn state(&self, manifest: &Manifest) -> Result<File, QemuError> {
        let damaged = |problem: String| QemuError::Checkpoint { path: self.path.clone(), problem };
        let file = open_file(&self.file(STATE))
            .map_err(|error| damaged(format!("{STATE} cannot be read ({error})")))?;
        let length = file.metadata().map_err(QemuError::io("look at", &self.path))?.len();
        if length != manifest.state_bytes {
            let expected = manifest.state_bytes;
            return Err(damaged(format!("{STATE} has {length} bytes instead of {expected}")));
        }
        Ok(file)
    }

    /// Reads all of the state, and says whether it is what was written. Blocks.
    pub(crate) fn verify(&self, manifest: &Manifest) -> Result<(), QemuError> {
        let mut file = self.state(manifest)?;
        let mut hash = Hash::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk).map_err(QemuError::io("read", &self.path))? {
                0 => return self.check(manifest, &hash.end()),
                read => hash.take(&chunk[..read]),
            }
        }
    }

    /// Compares a digest with what the description says.
    pub(crate) fn check(&self, manifest: &Manifest, digest: &str) -> Result<(), QemuError> {
        if digest == manifest.state_sha256 {
            return Ok(());
        }
        let problem = format!("{STATE} is damaged: its digest is not that of {MANIFEST}");
        Err(QemuError::Checkpoint { path: self.path.clone(), problem })
    }
}

impl Shape {
    /// Fails with all that is different.
    pub(crate) fn check(&self, now: &Self, directory: &Path) -> Result<(), QemuError> {
        let (then_links, now_links) = (self.interfaces.join(", "), now.interfaces.join(", "));
        let (then_memory, now_memory) = (self.memory_mib.to_string(), now.memory_mib.to_string());
        let (then_cpus, now_cpus) = (self.cpus.to_string(), now.cpus.to_string());
        let rows = [
            ("QEMU", &self.qemu, &now.qemu),
            ("machine", &self.machine, &now.machine),
            ("CPU", &self.cpu, &now.cpu),
            ("CPU of the node", &self.node_cpu, &now.node_cpu),
            ("accelerator", &self.accelerator, &now.accelerator),
            ("firmware", &self.firmware, &now.firmware),
            ("memory in MiB", &then_memory, &now_memory),
            ("number of CPUs", &then_cpus, &now_cpus),
            ("list of interfaces", &then_links, &now_links),
        ];
        let differs = rows.into_iter().filter(|(_, then, now)| then != now);
        let words: Vec<_> = differs
            .map(|(what, then, now)| format!("{what} was {then:?} and is {now:?}"))
            .collect();
        match words.is_empty() {
            true => Ok(()),
            false => {
                let problem = format!("it fits another machine: {}", words.join(", "));
                Err(QemuError::Checkpoint { path: directory.to_owned(), problem })
            }
        }
    }
}

/// A digest on its way.
pub(crate) struct Hash(Context);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn end(self) -> String {
        self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file")),
    }
}

pub(crate) const VERSION: u32 = 1;
pub(crate) const CHUNK: usize = 256 * 1024;
const STATE: &str = "machine.state";
const MANIFEST: &str = "machine.json";
const MANIFEST_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn shape() -> Shape {
        Shape {
            qemu: "10.0.2".into(),
            machine: "pc".into(),
            cpu: "max".into(),
            node_cpu: String::new(),
            accelerator: "tcg".into(),
            firmware: "qboot.rom".into(),
            memory_mib: 256,
            cpus: 1,
            interfaces: Vec::new(),
        }
    }

    fn written(dir: &Path) -> Directory {
        let directory = Directory::open(dir).expect("opened");
        directory.begin().expect("begun").write_all(b"all of it").expect("written");
        let mut hash = Hash::new();
        hash.take(b"all of ");
        hash.take(b"it");
        let manifest =
            Manifest { version: VERSION, shape: shape(), state_bytes: 9, state_sha256: hash.end() };
        directory.finish(&manifest).expect("finished");
        directory
    }

    fn check(directory: &Directory) -> Result<(), String> {
        let manifest = directory.manifest().map_err(|error| error.to_string())?;
        directory.verify(&manifest).map_err(|error| error.to_string())
    }

    #[test]
    fn what_was_written_is_found_whole_and_is_the_owners_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let directory = written(dir.path());
        check(&directory).expect("whole");
        for name in [STATE, MANIFEST] {
            let mode = fs::metadata(dir.path().join(name)).expect("there").mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let error = directory.begin().expect_err("refused").to_string();
        assert!(error.contains("not empty"), "{error}");
        directory.clear();
        assert!(fs::read_dir(dir.path()).expect("a list").next().is_none());
    }

    #[test]
    fn whatever_is_damaged_is_named() {
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 5] = [
            ("its digest is not", |dir| fs::write(dir.join(STATE), b"all of xt").expect("written")),
            ("has 3 bytes instead of 9", |dir| {
                fs::write(dir.join(STATE), b"all").expect("written")
            }),
            ("machine.state cannot be read", |dir| {
                fs::remove_file(dir.join(STATE)).expect("removed");
            }),
            ("machine.json is damaged", |dir| {
                fs::write(dir.join(MANIFEST), b"{").expect("written")
            }),
            ("machine.state cannot be read", |dir| {
                fs::remove_file(dir.join(STATE)).expect("removed");
                std::os::unix::fs::symlink("/etc/passwd", dir.join(STATE)).expect("linked");
            }),
        ];
        for (words, damage) in damages {
            let dir = tempfile::tempdir().expect("a directory");
            let directory = written(dir.path());
            damage(dir.path());
            let error = check(&directory).expect_err("refused");
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("opened");
        let error = Directory::open(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("others can write"), "{error}");
        Directory::open(Path::new("relative")).expect_err("refused");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).expect("linked");
        Directory::open(&link).expect_err("refused");
    }

    #[test]
    fn a_machine_of_another_shape_is_told_what_differs() {
        shape().check(&shape(), Path::new("/c")).expect("the same");
        let other = Shape {
            qemu: "10.1.0".into(),
            memory_mib: 512,
            interfaces: vec!["eth0".into(), "net1".into()],
            ..shape()
        };
        let error = shape().check(&other, Path::new("/c")).expect_err("refused").to_string();
        for words in [
            "QEMU was \"10.0.2\" and is \"10.1.0\"",
            "memory in MiB was \"256\"",
            "list of interfaces was \"\" and is \"eth0, net1\"",
        ] {
            assert!(error.contains(words), "{error}");
        }
    }
}
