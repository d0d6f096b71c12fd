//! The shared libraries of the guest's programs: exactly those that they name, and those that these name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::Endianness;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};

use super::Unpacked;

/// All libraries that the unpacked packages have, by the name that programs know them by.
#[derive(Debug)]
pub(super) struct Libraries {
    files: BTreeMap<String, Library>,
}

/// A library of a package.
#[derive(Clone, Debug)]
pub(super) struct Library {
    /// With symbolic links followed.
    pub(super) file: PathBuf,
    pub(super) package: Unpacked,
}

/// What a program needs to start.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Needs {
    pub(super) libraries: BTreeSet<String>,
    /// The path of the dynamic linker; libraries have none.
    pub(super) interpreter: Option<String>,
}

impl Libraries {
    pub(super) fn find(packages: &[Unpacked]) -> Result<Libraries> {
        let mut libraries = Libraries { files: BTreeMap::new() };
        for package in packages {
            for dir in DIRS {
                let dir = package.dir.join(dir);
                for entry in fs::read_dir(&dir).into_iter().flatten() {
                    libraries.consider(package, &entry?.path())?;
                }
            }
        }
        Ok(libraries)
    }

    fn consider(&mut self, package: &Unpacked, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.contains(".so") || path.is_dir() {
            return Ok(());
        }
        // A link with an absolute target points into the package, not into this machine.
        let file = match fs::read_link(path) {
            Ok(to) if to.is_absolute() => package.dir.join(to.strip_prefix("/")?),
            _ => path.to_owned(),
        };
        if let Ok(file) = file.canonicalize() {
            self.files.insert(name, Library { file, package: package.clone() });
        }
        Ok(())
    }

    /// The libraries that these programs need, and those that they need in turn, but for those that others stand in for.
    pub(super) fn closure(
        &self,
        programs: &[Vec<u8>],
        absent: &BTreeSet<&str>,
    ) -> Result<BTreeMap<String, Library>> {
        let mut open = BTreeSet::new();
        for program in programs {
            open.extend(Needs::of(program)?.libraries);
        }
        let mut found = BTreeMap::new();
        while let Some(name) = open.pop_first() {
            if found.contains_key(&name) || absent.contains(name.as_str()) {
                continue;
            }
            let library = self.get(&name)?.clone();
            let bytes =
                fs::read(&library.file).with_context(|| format!("{name} cannot be read"))?;
            open.extend(Needs::of(&bytes).with_context(|| name.clone())?.libraries);
            found.insert(name, library);
        }
        Ok(found)
    }

    /// A library by its name.
    pub(super) fn get(&self, name: &str) -> Result<&Library> {
        let library = self.files.get(name);
        library.with_context(|| format!("none of the fetched packages has the library {name}"))
    }
}

impl Needs {
    /// Reads them from an ELF file.
    pub(super) fn of(bytes: &[u8]) -> Result<Needs> {
        let header = FileHeader64::<Endianness>::parse(bytes)?;
        let endian = header.endian()?;
        let mut needs = Needs::default();
        for segment in header.program_headers(endian, bytes)? {
            if let Some(path) = segment.interpreter(endian, bytes).ok().flatten() {
                needs.interpreter = Some(String::from_utf8(path.to_vec())?);
            }
        }
        let sections = header.sections(endian, bytes)?;
        let Some((entries, strings)) = sections.dynamic(endian, bytes)? else { return Ok(needs) };
        let strings = sections.strings(endian, bytes, strings)?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED) {
            let name =
                entry.string(endian, strings).ok().context("a name of a library is cut off")?;
            needs.libraries.insert(String::from_utf8(name.to_vec())?);
        }
        Ok(needs)
    }
}

/// Where packages keep libraries. What lies below (plugins of other programs) is nobody's dependency.
const DIRS: [&str; 4] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64"];
