//! What an ELF file is, without running it.

use std::path::Path;

use infranetes_sdk::bridge::abi::manifest::SECTION;
use object::{Architecture, BinaryFormat, Object, ObjectKind, ObjectSection};

use crate::error::LoadError;

/// Gives the manifest section of a shared library for this hardware.
pub(crate) fn manifest_section<'d>(path: &Path, data: &'d [u8]) -> Result<&'d [u8], LoadError> {
    let not_a_library = |source| LoadError::NotALibrary { path: path.into(), source };
    let file = object::File::parse(data).map_err(not_a_library)?;
    if file.format() != BinaryFormat::Elf || file.kind() != ObjectKind::Dynamic {
        let found = format!("{:?} of format {:?}", file.kind(), file.format());
        return Err(LoadError::NotDynamic { path: path.into(), found });
    }
    // The linker's own message for a wrong architecture is "No such file or directory".
    let expected = host_architecture();
    if expected.is_some_and(|expected| file.architecture() != expected) {
        return Err(LoadError::Architecture {
            path: path.into(),
            found: format!("{:?}", file.architecture()),
            expected: std::env::consts::ARCH.into(),
        });
    }
    let section = file
        .section_by_name(SECTION)
        .ok_or_else(|| LoadError::NotAProvider { path: path.into() })?;
    section.data().map_err(not_a_library)
}

/// `None` for hardware that nobody has tried; the manifest's target triple still has to fit.
fn host_architecture() -> Option<Architecture> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Architecture::X86_64),
        "aarch64" => Some(Architecture::Aarch64),
        "riscv64" => Some(Architecture::Riscv64),
        "s390x" => Some(Architecture::S390x),
        "powerpc64" => Some(Architecture::PowerPc64),
        _ => None,
    }
}
