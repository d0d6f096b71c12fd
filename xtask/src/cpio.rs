//! The archive format of an initramfs: cpio in its "newc" form (linux: Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Same entries, same bytes: entries are sorted by path, inode numbers count up, owner is root, times are the epoch.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// A tree of files in memory, to become an archive. Parents of an entry are made on the way.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

/// What stands at a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    CharDevice { mode: u32, major: u32, minor: u32 },
    Dir { mode: u32 },
    File { mode: u32, bytes: Vec<u8> },
    Symlink { to: String },
}

impl Tree {
    /// Puts an entry at a path without a leading slash. A path holds one thing.
    pub(crate) fn add(&mut self, path: &str, entry: Entry) -> Result<()> {
        ensure!(!path.is_empty() && !path.starts_with('/'), "{path:?} is no path of an archive");
        for (at, _) in path.match_indices('/') {
            let parent = self.entries.entry(path[..at].to_owned());
            let parent = parent.or_insert(Entry::Dir { mode: 0o755 });
            ensure!(matches!(parent, Entry::Dir { .. }), "{:?} is no directory", &path[..at]);
        }
        let before = self.entries.insert(path.to_owned(), entry);
        ensure!(before.is_none(), "{path:?} is in the archive twice");
        Ok(())
    }

    /// The entries, sorted by path.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// The archive.
    pub(crate) fn to_cpio(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for (path, entry) in self.entries() {
            archive.push(path, entry)?;
        }
        archive.finish()
    }
}

impl Entry {
    /// A file that everybody reads.
    pub(crate) fn file(bytes: Vec<u8>) -> Entry {
        Entry::File { mode: 0o644, bytes }
    }

    /// A file that everybody runs.
    pub(crate) fn program(bytes: Vec<u8>) -> Entry {
        Entry::File { mode: 0o755, bytes }
    }

    pub(crate) fn symlink(to: &str) -> Entry {
        Entry::Symlink { to: to.to_owned() }
    }

    fn mode(&self) -> u32 {
        match self {
            Entry::CharDevice { mode, .. } => 0o020_000 | mode,
            Entry::Dir { mode } => 0o040_000 | mode,
            Entry::File { mode, .. } => 0o100_000 | mode,
            Entry::Symlink { .. } => 0o120_777,
        }
    }

    fn data(&self) -> &[u8] {
        match self {
            Entry::File { bytes, .. } => bytes,
            Entry::Symlink { to } => to.as_bytes(),
            Entry::CharDevice { .. } | Entry::Dir { .. } => &[],
        }
    }
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn push(&mut self, path: &str, entry: &Entry) -> Result<()> {
        self.entries += 1;
        let device = match *entry {
            Entry::CharDevice { major, minor, .. } => (major, minor),
            _ => (0, 0),
        };
        let links = if matches!(entry, Entry::Dir { .. }) { 2 } else { 1 };
        self.record(self.entries, entry.mode(), links, device, path, entry.data())
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.record(0, 0, 1, (0, 0), "TRAILER!!!", &[])?;
        self.pad(BLOCK);
        Ok(self.bytes)
    }

    fn record(
        &mut self,
        inode: u32,
        mode: u32,
        links: u32,
        device: (u32, u32),
        path: &str,
        data: &[u8],
    ) -> Result<()> {
        let size = u32::try_from(data.len()).with_context(|| format!("{path} is too large"))?;
        let name_size = u32::try_from(path.len() + 1).context("a path is too long")?;
        // Owner, group, time, and the device that holds the file stay zero; so does the checksum, which this form has not.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(MAGIC);
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(ALIGNMENT);
        self.bytes.extend_from_slice(data);
        self.pad(ALIGNMENT);
        Ok(())
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

const MAGIC: &[u8] = b"070701";
const ALIGNMENT: usize = 4;
/// Archives end on a block, as the programs that read them expect.
const BLOCK: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_adding_does_not_matter() {
        let forwards = tree(&["a/b", "a/c", "d"]);
        let backwards = tree(&["d", "a/c", "a/b"]);
        assert_eq!(forwards.to_cpio().unwrap(), backwards.to_cpio().unwrap());
    }

    #[test]
    fn parents_come_before_what_is_in_them() {
        let paths: Vec<_> = tree(&["usr/lib/x.so", "init"]).entries.into_keys().collect();
        assert_eq!(paths, ["init", "usr", "usr/lib", "usr/lib/x.so"]);
    }

    #[test]
    fn a_record_has_the_form_that_the_kernel_reads() {
        let archive = tree(&["ab"]).to_cpio().unwrap();
        let fields = ["00000001", "000081a4", "00000000", "00000000", "00000001", "00000000"];
        let rest = ["00000002", "00000000", "00000000", "00000000", "00000000", "00000003"];
        let header = format!("070701{}{}00000000", fields.concat(), rest.concat());
        assert_eq!(std::str::from_utf8(&archive[..110]).unwrap(), header);
        assert_eq!(&archive[110..120], b"ab\0\0\0\0ab\0\0");
        assert!(archive[120..].starts_with(b"070701"));
        assert_eq!(archive.len() % 512, 0);
    }

    #[test]
    fn a_path_holds_one_thing() {
        let mut tree = tree(&["a"]);
        assert!(tree.add("a", Entry::symlink("b")).is_err());
        assert!(tree.add("a/b", Entry::symlink("b")).is_err());
        assert!(tree.add("/c", Entry::symlink("b")).is_err());
    }

    /// Each file holds its own path.
    fn tree(paths: &[&str]) -> Tree {
        let mut tree = Tree::default();
        for path in paths {
            tree.add(path, Entry::file(path.as_bytes().to_vec())).unwrap();
        }
        tree
    }
}
