//! What the kernel says of mounts (`/proc/self/mountinfo`, proc(5)), and of file systems that hold no files.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// All mounts that this process sees.
pub(super) struct Mounts(Vec<Mounted>);

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    device: String,
    /// What of the file system is mounted.
    root: PathBuf,
    /// Where.
    pub(super) point: PathBuf,
    pub(super) kind: String,
}

impl Mounts {
    pub(super) fn read() -> std::io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    fn parse(text: &[u8]) -> Self {
        Self(text.split(|byte| *byte == b'\n').filter_map(Mounted::parse).collect())
    }

    /// What is mounted exactly there: the last one hides the others.
    pub(super) fn at(&self, point: &Path) -> Option<&Mounted> {
        self.0.iter().rev().find(|mounted| mounted.point == point)
    }

    /// Points below a path, as relative paths.
    pub(super) fn below(&self, path: &Path) -> Vec<PathBuf> {
        let below = |mounted: &Mounted| mounted.point.strip_prefix(path).ok().map(Path::to_owned);
        let mut points: Vec<_> = self.0.iter().filter_map(below).collect();
        points.retain(|point| !point.as_os_str().is_empty());
        points.sort();
        points.dedup();
        points
    }

    /// Where what is mounted at a point can be found by another path.
    pub(super) fn origin(&self, point: &Path) -> Option<PathBuf> {
        let bound = self.at(point)?;
        let by = |other: &Mounted| {
            let inside = bound.root.strip_prefix(&other.root).ok()?;
            // What is hidden by another mount is not found there.
            let path = other.point.join(inside);
            let visible = self.holder(&path).is_some_and(|holder| holder == other);
            (other.device == bound.device && other.point != point && visible).then_some(path)
        };
        self.0.iter().find_map(by)
    }

    /// The mount that a path is in.
    fn holder(&self, path: &Path) -> Option<&Mounted> {
        // Of several at one point, the last.
        let around = self.0.iter().filter(|mounted| path.starts_with(&mounted.point));
        around.max_by_key(|mounted| mounted.point.components().count())
    }
}

impl Mounted {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let separator = fields.iter().position(|field| *field == b"-")?;
        Some(Self {
            device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
            root: unescape(fields.get(3)?),
            point: unescape(fields.get(4)?),
            kind: String::from_utf8_lossy(fields.get(separator + 1)?).into_owned(),
        })
    }
}

/// Blanks and their like are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// What a file system without files is called; `None` for one with files. Numbers are those of statfs(2).
pub(super) fn pseudo(magic: u64) -> Option<&'static str> {
    let known = [
        (0x9fa0, "a part of /proc"),
        (0x6265_6572, "a part of /sys"),
        (0x0027_e0eb, "a cgroup"),
        (0x6367_7270, "a cgroup"),
        (0x1cd1, "a directory of terminals"),
        (0x6462_6720, "a part of debugfs"),
        (0x7472_6163, "a part of tracefs"),
        (0x7363_6673, "a part of securityfs"),
        (0xcafe_4a11, "a part of bpf"),
        (0x1980_0202, "a directory of message queues"),
        (0x6265_6570, "a part of configfs"),
        (0xde5e_81e4, "a part of efivarfs"),
        (0x6165_676c, "a part of pstore"),
        (0x9584_58f6, "memory of huge pages"),
    ];
    known.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_of_a_mounted_part_is_a_path_that_is_not_hidden() {
        let mounts = Mounts::parse(
            b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
              2 1 8:2 /var /data rw shared:1 - ext4 /dev/sdb rw\n\
              3 1 0:40 / /k/pods/u/volumes/kubernetes.io~empty-dir/mem rw - tmpfs tmpfs rw\n\
              4 1 0:40 /in/side /k/pods/u/volume-subpaths/mem/c/0 rw - tmpfs tmpfs rw\n\
              5 1 8:1 /k/pods/u/volumes/kubernetes.io~empty-dir/disk/a\\040b /k/pods/u/volume-subpaths/disk/c/1 rw - ext4 /dev/sda rw\n\
              6 1 8:2 /elsewhere /k/pods/u/volume-subpaths/other/c/2 rw - ext4 /dev/sdb rw\n\
              7 1 8:1 /hidden/x /k/pods/u/volume-subpaths/hidden/c/3 rw - ext4 /dev/sda rw\n\
              8 1 0:41 / /hidden rw - tmpfs tmpfs rw\n\
              not a line\n",
        );
        let empty = "/k/pods/u/volumes/kubernetes.io~empty-dir";
        let cases = [
            ("mem/c/0", Some(format!("{empty}/mem/in/side"))),
            ("disk/c/1", Some(format!("{empty}/disk/a b"))),
            ("other/c/2", None),
            ("hidden/c/3", None),
            ("nothing/c/4", None),
        ];
        for (part, expected) in cases {
            let point = Path::new("/k/pods/u/volume-subpaths").join(part);
            assert_eq!(mounts.origin(&point), expected.map(PathBuf::from), "{part}");
        }
        assert_eq!(mounts.at(Path::new("/hidden")).map(|one| one.kind.as_str()), Some("tmpfs"));
        assert_eq!(mounts.below(Path::new("/k/pods/u/volumes")).len(), 1);
        assert_eq!(unescape(b"a\\040b\\134c\\9"), Path::new("a b\\c\\9"));
    }
}
