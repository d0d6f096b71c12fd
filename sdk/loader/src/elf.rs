//! What an ELF file is, without running it.

use std::path::Path;

use infranetes_sdk::bridge::abi::manifest::SECTION;
use object::{Architecture, Object, ObjectKind, ObjectSection};

use crate::error::LoadError;

/// Gives the manifest section of a shared library for this hardware.
pub(crate) fn manifest_section<'d>(path: &Path, data: &'d [u8]) -> Result<&'d [u8], LoadError> {
    let not_a_library = |found| LoadError::NotALibrary { path: path.into(), found };
    let damaged = |source| LoadError::Damaged { path: path.into(), source };
    if let Some(found) = something_else(data) {
        return Err(not_a_library(found));
    }
    let file = object::File::parse(data).map_err(damaged)?;
    match file.kind() {
        ObjectKind::Dynamic => {}
        ObjectKind::Relocatable => return Err(not_a_library("an object file")),
        ObjectKind::Executable => return Err(not_a_library("a program")),
        ObjectKind::Core => return Err(not_a_library("a core dump")),
        _ => return Err(not_a_library("another kind of ELF file")),
    }
    // The linker's own message for a wrong architecture is "No such file or directory".
    let expected = host_architecture();
    if expected.is_some_and(|expected| file.architecture() != expected) {
        return Err(LoadError::Architecture {
            path: path.into(),
            found: format!("{:?}", file.architecture()).to_lowercase(),
            expected: std::env::consts::ARCH.into(),
        });
    }
    let section = file
        .section_by_name(SECTION)
        .ok_or_else(|| LoadError::NotAProvider { path: path.into() })?;
    section.data().map_err(damaged)
}

/// What a file is that does not begin as an ELF file does, in the words of who built it.
fn something_else(data: &[u8]) -> Option<&'static str> {
    match data {
        [] => Some("an empty file"),
        [0x7f, b'E', b'L', b'F', ..] => None,
        [b'!', b'<', b'a', b'r', b'c', b'h', b'>', ..] => {
            Some("an archive of object files (an .rlib or .a)")
        }
        [b'#', b'!', ..] => Some("a script"),
        _ if data.iter().take(TEXT_BYTES).all(|byte| byte.is_ascii() && *byte != 0) => Some("text"),
        _ => Some("no ELF file"),
    }
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

/// What tells text from data.
const TEXT_BYTES: usize = 512;
