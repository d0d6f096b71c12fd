//! Kernel modules, loaded from the image in the order of their dependencies.

use std::collections::HashMap;
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
            Ok(text) => Index::parse(&text),
            // An image for a kernel that has everything built in.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
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
#[derive(Default)]
struct Index {
    by_name: HashMap<String, Vec<String>>,
}

impl Index {
    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (path, needs) = line.split_once(':')?;
            let chain = std::iter::once(path).chain(needs.split_whitespace()).map(str::to_owned);
            Some((module_name(path)?, chain.collect()))
        };
        Self { by_name: text.lines().filter_map(line).collect() }
    }

    /// Paths of a module and its dependencies, in the order in which they have to be loaded.
    fn in_order(&self, name: &str) -> impl Iterator<Item = &str> {
        self.by_name.get(name).into_iter().flatten().rev().map(String::as_str)
    }
}

/// In file names, `-` and `_` are the same.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    Some(file.strip_suffix(".ko")?.replace('-', "_"))
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
        let index = Index::parse(
            "kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko\n\
             kernel/net/core/net-failover.ko: kernel/net/core/failover.ko\n\
             kernel/drivers/virtio/virtio_ring.ko:\n\
             not a line\n",
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
