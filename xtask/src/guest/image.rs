//! Lays out the initramfs and writes down what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::kernel::Kernel;
use super::libraries::{Libraries, Library, Needs};
use super::manifest::{FileEntry, KernelEntry, Manifest, PackageEntry, Totals};
use super::{Programs, Unpacked, absent, bare, modules};
use crate::cpio::{Entry, Tree};

/// The first process has its input and output here.
pub(super) const CONSOLE: Entry = Entry::CharDevice { mode: 0o600, major: 5, minor: 1 };

/// What an image is made of.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) programs: &'a Programs,
    pub(super) packages: &'a [Unpacked],
    pub(super) libraries: Libraries,
    pub(super) kernel: Kernel,
}

/// A finished image.
#[derive(Debug)]
pub(super) struct Built {
    image: Vec<u8>,
    elf: Vec<u8>,
    initramfs: Vec<u8>,
    bare_initramfs: Vec<u8>,
    pub(super) manifest: Manifest,
}

impl Inputs<'_> {
    pub(super) fn build(self) -> Result<Built> {
        let mut layout = Layout::default();
        layout.directories()?;
        self.programs(&mut layout)?;
        self.modules(&mut layout)?;
        let initramfs = layout.tree.to_cpio()?;
        let size = initramfs.len() as u64;
        ensure!(size <= LIMIT, "the initramfs has {size} bytes; {LIMIT} is the limit");
        let elf = self.kernel.elf()?;
        let manifest = self.manifest(&layout, &elf, &initramfs);
        let bare_initramfs = bare::initramfs()?;
        Ok(Built { image: self.kernel.image, elf, initramfs, bare_initramfs, manifest })
    }

    fn programs(&self, layout: &mut Layout) -> Result<()> {
        let crun = self.packages.iter().find(|package| package.name == "crun");
        let crun = crun.context("there is no package crun")?;
        let mut programs = vec![
            (AGENT.to_owned(), read(&self.programs.agent)?, Origin::ours()),
            ("usr/bin/crun".to_owned(), read(&crun.dir.join("usr/bin/crun"))?, Origin::of(crun)),
        ];
        for plugin in &self.programs.plugins {
            let path = format!("{PLUGINS}/{}.so", plugin.name);
            programs.push((path, read(&plugin.file)?, Origin::ours()));
            if let Some(config) = &plugin.config {
                let path = format!("{PLUGINS}/{}.json", plugin.name);
                layout.add(&path, Entry::file(read(config)?), Origin::ours())?;
            }
        }
        let bytes: Vec<Vec<u8>> = programs.iter().map(|(_, bytes, _)| bytes.clone()).collect();
        let (crun, others) = (&bytes[1], [&bytes[..1], &bytes[2..]].concat());
        for (path, bytes, origin) in programs {
            layout.add(&path, Entry::program(bytes), origin)?;
        }
        if self.programs.plugins.is_empty() {
            let config = Entry::file(OCI_CONFIG.as_bytes().to_vec());
            layout.add(&format!("{PLUGINS}/oci.json"), config, Origin::ours())?;
        }
        layout.tree.add("init", Entry::symlink(AGENT))?;
        // The kernel asks its helper for modules that somebody needs. Not under the name that the kernel knows by itself: it asks for
        // ciphers while it boots, and each question starts the agent (50 to 100 ms in all under emulation), to no avail.
        layout.tree.add("usr/lib/infranetes/modprobe", Entry::symlink(&format!("/{AGENT}")))?;
        self.linker(&bytes, layout)?;
        let mut absent = BTreeSet::new();
        if !self.libraries.closure(&others, &absent)?.contains_key(absent::SYSTEMD) {
            absent.insert(absent::SYSTEMD);
            let library = Entry::program(absent::library(absent::SYSTEMD, crun)?);
            layout.add(&format!("{LIBRARY_DIR}/{}", absent::SYSTEMD), library, Origin::ours())?;
        }
        for (name, library) in self.libraries.closure(&bytes, &absent)? {
            if !layout.has(&format!("{LINKER_DIR}/{name}")) {
                layout.add(
                    &format!("{LIBRARY_DIR}/{name}"),
                    library.entry()?,
                    Origin::of(&library.package),
                )?;
            }
        }
        Ok(())
    }

    /// The dynamic linker stands where the programs say.
    fn linker(&self, programs: &[Vec<u8>], layout: &mut Layout) -> Result<()> {
        for program in programs {
            let Some(path) = Needs::of(program)?.interpreter else { continue };
            let name = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
            ensure!(path == format!("/lib64/{name}"), "a program wants a dynamic linker at {path}");
            let path = format!("{LINKER_DIR}/{name}");
            if !layout.has(&path) {
                let library = self.libraries.get(&name)?;
                layout.add(&path, library.entry()?, Origin::of(&library.package))?;
            }
        }
        Ok(())
    }

    fn modules(&self, layout: &mut Layout) -> Result<()> {
        let dir = format!("usr/lib/modules/{}", self.kernel.release);
        for file in modules::files(&self.kernel.modules)? {
            let origin = Origin::of(&self.kernel.package);
            layout.add(&format!("{dir}/{}", file.path), Entry::file(file.bytes), origin)?;
        }
        Ok(())
    }

    fn manifest(&self, layout: &Layout, elf: &[u8], initramfs: &[u8]) -> Manifest {
        let files: Vec<FileEntry> = layout.files().collect();
        let used = |name: &str| files.iter().any(|file| file.package == name);
        let packages = self.packages.iter().filter(|package| used(&package.name));
        Manifest {
            kernel: KernelEntry {
                release: self.kernel.release.clone(),
                package: self.kernel.package.name.clone(),
                version: self.kernel.package.version.clone(),
            },
            packages: packages
                .map(|package| PackageEntry {
                    name: package.name.clone(),
                    version: package.version.clone(),
                    sha256: package.sha256.clone(),
                })
                .collect(),
            totals: Totals {
                files: files.len(),
                file_bytes: files.iter().map(|file| file.size).sum(),
                initramfs_bytes: initramfs.len() as u64,
                initramfs_sha256: digest(initramfs),
                kernel_bytes: elf.len() as u64,
                kernel_sha256: digest(elf),
            },
            files,
        }
    }
}

impl Built {
    /// The files of an image, by name.
    pub(super) fn files(&self) -> Result<[(&'static str, Vec<u8>); 5]> {
        let mut manifest = serde_json::to_vec_pretty(&self.manifest)?;
        manifest.push(b'\n');
        Ok([
            ("vmlinuz", self.image.clone()),
            ("vmlinux", self.elf.clone()),
            ("initramfs", self.initramfs.clone()),
            ("bare-initramfs", self.bare_initramfs.clone()),
            ("manifest.json", manifest),
        ])
    }
}

/// The tree, and where each file of it is from.
#[derive(Default)]
struct Layout {
    tree: Tree,
    origins: BTreeMap<String, Origin>,
}

#[derive(Clone)]
struct Origin {
    package: String,
    version: String,
}

impl Layout {
    fn directories(&mut self) -> Result<()> {
        for dir in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/sbin", "var"]
        {
            self.tree.add(dir, Entry::Dir { mode: 0o755 })?;
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            self.tree.add(name, Entry::symlink(&format!("usr/{name}")))?;
        }
        self.tree.add("dev/console", CONSOLE)
    }

    fn add(&mut self, path: &str, entry: Entry, origin: Origin) -> Result<()> {
        self.tree.add(path, entry)?;
        self.origins.insert(path.to_owned(), origin);
        Ok(())
    }

    fn has(&self, path: &str) -> bool {
        self.origins.contains_key(path)
    }

    fn files(&self) -> impl Iterator<Item = FileEntry> {
        self.tree.entries().filter_map(|(path, entry)| {
            let Entry::File { bytes, .. } = entry else { return None };
            let origin = self.origins.get(path)?;
            Some(FileEntry {
                path: path.to_owned(),
                size: bytes.len() as u64,
                sha256: digest(bytes),
                package: origin.package.clone(),
                version: origin.version.clone(),
            })
        })
    }
}

impl Origin {
    fn ours() -> Origin {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Origin { package: "infranetes".to_owned(), version }
    }

    fn of(package: &Unpacked) -> Origin {
        Origin { package: package.name.clone(), version: package.version.clone() }
    }
}

impl Library {
    fn entry(&self) -> Result<Entry> {
        Ok(Entry::program(read(&self.file)?))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

const AGENT: &str = "usr/bin/infranetes-agent";
const PLUGINS: &str = "usr/lib/infranetes/plugins";
const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";
const LINKER_DIR: &str = "usr/lib64";
/// 30 MiB: what a machine's boot may spend on it.
const LIMIT: u64 = 30 << 20;
/// What the oci provider is told that is part of the agent: the agent holds shared pid namespaces.
pub(super) const OCI_CONFIG: &str = "{\"pause\": [\"/proc/self/exe\", \"--pause\"]}\n";
