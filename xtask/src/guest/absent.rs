//! A library for something that a guest does not have: all its functions fail.
//!
//! Debian's crun can have cgroups made by systemd, so it names libsystemd, which names five more libraries: a fifth of the
//! image, and most of what a run of crun has to load. Without systemd all their functions could do is to fail, and so
//! can these.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, Sym as _};
use object::{Endianness, SymbolIndex};

use crate::program::Program;

/// The library that guests have no use for.
pub(super) const SYSTEMD: &str = "libsystemd.so.0";

/// The functions that a program takes from a library, by the version that it wants them in.
type Functions = BTreeMap<String, BTreeSet<String>>;

/// A library of that name with the functions that `program` takes from it, each of which answers `-ENOSYS`.
pub(super) fn library(name: &str, program: &[u8]) -> Result<Vec<u8>> {
    let functions = taken(name, program).context("what the program imports cannot be read")?;
    let dir = tempfile::tempdir().context("no temporary directory")?;
    let (code, versions, library) =
        (dir.path().join("absent.c"), dir.path().join("versions"), dir.path().join(name));
    fs::write(&code, code_of(&functions))?;
    fs::write(&versions, versions_of(&functions))?;
    // The compiler that links Rust's programs, too.
    Program::new("cc")
        .args(["-shared", "-nostdlib", "-fPIC", "-O1", "-g0", "-s", "-Wl,--build-id=none"])
        .arg(format!("-Wl,-soname,{name}"))
        .arg(format!("-Wl,--version-script={}", versions.display()))
        .arg("-o")
        .args([&library, &code])
        .run()?;
    fs::read(&library).with_context(|| format!("{name} was not made"))
}

fn taken(library: &str, program: &[u8]) -> Result<Functions> {
    let header = FileHeader64::<Endianness>::parse(program)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, program)?;
    let versions = sections.versions(endian, program)?.context("its imports have no versions")?;
    let symbols = sections.symbols(endian, program, object::elf::SHT_DYNSYM)?;
    let mut functions = Functions::new();
    for index in 1..symbols.len() {
        let index = SymbolIndex(index);
        let symbol = symbols.symbol(index)?;
        let version = versions.version(versions.version_index(endian, index).index())?;
        let Some(version) = version.filter(|_| symbol.is_undefined(endian)) else { continue };
        if version.file() == Some(library.as_bytes()) {
            let name = symbol.name(endian, symbols.strings())?;
            let version = String::from_utf8(version.name().to_vec())?;
            functions.entry(version).or_default().insert(String::from_utf8(name.to_vec())?);
        }
    }
    Ok(functions)
}

fn code_of(functions: &Functions) -> String {
    let names = functions.values().flatten();
    names.map(|name| format!("int {name}(void) {{ return -38; }}\n")).collect()
}

fn versions_of(functions: &Functions) -> String {
    let mut text = String::new();
    for (version, names) in functions {
        let names = names.iter().cloned().collect::<Vec<_>>().join("; ");
        let _ = writeln!(text, "{version} {{ global: {names}; }};");
    }
    text + "HIDDEN { local: *; };\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that takes three functions from a library in two versions finds them in the one that stands in for it.
    #[test]
    fn a_program_runs_with_it_and_its_functions_fail() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let real = Functions::from([
            ("LIB_1".to_owned(), ["one", "two"].map(str::to_owned).into()),
            ("LIB_2".to_owned(), ["three"].map(str::to_owned).into()),
        ]);
        let code =
            "int one(void) { return 1; } int two(void) { return 2; } int three(void) { return 3; }";
        fs::write(path("real.c"), code).unwrap();
        fs::write(path("versions"), versions_of(&real)).unwrap();
        let program = "int one(void); int two(void); int three(void);\n\
                       int main(void) { return one() == 1 ? 9 : one() + two() + three() == -3 * 38 ? 7 : 8; }";
        fs::write(path("program.c"), program).unwrap();
        let cc = |args: &str| {
            let args = args.split(' ').map(str::to_owned);
            Program::new("cc").dir(dir.path()).args(args).run().unwrap();
        };
        cc(
            "-shared -fPIC -Wl,-soname,libreal.so.1 -Wl,--version-script=versions -o libreal.so.1 real.c",
        );
        cc("-o program program.c ./libreal.so.1 -Wl,-rpath,$ORIGIN");
        let code_of_exit = || {
            let status = std::process::Command::new(path("program")).status().unwrap();
            status.code()
        };
        assert_eq!(code_of_exit(), Some(9));
        let library = library("libreal.so.1", &fs::read(path("program")).unwrap()).unwrap();
        assert!(library.len() < 32 << 10, "{} bytes", library.len());
        fs::write(path("libreal.so.1"), &library).unwrap();
        assert_eq!(code_of_exit(), Some(7));
    }
}
