//! The durable list of images: one file, replaced as a whole, with a digest over its content.
//!
//! A node has hundreds of images, not millions: the whole list is some hundred kilobytes, so replacing it
//! is cheaper than a database, and any damage, a truncation included, is seen at once. A damaged index is
//! refused and nothing is deleted, because a blob without an owner looks just like one whose owner was lost.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::{Digest, ImageId};
use super::disk;

/// What is recorded of an image. A struct of its own: neither what callers see nor what registries send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageRecord {
    pub(crate) id: ImageId,
    pub(crate) manifest: Digest,
    /// Manifest, configuration and layers with their sizes, each once.
    pub(crate) blobs: BTreeMap<Digest, u64>,
    /// Complete references, sorted.
    pub(crate) tags: Vec<String>,
    /// Complete references, sorted.
    pub(crate) digests: Vec<String>,
    /// As the image configuration has it.
    pub(crate) user: String,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The index cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file cannot be read at all.
    #[error("the index {} cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written.
    #[error(
        "the index {} is damaged ({why}); nothing was deleted. Restore it, or move the whole directory \
         away to start with an empty store",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How one can tell.
        why: &'static str,
    },
    /// The file is from a later version of this program.
    #[error("the index {} has format {found}, and this version reads formats up to {FORMAT}", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The file is gone and the blobs are not.
    #[error(
        "the index {} is missing and there are blobs; nothing was deleted. Restore it, or move the whole \
         directory away to start with an empty store",
        .path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
}

/// The format that is written; every earlier one is read.
const FORMAT: u32 = 1;
const MAGIC: &str = "infranetes image index";
const FILE: &str = "index";
const NEW_FILE: &str = "index.new";

/// Reads the records of the store in `root`, and says how many bytes they take; `None` if there is no index.
pub(super) fn read(root: &Path) -> Result<Option<(Vec<ImageRecord>, u64)>, IndexError> {
    let path = root.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some((decode(&path, &bytes)?, bytes.len() as u64))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IndexError::Read { path, source }),
    }
}

/// What [`read`] answers when there is no index and there should be one.
pub(super) fn missing(root: &Path) -> IndexError {
    IndexError::Missing { path: root.join(FILE) }
}

/// Replaces the records: after a crash, either the old or the new ones are there. Returns the bytes written.
pub(super) fn write<'a>(
    root: &Path,
    records: impl Iterator<Item = &'a ImageRecord>,
) -> io::Result<u64> {
    let images = records.map(wire::Image::from).collect();
    let body = serde_json::to_vec(&wire::Index { images })?;
    let mut bytes = format!("{MAGIC} {FORMAT} {}\n", Digest::of(&body)).into_bytes();
    bytes.extend_from_slice(&body);
    disk::write_durably(&root.join(NEW_FILE), &bytes)?;
    fs::rename(root.join(NEW_FILE), root.join(FILE))?;
    disk::sync_directory(root)?;
    Ok(bytes.len() as u64)
}

/// Deletes what a crash during [`write`] left behind: nobody was told yet that it was written.
pub(super) fn forget_unfinished(root: &Path) -> io::Result<()> {
    match fs::remove_file(root.join(NEW_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Vec<ImageRecord>, IndexError> {
    let damaged = |why| IndexError::Damaged { path: path.to_owned(), why };
    let line_end =
        bytes.iter().position(|byte| *byte == b'\n').ok_or(damaged("it has no header"))?;
    let (header, body) = (&bytes[..line_end], &bytes[line_end + 1..]);
    let header = std::str::from_utf8(header).map_err(|_| damaged("its header is not text"))?;
    let (format, digest) = header
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.trim_start().split_once(' '))
        .ok_or(damaged("its header is not one of an image index"))?;
    let found: u32 = format.parse().map_err(|_| damaged("its format is not a number"))?;
    if found > FORMAT {
        return Err(IndexError::Newer { path: path.to_owned(), found });
    }
    if found == 0 {
        return Err(damaged("its format is none"));
    }
    if Digest::of(body).to_string() != digest {
        return Err(damaged("its content does not have the digest that its header says"));
    }
    let index: wire::Index =
        serde_json::from_slice(body).map_err(|_| damaged("its content is not valid"))?;
    let records = index.images.into_iter().map(wire::Image::into_record);
    records.collect::<Option<_>>().ok_or(damaged("it has a digest that is none"))
}

/// Format 1. A change that older versions would misread is format 2, with this one kept for reading.
mod wire {
    use super::{BTreeMap, Deserialize, ImageId, ImageRecord, Serialize};

    #[derive(Serialize, Deserialize)]
    pub(super) struct Index {
        pub(super) images: Vec<Image>,
    }

    #[derive(Serialize, Deserialize)]
    pub(super) struct Image {
        id: String,
        manifest: String,
        blobs: BTreeMap<String, u64>,
        tags: Vec<String>,
        digests: Vec<String>,
        user: String,
        annotations: BTreeMap<String, String>,
    }

    impl From<&ImageRecord> for Image {
        fn from(record: &ImageRecord) -> Image {
            Image {
                id: record.id.to_string(),
                manifest: record.manifest.to_string(),
                blobs: record.blobs.iter().map(|(blob, size)| (blob.to_string(), *size)).collect(),
                tags: record.tags.clone(),
                digests: record.digests.clone(),
                user: record.user.clone(),
                annotations: record.annotations.clone(),
            }
        }
    }

    impl Image {
        pub(super) fn into_record(self) -> Option<ImageRecord> {
            let blobs = self.blobs.into_iter().map(|(blob, size)| Some((blob.parse().ok()?, size)));
            Some(ImageRecord {
                id: ImageId::new(self.id.parse().ok()?),
                manifest: self.manifest.parse().ok()?,
                blobs: blobs.collect::<Option<_>>()?,
                tags: self.tags,
                digests: self.digests,
                user: self.user,
                annotations: self.annotations,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ImageRecord {
        let digest = |seed: &str| Digest::of(seed.as_bytes());
        ImageRecord {
            id: ImageId::new(digest("config")),
            manifest: digest("manifest"),
            blobs: [(digest("layer"), 7)].into(),
            tags: vec!["r.example/a:1".into()],
            digests: vec![],
            user: "7".into(),
            annotations: [("k".to_owned(), "v".to_owned())].into(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_any_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        write(dir.path(), [record()].iter()).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap().0, [record()]);

        let path = dir.path().join(FILE);
        let good = fs::read(&path).unwrap();
        for cut in 0..good.len() {
            let error = decode(&path, &good[..cut]).unwrap_err();
            assert!(matches!(error, IndexError::Damaged { .. }), "cut at {cut}: {error}");
        }
        for flipped in 0..good.len() {
            let mut bytes = good.clone();
            bytes[flipped] ^= 1;
            assert!(decode(&path, &bytes).is_err(), "bit flipped in byte {flipped}");
        }
        let newer = String::from_utf8(good).unwrap().replacen("index 1 ", "index 2 ", 1);
        let error = decode(&path, newer.as_bytes()).unwrap_err();
        assert!(matches!(error, IndexError::Newer { found: 2, .. }), "{error}");
    }
}
