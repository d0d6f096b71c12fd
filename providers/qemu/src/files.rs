//! The program and the guest's files: found, or named with what to do about it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::error::QemuError;
use crate::launch::BootFiles;
use crate::node::find_program;

/// Where QEMU, kernel and initramfs are.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    qemu: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    /// For copies that a machine's user can read.
    copies: PathBuf,
    /// Held by whoever makes a copy: machines are created side by side.
    copying: Arc<Mutex<()>>,
}

impl Files {
    pub(crate) fn new(config: &Config, machines: &Path) -> Self {
        Self {
            qemu: config.qemu.clone(),
            kernel: config.kernel.clone(),
            initramfs: config.initramfs.clone(),
            copies: machines.join(COPIES),
            copying: Arc::default(),
        }
    }

    /// Looks whether all is there.
    pub(crate) fn check(&self) -> Result<(), QemuError> {
        self.qemu()?;
        readable("the guest's kernel", &self.kernel)?;
        readable("the guest's initramfs", &self.initramfs)
    }

    /// The files as QEMU is to name them. For another user, what lies in a closed directory is copied to an open one, once
    /// for each version of the file.
    pub(crate) fn ready(&self, for_other_user: bool) -> Result<BootFiles, QemuError> {
        self.check()?;
        let qemu = self.qemu()?;
        let [kernel, initramfs] = [&self.kernel, &self.initramfs].map(|path| {
            if !for_other_user || open_to_all(path) {
                // QEMU runs in another directory.
                return std::path::absolute(path).map_err(QemuError::io("find", path));
            }
            self.copy(path)
        });
        Ok(BootFiles { qemu, kernel: kernel?, initramfs: initramfs? })
    }

    fn qemu(&self) -> Result<PathBuf, QemuError> {
        let remedy = "on Debian: apt-get install qemu-system-x86";
        let path = self.qemu.clone();
        find_program(&self.qemu).map_err(|source| QemuError::Missing {
            what: "the program",
            path,
            remedy,
            source,
        })
    }

    /// A copy named after the file's identity; answers its path as seen from a machine's directory.
    fn copy(&self, path: &Path) -> Result<PathBuf, QemuError> {
        let meta = fs::metadata(path).map_err(QemuError::io("read", path))?;
        let name =
            format!("{:x}-{:x}-{:x}-{:x}", meta.dev(), meta.ino(), meta.size(), meta.mtime());
        let copy = self.copies.join(&name);
        let _alone = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        if !copy.exists() {
            copy_whole(path, &self.copies, &copy).map_err(QemuError::io("copy", path))?;
        }
        Ok(Path::new("..").join(COPIES).join(name))
    }
}

fn copy_whole(from: &Path, dir: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o711))?;
    let new = to.with_extension("new");
    fs::copy(from, &new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o644))?;
    fs::rename(&new, to)
}

/// Whether any user may read a file and pass every directory on the way to it.
fn open_to_all(path: &Path) -> bool {
    let Ok(real) = fs::canonicalize(path) else { return false };
    let mode = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.mode());
    mode(&real) & 0o004 != 0 && real.ancestors().skip(1).all(|dir| mode(dir) & 0o001 != 0)
}

fn readable(what: &'static str, path: &Path) -> Result<(), QemuError> {
    let looked = fs::File::open(path).and_then(|file| file.metadata());
    let looked = looked.and_then(|meta| match meta.is_file() && meta.len() > 0 {
        true => Ok(()),
        false => Err(io::Error::other("it is empty, or no file")),
    });
    let remedy = "`cargo xtask guest` makes it";
    looked.map_err(|source| QemuError::Missing { what, path: path.to_owned(), remedy, source })
}

const COPIES: &str = ".boot";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        let there = dir.path().join("there");
        fs::write(&there, "x").expect("written");
        let base = Config {
            qemu: "sh".into(),
            kernel: there.clone(),
            initramfs: there.clone(),
            ..Default::default()
        };
        Files::new(&base, dir.path()).check().expect("all is there");
        for (config, parts) in [
            (Config { qemu: "no-such-qemu".into(), ..base.clone() }, ["no-such-qemu", "apt-get"]),
            (
                Config { kernel: "/no/kernel".into(), ..base.clone() },
                ["/no/kernel", "cargo xtask guest"],
            ),
            (Config { initramfs: dir.path().into(), ..base.clone() }, ["initramfs", "cargo xtask"]),
        ] {
            let error = Files::new(&config, dir.path()).check().expect_err("missing").to_string();
            for part in parts {
                assert!(error.contains(part), "{error}");
            }
        }
    }

    #[test]
    fn a_file_in_a_closed_directory_is_copied_once() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).expect("closed");
        let kernel = dir.path().join("kernel");
        // Large enough that copies made side by side would meet.
        let content = vec![b'k'; 16 << 20];
        fs::write(&kernel, &content).expect("written");
        let config = Config {
            qemu: "sh".into(),
            kernel: kernel.clone(),
            initramfs: kernel.clone(),
            ..Default::default()
        };
        let machines = dir.path().join("machines");
        let files = Files::new(&config, &machines);
        // All at once, as machines are created: nobody may take another's half copy away.
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| files.ready(true))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        for ready in all {
            let ready = ready.expect("ready");
            let name = ready.kernel.strip_prefix("../.boot").expect("a copy");
            assert_eq!(fs::read(machines.join(COPIES).join(name)).expect("read"), content);
        }
        assert_eq!(fs::read_dir(machines.join(COPIES)).expect("read").count(), 1);
        assert_eq!(files.ready(false).expect("ready").kernel, kernel);
        fs::write(&kernel, "another kernel").expect("written");
        files.ready(true).expect("ready");
        assert_eq!(fs::read_dir(machines.join(COPIES)).expect("read").count(), 2);
    }
}
