//! Looks at all of a shared volume, and compares it with what was agreed on.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use rustix::fs::{Dir, OFlags};
use rustix::io::Errno;

use super::{Agreed, DIRECTORY, Found, Now, Scan, now, open};
use crate::volumes::VolumeError;

/// How much a volume may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

type Tree = BTreeMap<PathBuf, Now>;

/// All that is there, the root included.
pub(super) fn walk(root: &OwnedFd, limits: Limits) -> Result<Tree, VolumeError> {
    let mut walk = Walk { tree: Tree::new(), limits, bytes: 0 };
    let itself = now(root).map_err(VolumeError::io("look at"))?;
    walk.take(PathBuf::new(), itself)?;
    walk.directory(root, Path::new(""), 0)?;
    Ok(walk.tree)
}

struct Walk {
    tree: Tree,
    limits: Limits,
    bytes: u64,
}

impl Walk {
    fn directory(&mut self, dir: &OwnedFd, path: &Path, depth: usize) -> Result<(), VolumeError> {
        if depth > DEPTH_MAX {
            return Err(VolumeError::TooMuch(format!("directories deeper than {DEPTH_MAX}")));
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(dir).map_err(VolumeError::io("read"))? {
            let entry = entry.map_err(VolumeError::io("read"))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
            if names.len() as u64 > self.limits.entries {
                return Err(self.too_many());
            }
        }
        names.sort();
        for name in names {
            let name = OsStr::from_bytes(name.as_bytes());
            let below = path.join(name);
            let opened = match open(dir, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(opened) => opened,
                // It went meanwhile, or something is mounted there that is no part of the volume.
                Err(Errno::NOENT | Errno::XDEV | Errno::LOOP) => continue,
                Err(error) => return Err(VolumeError::io("look at")(error)),
            };
            let found = now(&opened).map_err(VolumeError::io("look at"))?;
            let is_directory = found.is_directory();
            self.take(below.clone(), found)?;
            if is_directory {
                match open(&opened, Path::new(""), DIRECTORY) {
                    Ok(inner) => self.directory(&inner, &below, depth + 1)?,
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(VolumeError::io("open")(error)),
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, path: PathBuf, found: Now) -> Result<(), VolumeError> {
        self.bytes = self.bytes.saturating_add(found.size);
        if self.bytes > self.limits.bytes {
            return Err(VolumeError::TooMuch(format!("more than {} bytes", self.limits.bytes)));
        }
        self.tree.insert(path, found);
        if self.tree.len() as u64 > self.limits.entries { Err(self.too_many()) } else { Ok(()) }
    }

    fn too_many(&self) -> VolumeError {
        VolumeError::TooMuch(format!("more than {} entries", self.limits.entries))
    }
}

/// What is there and what was, by path.
pub(super) fn compare(tree: Tree, base: &BTreeMap<PathBuf, Agreed>) -> Scan {
    let revision = revision(&tree);
    let gone = base.iter().filter(|(path, _)| !tree.contains_key(*path));
    let gone = gone.map(|(path, agreed)| Found {
        path: path.clone(),
        now: None,
        token: agreed.token.clone(),
        changed: true,
    });
    let mut found: Vec<Found> = gone.collect();
    found.extend(tree.into_iter().map(|(path, now)| {
        let agreed = base.get(&path);
        Found {
            changed: agreed.is_none_or(|agreed| !agreed.settled || agreed.stamp != now.stamp),
            token: agreed.map(|agreed| agreed.token.clone()).unwrap_or_default(),
            now: Some(now),
            path,
        }
    }));
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Scan { revision, found }
}

/// Empty while something is fresh.
fn revision(tree: &Tree) -> Vec<u8> {
    if tree.values().any(|now| now.fresh) {
        return Vec::new();
    }
    let mut context = Context::new(&SHA256);
    for (path, now) in tree {
        let path = path.as_os_str().as_bytes();
        context.update(&(path.len() as u64).to_be_bytes());
        context.update(path);
        context.update(&now.stamp);
    }
    context.finish().as_ref().to_vec()
}

/// The node takes no more either.
const DEPTH_MAX: usize = 64;
