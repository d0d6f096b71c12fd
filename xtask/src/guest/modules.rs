//! The kernel modules of the guest: those below and what they depend on, found in the modules themselves.
//!
//! What every boot loads lies in the image as it is. The rest is compressed (`.ko.gz`): an initramfs costs time for each
//! MiB, at every boot. `modules.dep` names, as depmod writes it, each module and what has to be loaded before, the first one last;
//! `modules.alias` maps the names by which the kernel asks for a module.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};

/// Loaded at every boot, in any case before a container runs.
const AT_BOOT: [&str; 4] = ["overlay", "qemu_fw_cfg", "virtio_net", "virtio_pci"];

/// Loaded when something needs them.
#[rustfmt::skip]
const ON_DEMAND: [&str; 45] = [
    // Devices.
    "virtio_balloon", "virtio_blk", "virtio_console", "virtio_mmio", "virtio_rng", "loop",
    // File systems; ext4 is part of the kernel.
    "erofs", "fuse", "squashfs", "virtiofs", "vfat", "xfs", "nfs", "nfsv3", "nfsv4", "nls_ascii", "nls_cp437",
    // Networks, and their firewall.
    "bridge", "br_netfilter", "dummy", "ipvlan", "macvlan", "tun", "veth", "vxlan", "wireguard",
    "nf_tables", "nft_chain_nat", "nft_compat", "nft_ct", "nft_fib_inet", "nft_hash", "nft_limit", "nft_log",
    "nft_masq", "nft_nat", "nft_numgen", "nft_objref", "nft_queue", "nft_quota", "nft_redir", "nft_reject_inet",
    "nf_conntrack_netlink",
    // What iptables of another image asks for by way of nft.
    "xt_conntrack", "xt_MASQUERADE",
];

/// A file for the image, below the directory of the kernel's modules.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct ModuleFile {
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
}

/// All files of the modules in `dir`, which has `kernel/` and `modules.builtin`.
pub(super) fn files(dir: &Path) -> Result<Vec<ModuleFile>> {
    let modules = Modules::read(dir)?;
    let at_boot = modules.closure(&AT_BOOT)?;
    let all = modules.closure(&AT_BOOT.into_iter().chain(ON_DEMAND).collect::<Vec<_>>())?;
    let mut files = Vec::new();
    let mut paths = BTreeMap::new();
    for name in &all {
        let bytes = fs::read(dir.join(&modules.files[name])).context("a module cannot be read")?;
        let bytes = lean(bytes).with_context(|| format!("module {name}"))?;
        let path = modules.files[name].display().to_string();
        let file = if at_boot.contains(name) {
            ModuleFile { path, bytes }
        } else {
            ModuleFile { path: format!("{path}.gz"), bytes: gzip(&bytes)? }
        };
        paths.insert(name.clone(), file.path.clone());
        files.push(file);
    }
    let dep = modules.dep(&all, &paths)?.into_bytes();
    files.push(ModuleFile { path: "modules.dep".to_owned(), bytes: dep });
    let alias = modules.alias(&all)?.into_bytes();
    files.push(ModuleFile { path: "modules.alias".to_owned(), bytes: alias });
    Ok(files)
}

/// The modules of a kernel, by name. Names are written with `_`, as the kernel does.
struct Modules {
    dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Modules {
    fn read(dir: &Path) -> Result<Modules> {
        let list = fs::read_to_string(dir.join("modules.builtin"))
            .context("the kernel's list of built-in modules cannot be read")?;
        let builtin = list.lines().filter_map(|line| name_of(Path::new(line))).collect();
        let mut modules = Modules { dir: dir.to_owned(), files: BTreeMap::new(), builtin };
        modules.walk(Path::new("kernel"))?;
        Ok(modules)
    }

    fn walk(&mut self, below: &Path) -> Result<()> {
        let entries = fs::read_dir(self.dir.join(below)).context("modules cannot be listed")?;
        for entry in entries {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.walk(&path)?;
            } else if let Some(name) = name_of(&path) {
                self.files.insert(name, path);
            }
        }
        Ok(())
    }

    /// These modules and what they need; what is part of the kernel is left out.
    fn closure(&self, names: &[&str]) -> Result<BTreeSet<String>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(name, &mut order)?;
        }
        Ok(order.into_iter().collect())
    }

    /// Appends a module behind all that it needs.
    fn visit(&self, name: &str, order: &mut Vec<String>) -> Result<()> {
        if self.builtin.contains(name) || order.iter().any(|known| known == name) {
            return Ok(());
        }
        for needed in self.info(name)?.values("depends").flat_map(|list| list.split(',')) {
            if !needed.is_empty() {
                self.visit(&needed.replace('-', "_"), order)?;
            }
        }
        order.push(name.to_owned());
        Ok(())
    }

    fn dep(&self, names: &BTreeSet<String>, paths: &BTreeMap<String, String>) -> Result<String> {
        let mut text = String::new();
        for name in names {
            let mut order = Vec::new();
            self.visit(name, &mut order)?;
            text += &paths[name];
            text.push(':');
            for needed in order.iter().rev().filter(|needed| *needed != name) {
                write!(text, " {}", paths[needed])?;
            }
            text.push('\n');
        }
        Ok(text)
    }

    fn alias(&self, names: &BTreeSet<String>) -> Result<String> {
        let mut text = String::new();
        for name in names {
            for alias in self.info(name)?.values("alias") {
                writeln!(text, "alias {alias} {name}")?;
            }
        }
        Ok(text)
    }

    fn info(&self, name: &str) -> Result<Info> {
        let file = self.files.get(name);
        let file = file.with_context(|| format!("the kernel package has no module {name}"))?;
        let bytes = fs::read(self.dir.join(file)).context("a module cannot be read")?;
        Info::parse(&bytes).with_context(|| format!("module {name}"))
    }
}

/// What a module says of itself: `key=value`, in a section of its own.
struct Info(Vec<String>);

impl Info {
    fn parse(module: &[u8]) -> Result<Info> {
        let header = FileHeader64::<Endianness>::parse(module)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, module)?;
        let (_, section) =
            sections.section_by_name(endian, b".modinfo").context("it has no .modinfo")?;
        let text = String::from_utf8_lossy(section.data(endian, module)?).into_owned();
        Ok(Info(text.split('\0').map(str::to_owned).collect()))
    }

    fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let lines = self.0.iter().filter_map(|line| line.split_once('='));
        lines.filter(move |(name, _)| *name == key).map(|(_, value)| value)
    }
}

fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// A module without what only costs time when it is loaded: its signature, which nobody checks who boots this image (the kernel
/// notes in its log that the module is unsigned), its types for BPF programs, for which the kernel would read all of its own, and
/// its tables for walking the stack, which the kernel would sort (a trace that leads through the module marks its lines as guesses).
fn lean(mut module: Vec<u8>) -> Result<Vec<u8>> {
    if let Some(signed) = module.strip_suffix(SIGNED) {
        let at = signed.len().checked_sub(SIGNATURE_INFO).context("its signature is cut off")?;
        let length = signed[at + SIGNATURE_INFO - 4..].try_into().map(u32::from_be_bytes)?;
        let end = at.checked_sub(length as usize).context("its signature is longer than itself")?;
        module.truncate(end);
    }
    for name in EMPTIED {
        empty(&mut module, name)?;
    }
    Ok(module)
}

/// Leaves nothing of a section to read, if there is one of that name. No other section moves.
fn empty(module: &mut [u8], name: &str) -> Result<()> {
    let header = FileHeader64::<Endianness>::parse(&*module)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, &*module)?;
    let Some((index, section)) = sections.section_by_name(endian, name.as_bytes()) else {
        return Ok(());
    };
    let (from, length) = section.file_range(endian).context("a section is nowhere")?;
    let headers = usize::try_from(header.e_shoff(endian))?;
    let size = headers + index.0 * usize::from(header.e_shentsize(endian)) + SECTION_SIZE;
    let (from, length) = (usize::try_from(from)?, usize::try_from(length)?);
    module[from..from + length].fill(0);
    module[size..size + 8].fill(0);
    Ok(())
}

/// Without a time or a name in it: same module, same bytes.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// With each table what would be written into it when the module is loaded.
const EMPTIED: [&str; 4] = [".BTF", ".orc_unwind", ".orc_unwind_ip", ".rela.orc_unwind_ip"];
/// How a signed module ends; before it stand the signature and what describes it, the last of which is the signature's length.
const SIGNED: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_INFO: usize = 12;
/// Where in a section's header of a 64-bit ELF file its size stands.
const SECTION_SIZE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// This test's own program is an ELF file; one of its sections is given the name that is looked for.
    fn module_with_types() -> Vec<u8> {
        let mut program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let at = program.windows(10).rposition(|name| name == b"\0.comment\0").unwrap();
        program[at + 1..at + 10].copy_from_slice(b".BTF\0\0\0\0\0");
        program
    }

    fn types(module: &[u8]) -> Vec<u8> {
        let header = FileHeader64::<Endianness>::parse(module).unwrap();
        let endian = header.endian().unwrap();
        let sections = header.sections(endian, module).unwrap();
        let (_, section) = sections.section_by_name(endian, b".BTF").unwrap();
        section.data(endian, module).unwrap().to_vec()
    }

    #[test]
    fn a_lean_module_has_neither_signature_nor_types() {
        let plain = module_with_types();
        assert!(!types(&plain).is_empty());
        let signed = [&plain, &[7; 300][..], &[0; 8], &300_u32.to_be_bytes(), SIGNED].concat();
        let module = lean(signed).unwrap();
        assert_eq!(module.len(), plain.len());
        assert!(types(&module).is_empty());
        assert_eq!(lean(module.clone()).unwrap(), module);
    }

    #[test]
    fn a_signature_that_cannot_be_is_an_error() {
        let module = [&[0; 8][..], &9_u32.to_be_bytes(), SIGNED].concat();
        assert!(lean(module).is_err());
        assert!(lean(SIGNED.to_vec()).is_err());
    }
}
