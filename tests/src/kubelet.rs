//! What a kubelet does on the node for a pod's mounts: directories, volumes that are swapped as a whole, parts that are mounted.

pub mod world;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;

/// The kubelet's directory of one pod. What was mounted below it is unmounted when this is dropped.
pub struct PodDir {
    path: PathBuf,
    mounted: Vec<Mounted>,
    writes: AtomicU64,
}

impl PodDir {
    /// Makes the directory of the pod with this uid below a kubelet's root.
    pub fn new(kubelet_dir: &Path, uid: &str) -> Result<PodDir> {
        let path = kubelet_dir.join("pods").join(uid);
        fs::create_dir_all(&path)?;
        Ok(PodDir { path, mounted: Vec::new(), writes: AtomicU64::default() })
    }

    /// A volume of a kind that the kubelet writes ("configmap", "secret", "projected").
    pub fn kept(&self, kind: &str, name: &str, files: &[(&str, &str)]) -> Result<PathBuf> {
        let path = self.volume(kind, name)?;
        self.swap(&path, files)?;
        Ok(path)
    }

    /// Replaces all that is in such a volume, in the kubelet's way: a new directory, and one link that leads to it.
    pub fn swap(&self, volume: &Path, files: &[(&str, &str)]) -> Result<()> {
        let old = fs::read_link(volume.join("..data")).ok();
        let name = format!("..{}", self.writes.fetch_add(1, Ordering::Relaxed));
        let new = volume.join(&name);
        fs::create_dir(&new)?;
        for (file, text) in files {
            fs::write(new.join(file), text)?;
            fs::set_permissions(new.join(file), fs::Permissions::from_mode(0o640))?;
        }
        symlink(&name, volume.join("..data_tmp"))?;
        fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
        for (file, _) in files {
            if !volume.join(file).is_symlink() {
                symlink(Path::new("..data").join(file), volume.join(file))?;
            }
        }
        for entry in fs::read_dir(volume)? {
            let entry = entry?.file_name();
            let kept = files.iter().any(|(file, _)| entry == OsStr::new(file));
            if !kept && !entry.to_string_lossy().starts_with("..") {
                fs::remove_file(volume.join(entry))?;
            }
        }
        old.map_or(Ok(()), |old| Ok(fs::remove_dir_all(volume.join(old))?))
    }

    /// An emptyDir on the disk.
    pub fn empty_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.volume("empty-dir", name)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(path)
    }

    /// An emptyDir in memory.
    pub fn memory_dir(&mut self, name: &str, size: &str) -> Result<PathBuf> {
        let path = self.empty_dir(name)?;
        let options = format!("size={size},mode=777");
        self.mounted
            .push(Mounted::new(&["-t", "tmpfs", "-o", &options, "infranetes-test"], &path)?);
        Ok(path)
    }

    /// A part of a volume, mounted for one container.
    pub fn part(
        &mut self,
        volume: &str,
        container: &str,
        number: u32,
        of: &Path,
    ) -> Result<PathBuf> {
        let path = self.path.join(format!("volume-subpaths/{volume}/{container}/{number}"));
        if of.is_dir() {
            fs::create_dir_all(&path)?;
        } else {
            fs::create_dir_all(path.parent().context("a path without a parent")?)?;
            fs::write(&path, "")?;
        }
        let of = of.canonicalize()?;
        self.mounted.push(Mounted::new(&["--bind", &of.display().to_string()], &path)?);
        Ok(path)
    }

    /// A file of a container: where it writes its last words.
    pub fn termination_log(&self, container: &str) -> Result<PathBuf> {
        let dir = self.path.join("containers").join(container);
        fs::create_dir_all(&dir)?;
        let path = dir.join("0a1b2c3d");
        fs::write(&path, "")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        Ok(path)
    }

    /// The pod's hosts file.
    pub fn hosts(&self, text: &str) -> Result<PathBuf> {
        let path = self.path.join("etc-hosts");
        fs::write(&path, text)?;
        Ok(path)
    }

    /// A path in the pod's directory.
    pub fn path(&self, below: &str) -> PathBuf {
        self.path.join(below)
    }

    /// The directory of a volume of any kind.
    pub fn volume(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let path = self.path.join(format!("volumes/kubernetes.io~{kind}/{name}"));
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

/// Something that is mounted until this is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// A tmpfs.
    pub fn tmpfs(on: &Path) -> Result<Mounted> {
        Self::new(&["-t", "tmpfs", "infranetes-test"], on)
    }

    /// A tmpfs of a size.
    pub fn sized_tmpfs(on: &Path, size: &str) -> Result<Mounted> {
        Self::new(&["-t", "tmpfs", "-o", &format!("size={size}"), "infranetes-test"], on)
    }

    fn new(args: &[&str], on: &Path) -> Result<Mounted> {
        let status = Command::new("mount").args(args).arg(on).status()?;
        ensure!(status.success(), "nothing could be mounted on {}", on.display());
        Ok(Mounted(on.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What still uses it keeps it; the count of what is left tells.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A mount of a path of the node.
pub fn mount(host_path: &Path, container_path: &str, readonly: bool) -> cri::Mount {
    cri::Mount {
        host_path: host_path.display().to_string(),
        container_path: container_path.to_owned(),
        readonly,
        ..Default::default()
    }
}
