//! A layer of a test image under construction: a tar whose bytes depend on what is in it alone.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Files and directories, in the order in which they were added.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
    dirs: BTreeSet<String>,
}

impl Default for Layer {
    fn default() -> Self {
        Layer { tar: tar::Builder::new(Vec::new()), dirs: BTreeSet::new() }
    }
}

impl Layer {
    /// Debian's static busybox with its applets but these, and the usual directories. Applets are hard links: a path that is
    /// hidden from a container hides one of them.
    pub fn busybox(without: &[&str]) -> Result<Layer> {
        let program = std::fs::read(BUSYBOX).with_context(|| {
            format!("{BUSYBOX} is missing; `cargo xtask` installs busybox-static")
        })?;
        let mut layer = Layer::default();
        for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "var", "www"] {
            layer.dir(dir, if dir == "tmp" { 0o1777 } else { 0o755 })?;
        }
        layer.file("bin/busybox", 0o755, &program)?;
        for applet in applets()?.iter().filter(|applet| !without.contains(&applet.as_str())) {
            let mut header = header(tar::EntryType::Link, 0o755, 0);
            layer.tar.append_link(&mut header, format!("bin/{applet}"), "bin/busybox")?;
        }
        Ok(layer)
    }

    /// Adds a directory, unless it is there.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        if self.dirs.insert(path.to_owned()) {
            let mut header = header(tar::EntryType::Directory, mode, 0);
            self.tar.append_data(&mut header, path, &b""[..])?;
        }
        Ok(())
    }

    /// Adds a file, and the directories above it.
    pub fn file(&mut self, path: impl AsRef<Path>, mode: u32, data: &[u8]) -> Result<()> {
        let path = path.as_ref();
        let above: Vec<_> = path.ancestors().skip(1).filter_map(Path::to_str).collect();
        for dir in above.into_iter().rev().filter(|dir| !dir.is_empty()) {
            self.dir(dir, 0o755)?;
        }
        let mut header = header(tar::EntryType::Regular, mode, data.len() as u64);
        Ok(self.tar.append_data(&mut header, path, data)?)
    }

    /// The uncompressed tar.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

fn applets() -> Result<Vec<String>> {
    let output = std::process::Command::new(BUSYBOX).arg("--list").output()?;
    ensure!(output.status.success(), "{BUSYBOX} --list failed");
    let names = String::from_utf8(output.stdout)?;
    Ok(names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
}

/// From Debian's package busybox-static.
const BUSYBOX: &str = "/bin/busybox";
