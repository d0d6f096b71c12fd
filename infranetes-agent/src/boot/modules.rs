//! Kernel modules, loaded from the image in the order of their dependencies: files as they are, or compressed (`.ko.gz`).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module, init_module};

/// What reaches the node: virtio over PCI.
pub(super) const NETWORK: &[&str] = &["virtio_pci", "virtio_net"];

/// What containers need from the first one on.
pub(super) const CONTAINERS: &[&str] = &["overlay"];

/// What shows the files that the hypervisor hands in.
pub(super) const FIRMWARE: &[&str] = &["qemu_fw_cfg"];

/// From now on the kernel has this program load what somebody needs. A kernel without modules needs nobody.
pub(super) fn help_kernel() -> io::Result<()> {
    match std::fs::write("/proc/sys/kernel/modprobe", HELPER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

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
            load_file(&self.dir.join(path))
                .map_err(|cause| ModuleError { path: path.to_owned(), cause })
        })
    }

    /// Loads whatever the kernel means by this: a module's name, or an alias of modules. Nothing has it: nothing happens.
    pub(super) fn load_meant(&self, meant: &str) -> Result<(), ModuleError> {
        let aliases = std::fs::read_to_string(self.dir.join("modules.alias")).unwrap_or_default();
        let named = meant.replace('-', "_");
        let mut names = vec![named.as_str()];
        names.extend(with_alias(&aliases, meant));
        self.load(&names)
    }
}

fn load_file(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let loaded = if path.extension().is_some_and(|extension| extension == "gz") {
        init_module(&unpacked(file)?, c"")
    } else {
        finit_module(&file, c"", ModuleInitFlags::empty())
    };
    match loaded {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// All of a compressed file, up to more than any module has.
fn unpacked(file: impl Read) -> io::Result<Vec<u8>> {
    let mut module = Vec::new();
    GzDecoder::new(file).take(MODULE_BYTES_MAX + 1).read_to_end(&mut module)?;
    if module.len() as u64 > MODULE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than any module"));
    }
    Ok(module)
}

/// Modules with an alias that fits, of modules.alias: `alias PATTERN MODULE`.
fn with_alias<'a>(aliases: &'a str, meant: &str) -> impl Iterator<Item = &'a str> {
    aliases.lines().filter_map(move |line| {
        let mut words = line.split(' ');
        let ("alias", Some(pattern), Some(name)) = (words.next()?, words.next(), words.next())
        else {
            return None;
        };
        fits(pattern.as_bytes(), meant.as_bytes()).then_some(name)
    })
}

/// Patterns of aliases: `*` is any text, `?` any letter, and `[0-9A]` one of some.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, left) => left.is_none(),
        (Some((b'*', rest)), _) => (0..=text.len()).any(|from| fits(rest, &text[from..])),
        (Some(_), None) => false,
        (Some((b'?', rest)), Some((_, left))) => fits(rest, left),
        (Some((b'[', rest)), Some((letter, left))) => {
            let Some(end) = rest.iter().position(|one| *one == b']') else { return false };
            is_one_of(&rest[..end], *letter) && fits(&rest[end + 1..], left)
        }
        (Some((one, rest)), Some((letter, left))) => one == letter && fits(rest, left),
    }
}

fn is_one_of(mut set: &[u8], letter: u8) -> bool {
    while let Some((first, rest)) = set.split_first() {
        let (last, rest) = match rest {
            [b'-', last, rest @ ..] => (last, rest),
            rest => (first, rest),
        };
        if (*first..=*last).contains(&letter) {
            return true;
        }
        set = rest;
    }
    false
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
    let file = file.strip_suffix(".gz").unwrap_or(file);
    file.strip_suffix(".ko").is_some_and(|file| file.bytes().map(plain).eq(name.bytes()))
}

/// In the guest image.
const HELPER: &str = "/usr/lib/infranetes/modprobe";

/// A module that could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("module {path} cannot be loaded")]
pub struct ModuleError {
    path: String,
    #[source]
    cause: io::Error,
}

/// The largest one of Debian's kernel has 3 MiB.
const MODULE_BYTES_MAX: u64 = 32 << 20;

impl ModuleError {
    pub(super) fn unknown_kernel(cause: io::Error) -> Self {
        Self { path: "modules.dep".to_owned(), cause }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn compressed_modules_are_found_and_come_back_whole() {
        let index = Index(
            "kernel/fs/erofs/erofs.ko.gz: kernel/lib/libcrc32c.ko.gz\nkernel/lib/libcrc32c.ko.gz:\n"
                .to_owned(),
        );
        let order: Vec<_> = index.in_order("erofs").collect();
        assert_eq!(order, ["kernel/lib/libcrc32c.ko.gz", "kernel/fs/erofs/erofs.ko.gz"]);

        let module: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut file = GzEncoder::new(Vec::new(), Compression::best());
        file.write_all(&module).unwrap();
        let file = file.finish().unwrap();
        assert_eq!(unpacked(file.as_slice()).unwrap(), module);
        assert!(unpacked(&file[..file.len() / 2]).is_err(), "half a file");
        assert!(unpacked(b"\x7fELF".as_slice()).is_err(), "not compressed");
    }

    #[test]
    fn what_the_kernel_asks_for_is_found_by_alias() {
        let aliases = "alias fs-erofs erofs\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\n\
                       not an alias\nalias rtnl-link-veth veth\n";
        let found = |meant: &str| with_alias(aliases, meant).collect::<Vec<_>>();
        assert_eq!(found("fs-erofs"), ["erofs"]);
        assert_eq!(found("rtnl-link-veth"), ["veth"]);
        assert_eq!(found("pci:v00001AF4d00001000sv0sd1bc2sc0i0"), ["virtio_pci"]);
        for nothing in ["fs-ero", "fs-erofsx", "pci:v00001AF5d1sv0sd1bc2sc0i0", "", "*"] {
            assert_eq!(found(nothing), Vec::<&str>::new(), "{nothing}");
        }
        assert!(fits(b"a[0-9A]b?", b"aAbc") && fits(b"a[0-9A]b?", b"a5bc"));
        assert!(!fits(b"a[0-9A]b?", b"aBbc") && !fits(b"a[0-9", b"a1"));
    }

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
