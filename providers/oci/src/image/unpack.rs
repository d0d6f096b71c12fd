//! Unpacks the tar of a layer into a directory, in the form that overlayfs reads.
//!
//! Nothing outside of the directory is ever touched, whatever the archive holds: parents are resolved by `openat2` with the
//! directory as the root, last components are never followed, and names that climb are refused. Whiteouts become character
//! devices 0/0, opaque markers become extended attributes; attributes that steer overlayfs itself are refused in archives.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, fsetxattr, linkat, lsetxattr, makedev, mkdirat, mknodat, openat,
    openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::tar::{Archive, Entry, Kind, TarError};

/// How overlayfs is told about opaque directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OverlayForm {
    /// `trusted.overlay.*`: needs CAP_SYS_ADMIN of the machine.
    Trusted,
    /// `user.overlay.*` with the mount option `userxattr`.
    User,
}

/// The most that a layer may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// What an unpacked layer takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("the path {0:?} leads out of the layer")]
    Escapes(String),
    #[error("{0:?} is not a name for a file")]
    BadName(String),
    #[error("the layer holds more than {0} bytes")]
    TooLarge(u64),
    #[error("the layer holds more than {0} entries")]
    TooMany(u64),
    #[error("{0:?} carries an attribute that steers overlayfs")]
    OverlayAttribute(String),
    #[error("cannot {what} {path:?}")]
    Io { what: &'static str, path: String, source: io::Error },
}

/// Unpacks what `input` gives into `root`, and reads the input to its end.
pub(crate) fn unpack(
    input: impl Read,
    root: BorrowedFd<'_>,
    form: OverlayForm,
    limits: Limits,
) -> Result<Size, UnpackError> {
    let mut archive = Archive::new(input);
    let mut tree = Tree { root, form, directories: Vec::new(), size: Size::default() };
    while let Some(entry) = archive.next_entry()? {
        tree.size.inodes += 1;
        tree.size.bytes = tree.size.bytes.saturating_add(entry.size);
        if tree.size.inodes > limits.entries {
            return Err(UnpackError::TooMany(limits.entries));
        }
        if tree.size.bytes > limits.bytes {
            return Err(UnpackError::TooLarge(limits.bytes));
        }
        tree.add(&entry, &mut archive)?;
    }
    tree.set_directory_times()?;
    // The digests cover what stands behind the archive, too.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TarError::Read)?;
    Ok(tree.size)
}

/// The directory that a layer is unpacked into.
struct Tree<'a> {
    root: BorrowedFd<'a>,
    form: OverlayForm,
    /// Their times are set last: making what is in them changes them.
    directories: Vec<(Vec<u8>, Timespec)>,
    size: Size,
}

impl Tree<'_> {
    fn add(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), UnpackError> {
        let components = components(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            // The layer's own root: it has attributes, and it cannot be replaced.
            return if entry.kind == Kind::Directory {
                self.finish(self.root, b".", entry)
            } else {
                Ok(())
            };
        };
        let parent = self.parent(parents)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.white_out(parent.as_fd(), hidden, entry);
        }
        self.make(parent.as_fd(), name, entry, content)?;
        if entry.kind == Kind::HardLink {
            return Ok(());
        }
        self.finish(parent.as_fd(), name, entry)
    }

    fn make(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let name_os = OsStr::from_bytes(name);
        let there = statat(parent, name_os, AtFlags::SYMLINK_NOFOLLOW).ok();
        let there = there.map(|stat| FileType::from_raw_mode(stat.st_mode));
        if entry.kind == Kind::Directory && there == Some(FileType::Directory) {
            return Ok(());
        }
        if there.is_some() {
            remove(parent, name_os, 0).map_err(at("replace", &entry.path))?;
        }
        let mode = Mode::from_raw_mode(0o600);
        let made = match entry.kind {
            Kind::Directory => mkdirat(parent, name_os, Mode::from_raw_mode(0o700)),
            Kind::Symlink => symlinkat(OsStr::from_bytes(&entry.link), parent, name_os),
            Kind::HardLink => return self.link(parent, name, entry),
            Kind::File => return self.write(parent, name_os, entry, content),
            Kind::Fifo => mknodat(parent, name_os, FileType::Fifo, mode, 0),
            Kind::CharDevice => {
                let device = makedev(entry.device.0, entry.device.1);
                mknodat(parent, name_os, FileType::CharacterDevice, mode, device)
            }
            Kind::BlockDevice => {
                let device = makedev(entry.device.0, entry.device.1);
                mknodat(parent, name_os, FileType::BlockDevice, mode, device)
            }
        };
        made.map_err(at("make", &entry.path))?;
        // A directory in the place of something of this layer, a whiteout included, hides what lies below.
        if entry.kind == Kind::Directory && there.is_some() {
            let made = open_directory(parent, name_os).map_err(at("open", &entry.path))?;
            self.set_opaque(made.as_fd(), &entry.path)?;
        }
        Ok(())
    }

    fn write(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(at("make", &entry.path))?;
        let mut file = std::fs::File::from(file);
        let mut buffer = vec![0; COPY_BUFFER.min(entry.size as usize).max(1)];
        loop {
            let count = content.read(&mut buffer).map_err(TarError::Read)?;
            if count == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..count]).map_err(at("write", &entry.path))?;
        }
    }

    fn link(&self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let target = components(&entry.link)?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(UnpackError::BadName(lossy(&entry.link)));
        };
        let target_parent = self.parent(target_parents)?;
        let (old, new) = (OsStr::from_bytes(target_name), OsStr::from_bytes(name));
        linkat(&target_parent, old, parent, new, AtFlags::empty())
            .map_err(at("make the hard link", &entry.path))
    }

    /// Hides a name of the layers below, or all of the directory.
    fn white_out(
        &self,
        parent: BorrowedFd<'_>,
        hidden: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        if hidden == OPAQUE {
            return self.set_opaque(parent, &entry.path);
        }
        // Other names with the doubled prefix are book-keeping of aufs, and mean nothing here.
        if hidden.starts_with(WHITEOUT) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UnpackError::BadName(lossy(&entry.path)));
        }
        let mode = Mode::from_raw_mode(0);
        match mknodat(parent, OsStr::from_bytes(hidden), FileType::CharacterDevice, mode, 0) {
            // A whiteout is for the layers below; what this layer brings itself stays.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(at("hide", &entry.path)(error)),
        }
    }

    fn set_opaque(&self, directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
        fsetxattr(directory, self.form.opaque(), b"y", XattrFlags::empty())
            .map_err(at("mark as opaque", path))
    }

    /// Owner, mode, attributes, times; in this order, because a change of owner clears setuid.
    fn finish(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let name_os = OsStr::from_bytes(name);
        let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        chownat(parent, name_os, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the owner of", &entry.path))?;
        if entry.kind != Kind::Symlink {
            // Not a link: it was made a moment ago, by us, in a directory that nobody else knows.
            chmodat(parent, name_os, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(at("set the mode of", &entry.path))?;
        }
        self.set_xattrs(parent, name, entry)?;
        let mtime = Timespec { tv_sec: entry.mtime_s, tv_nsec: entry.mtime_ns.into() };
        if entry.kind == Kind::Directory {
            self.directories.push((entry.path.clone(), mtime));
            return Ok(());
        }
        set_time(parent, name_os, mtime).map_err(at("set the time of", &entry.path))
    }

    fn set_xattrs(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        for (key, value) in &entry.xattrs {
            if is_overlay_attribute(key) {
                return Err(UnpackError::OverlayAttribute(lossy(&entry.path)));
            }
            // The rest (labels of security modules, for instance) says something about the machine it was made on.
            if !(key.starts_with(b"user.")
                || key == b"security.capability"
                || key.starts_with(b"system.posix_acl_"))
            {
                continue;
            }
            // There is no call that takes a directory and a name; the last component is not followed.
            let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
            let set = lsetxattr(
                OsStr::from_bytes(&path),
                OsStr::from_bytes(key),
                value,
                XattrFlags::empty(),
            );
            match set {
                // Older kernels keep no user attributes in memory, and none anywhere on links.
                Err(Errno::OPNOTSUPP | Errno::PERM) if key != b"security.capability" => {}
                other => other.map_err(at("set an attribute of", &entry.path))?,
            }
        }
        Ok(())
    }

    fn set_directory_times(&mut self) -> Result<(), UnpackError> {
        for (path, mtime) in std::mem::take(&mut self.directories) {
            // Gone is fine: a later entry may have replaced it.
            if let Ok(directory) = self.parent_no_create(&components(&path)?) {
                set_time(directory.as_fd(), OsStr::new("."), mtime)
                    .map_err(at("set the time of", &path))?;
            }
        }
        Ok(())
    }

    /// Opens a directory of the layer, and makes what is missing of its path.
    fn parent(&self, components: &[&[u8]]) -> Result<OwnedFd, UnpackError> {
        match self.parent_no_create(components) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(at("open", &components.join(&b'/'))),
        }
        for end in 1..=components.len() {
            let above = self
                .parent_no_create(&components[..end - 1])
                .map_err(at("open", &components[..end - 1].join(&b'/')))?;
            match mkdirat(
                &above,
                OsStr::from_bytes(components[end - 1]),
                Mode::from_raw_mode(0o755),
            ) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(at("make", &components[..end].join(&b'/'))(error)),
            }
        }
        self.parent_no_create(components).map_err(at("open", &components.join(&b'/')))
    }

    fn parent_no_create(&self, components: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let path = if components.is_empty() { b".".to_vec() } else { components.join(&b'/') };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        // Links inside of the layer lead to places inside of the layer, as they would in the container.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(self.root, OsStr::from_bytes(&path), flags, Mode::empty(), resolve)
    }
}

impl OverlayForm {
    pub(crate) fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// Removes whatever stands at a name, directories with all that they hold; links are removed, not followed.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &OsStr, depth: u32) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    if depth == DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deep"));
    }
    let directory = open_directory(parent, name)?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if !matches!(child, b"." | b"..") {
            remove(directory.as_fd(), OsStr::from_bytes(child), depth + 1)?;
        }
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes a tree by its path.
pub(crate) fn remove_tree(path: &std::path::Path) -> io::Result<()> {
    remove(CWD, path.as_os_str(), 0)
}

fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn set_time(parent: BorrowedFd<'_>, name: &OsStr, mtime: Timespec) -> Result<(), Errno> {
    let times = Timestamps { last_access: mtime, last_modification: mtime };
    utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// The names of a path; refuses those that climb.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(UnpackError::Escapes(lossy(path))),
            _ if name.contains(&0) || name.len() > NAME_MAX => {
                return Err(UnpackError::BadName(lossy(path)));
            }
            _ => names.push(name),
        }
    }
    Ok(names)
}

fn is_overlay_attribute(key: &[u8]) -> bool {
    key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.")
}

fn at<E: Into<io::Error>>(what: &'static str, path: &[u8]) -> impl FnOnce(E) -> UnpackError {
    let path = lossy(path);
    move |source| UnpackError::Io { what, path, source: source.into() }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..opq";
const COPY_BUFFER: usize = 64 << 10;
const NAME_MAX: usize = 255;
/// More than any path that the kernel takes can have.
const DEPTH_MAX: u32 = 2048;
