//! The init of a bare boot: what a machine costs when nothing of ours is in it. Benchmarks compare against it.
//!
//! It prints one line and waits for ever. It is so small that it is written down as machine code, and no compiler can make
//! it heavier.

use anyhow::Result;

use crate::cpio::{Entry, Tree};

/// What it prints.
pub(crate) const LINE: &str = "infranetes-bare-ready";

/// The initramfs with it.
pub(super) fn initramfs() -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    tree.add("dev/console", super::image::CONSOLE)?;
    tree.add("init", Entry::program(program()))?;
    tree.to_cpio()
}

/// A static x86-64 ELF file of one segment: `write(1, LINE)`, then `pause()` for ever.
fn program() -> Vec<u8> {
    let line = format!("{LINE}\n");
    let length = line.len() as u8;
    #[rustfmt::skip]
    let code = [
        0xb8, 1, 0, 0, 0,              // mov eax, 1 (write)
        0xbf, 1, 0, 0, 0,              // mov edi, 1 (standard output)
        0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip + 16] (what stands behind the code)
        0xba, length, 0, 0, 0,         // mov edx, length
        0x0f, 0x05,                    // syscall
        0xb8, 34, 0, 0, 0,             // mov eax, 34 (pause)
        0x0f, 0x05,                    // syscall
        0xeb, 0xf7,                    // jmp to the mov before
    ];
    let size = (HEADERS + code.len() + line.len()) as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable file for x86-64, version 1.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    // Where it begins, where the one program header is, and that there are no sections.
    elf.extend([BASE + HEADERS as u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Load all of the file, to be read and run.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    elf.extend([0, BASE, BASE, size, size, 4096].into_iter().flat_map(u64::to_le_bytes));
    elf.extend(code);
    elf.extend(line.as_bytes());
    elf
}

/// The size of the headers of an ELF file with one program header.
const HEADERS: usize = 64 + 56;
const BASE: u64 = 0x40_0000;

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn it_runs_says_its_line_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init");
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&program()).unwrap();
        file.set_permissions(PermissionsExt::from_mode(0o755)).unwrap();
        drop(file);
        let mut process = Command::new(&path).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "infranetes-bare-ready\n");
        assert!(process.try_wait().unwrap().is_none(), "it ended by itself");
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
