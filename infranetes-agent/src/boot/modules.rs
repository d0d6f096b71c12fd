//! Kernel modules, loaded from the image in the order of their dependencies.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// What reaches the node: virtio over PCI.
pub(super) const NETWORK: &[&str] = &["virtio_pci", "virtio_net"];

/// What containers need from the first one on.
pub(super) const CONTAINERS: &[&str] = &["overlay"];

/// What shows the files that the hypervisor hands in.
pub(super) const FIRMWARE: &[&str] = &["qemu_fw_cfg"];

/// The modules of the running kernel that the image has.
pub(super) struct Modules {
    dir: PathBuf,
    index: Index,
}

impl Modules {
    pub(super) fn of_running_kernel() -> io::Result<Self> {
        let release = nix::sys::utsname::uname()?.release().to_owned();
        let dir = Path::new("/lib/modules").join(release);
        let index = match std::fs::read_to_string(dir.join("modules.dep")) {
            Ok(text) => Index(text),
            // An image for a kernel that has everything built in.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index(String::new()),
            Err(error) => return Err(error),
        };
        Ok(Self { dir, index })
    }

    /// Loads modules and what they need. One that the image does not have is built in, or missed by whoever needs it; one
    /// that is loaded already is success.
    pub(super) fn load(&self, names: &[&str]) -> Result<(), ModuleError> {
        names.iter().flat_map(|name| self.index.in_order(name)).try_for_each(|path| {
            let file = File::open(self.dir.join(path));
            let loaded =
                file.and_then(|file| match finit_module(&file, c"", ModuleInitFlags::empty()) {
                    Ok(()) | Err(Errno::EEXIST) => Ok(()),
                    Err(error) => Err(error.into()),
                });
            loaded.map_err(|cause| ModuleError { path: path.to_owned(), cause })
        })
    }
}

/// modules.dep: `PATH: PATH…`, the nearest dependency first.
struct Index(String);

impl Index {
    /// Paths of a module and its dependencies, in the order in which they have to be loaded.
    fn in_order(&self, name: &str) -> impl Iterator<Item = &str> {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(':'));
        let line = lines.find(|(path, _)| is_module(path, name));
        let paths = line.map(|(path, needs)| needs.split_whitespace().rev().chain([path]));
        paths.into_iter().flatten()
    }
}

/// Whether a path is that of a module. In file names, `-` and `_` are the same.
fn is_module(path: &str, name: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or_default();
    let plain = |letter| if letter == b'-' { b'_' } else { letter };
    file.strip_suffix(".ko").is_some_and(|file| file.bytes().map(plain).eq(name.bytes()))
}

/// A module that could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("module {path} cannot be loaded")]
pub struct ModuleError {
    path: String,
    #[source]
    cause: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_loaded_first() {
        let index = Index(
            "kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko\n\
             kernel/net/core/net-failover.ko: kernel/net/core/failover.ko\n\
             kernel/drivers/virtio/virtio_ring.ko:\n\
             not a line\n"
                .to_owned(),
        );
        let order = |name| index.in_order(name).collect::<Vec<_>>();
        assert_eq!(
            order("virtio"),
            ["kernel/drivers/virtio/virtio_ring.ko", "kernel/drivers/virtio/virtio.ko"]
        );
        assert_eq!(order("net_failover").len(), 2);
        assert_eq!(order("builtin_or_missing"), Vec::<&str>::new());
    }
}
