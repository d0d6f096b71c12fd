//! The images and layers of this machine, on disk and in memory.
//!
//! ```text
//! ROOT/layers/SHORT        a layer as overlayfs takes it; SHORT is the start of its diff_id
//! ROOT/layers/SHORT.json   written last: without it the layer does not count, and is removed at the next start
//! ROOT/images/HEX.json     an image and its layers
//! ```

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use infranetes_sdk::v1::Image;
use infranetes_sdk::{ProviderError, Result};
use rustix::fs::{CWD, Mode, OFlags, XattrFlags, fsetxattr, openat, statfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::compression;
use super::digest::Digest;
use super::unpack::{Limits, OverlayForm, Size, remove_tree};
use crate::error::io_error;

/// A layer's directory, relative to [`ImageStore::layers_dir`].
pub(crate) type LayerPath = String;

/// All images and layers.
pub(crate) struct ImageStore {
    root: PathBuf,
    form: OverlayForm,
    limits: Limits,
    state: Mutex<State>,
    importing: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct State {
    layers: HashMap<Digest, LayerRecord>,
    images: HashMap<String, ImageRecord>,
}

/// Version 1 of what is kept of a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LayerRecord {
    diff_id: String,
    bytes: u64,
    inodes: u64,
}

/// Version 1 of what is kept of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ImageRecord {
    id: String,
    diff_ids: Vec<String>,
}

impl ImageStore {
    /// Opens the store, and removes what an import that was cut off left behind.
    pub(crate) fn open(root: &Path, limits: Limits) -> Result<Self> {
        let layers = root.join(LAYERS);
        for dir in [root, &layers, &root.join(IMAGES)] {
            make_private_dir(dir)?;
        }
        let form = probe(&layers)?;
        let state = State::read(root)?;
        Ok(Self {
            root: root.to_owned(),
            form,
            limits,
            state: Mutex::new(state),
            importing: Mutex::default(),
        })
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join(LAYERS)
    }

    /// A layer without anything, for an image without layers.
    pub(crate) fn empty_layer(&self) -> Result<LayerPath> {
        fs::create_dir_all(self.layers_dir().join(EMPTY))
            .map_err(io_error("cannot make an empty layer"))?;
        Ok(EMPTY.to_owned())
    }

    pub(crate) fn form(&self) -> OverlayForm {
        self.form
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Digests of the layers that are not here; remembers the image.
    pub(crate) fn missing(&self, image: &Image) -> Result<Vec<String>> {
        let record = ImageRecord::try_from(image)?;
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        {
            let state = self.lock();
            for layer in &image.layers {
                let diff_id = digest(&layer.diff_id)?;
                if !state.layers.contains_key(&diff_id) && seen.insert(diff_id) {
                    missing.push(layer.digest.clone());
                }
            }
        }
        self.remember(record)?;
        Ok(missing)
    }

    /// The directories of an image, lowest first.
    pub(crate) fn layers_of(&self, image: &Image) -> Result<Vec<LayerPath>> {
        let record = ImageRecord::try_from(image)?;
        let paths = {
            let state = self.lock();
            let path = |text: &String| {
                let diff_id = digest(text)?;
                match state.layers.contains_key(&diff_id) {
                    true => Ok(diff_id.short()),
                    false => Err(ProviderError::not_found(format!(
                        "layer {diff_id} of image {} is not in this machine",
                        image.id
                    ))),
                }
            };
            record.diff_ids.iter().map(path).collect::<Result<Vec<_>>>()?
        };
        self.remember(record)?;
        Ok(paths)
    }

    /// Ids of the images whose layers are all here.
    pub(crate) fn list(&self) -> Vec<String> {
        let state = self.lock();
        let mut ids: Vec<_> = state.images.values().filter(|image| state.is_whole(image)).collect();
        ids.sort_by(|left, right| left.id.cmp(&right.id));
        ids.into_iter().map(|image| image.id.clone()).collect()
    }

    /// Forgets an image, and removes the layers that neither another image nor `used` needs.
    pub(crate) fn remove(&self, id: &str, used: &HashSet<LayerPath>) -> Result<()> {
        let mut state = self.lock();
        let Some(image) = state.images.remove(id) else { return Ok(()) };
        remove_file(&self.image_file(id))?;
        for text in &image.diff_ids {
            let diff_id = digest(text)?;
            let needed = state.images.values().any(|other| other.diff_ids.contains(text));
            if needed || used.contains(&diff_id.short()) || state.layers.remove(&diff_id).is_none()
            {
                continue;
            }
            // The record goes first: what is half removed does not count.
            let path = self.layers_dir().join(diff_id.short());
            remove_file(&path.with_extension("json"))?;
            remove_tree(&path).map_err(io_error(format!("cannot remove layer {diff_id}")))?;
        }
        Ok(())
    }

    /// What all layers take.
    pub(crate) fn used(&self) -> Size {
        self.lock().layers.values().fold(Size::default(), |sum, layer| Size {
            bytes: sum.bytes + layer.bytes,
            inodes: sum.inodes + layer.inodes,
        })
    }

    /// What is left where the layers are.
    pub(crate) fn available_bytes(&self) -> Result<u64> {
        let stat = statfs(&self.root).map_err(io_error("cannot ask for the room that is left"))?;
        Ok(stat.f_bavail.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0)))
    }

    pub(super) fn has(&self, diff_id: &Digest) -> bool {
        self.lock().layers.contains_key(diff_id)
    }

    /// The turn of one import of a layer; others of the same layer wait for theirs.
    pub(super) fn turn(&self, diff_id: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut importing = self.importing.lock().unwrap_or_else(PoisonError::into_inner);
        importing.retain(|_, turn| Arc::strong_count(turn) > 1);
        importing.entry(diff_id).or_default().clone()
    }

    /// A new empty directory for a layer on its way in.
    pub(super) fn staging(&self, diff_id: &Digest) -> Result<(PathBuf, OwnedFd)> {
        let path = self.layers_dir().join(format!("{}{STAGING}", diff_id.short()));
        remove_tree(&path).map_err(io_error("cannot remove what an import left behind"))?;
        fs::create_dir(&path).map_err(io_error("cannot make a directory for a layer"))?;
        let dir = open_dir(&path).map_err(io_error("cannot open the directory of a layer"))?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755))
            .map_err(io_error("cannot set the mode of a layer"))?;
        Ok((path, dir))
    }

    /// Takes an unpacked and verified layer in.
    pub(super) fn admit(
        &self,
        diff_id: Digest,
        staging: &Path,
        dir: &OwnedFd,
        size: Size,
    ) -> Result<()> {
        if !is_in_memory(dir) {
            rustix::fs::syncfs(dir).map_err(io_error("cannot bring a layer to the disk"))?;
        }
        let path = self.layers_dir().join(diff_id.short());
        remove_tree(&path).map_err(io_error("cannot remove a layer that does not count"))?;
        fs::rename(staging, &path).map_err(io_error("cannot take a layer in"))?;
        let record =
            LayerRecord { diff_id: diff_id.to_string(), bytes: size.bytes, inodes: size.inodes };
        write_record(&path.with_extension("json"), &record)?;
        self.lock().layers.insert(diff_id, record);
        Ok(())
    }

    fn remember(&self, record: ImageRecord) -> Result<()> {
        let mut state = self.lock();
        if let Some(known) = state.images.get(&record.id) {
            return match known.diff_ids == record.diff_ids {
                true => Ok(()),
                false => Err(ProviderError::conflict(format!(
                    "image {} is known here with other layers",
                    record.id
                ))),
            };
        }
        write_record(&self.image_file(&record.id), &record)?;
        state.images.insert(record.id.clone(), record);
        Ok(())
    }

    /// Only for ids that were parsed: they are file names.
    fn image_file(&self, id: &str) -> PathBuf {
        let name = id.strip_prefix("sha256:").unwrap_or(id);
        self.root.join(IMAGES).join(format!("{name}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read(root: &Path) -> Result<Self> {
        let mut state = Self::default();
        let mut kept = HashSet::new();
        for (_, record) in read_records::<LayerRecord>(&root.join(LAYERS))? {
            let diff_id = digest(&record.diff_id)?;
            kept.insert(diff_id.short());
            state.layers.insert(diff_id, record);
        }
        for (_, record) in read_records::<ImageRecord>(&root.join(IMAGES))? {
            state.images.insert(record.id.clone(), record);
        }
        remove_unrecorded(&root.join(LAYERS), &kept)?;
        Ok(state)
    }

    fn is_whole(&self, image: &ImageRecord) -> bool {
        let is_here = |text: &String| {
            Digest::parse(text).is_ok_and(|diff_id| self.layers.contains_key(&diff_id))
        };
        image.diff_ids.iter().all(is_here)
    }
}

impl TryFrom<&Image> for ImageRecord {
    type Error = ProviderError;

    fn try_from(image: &Image) -> Result<Self> {
        digest(&image.id)?;
        if image.layers.len() > LAYERS_MAX {
            return Err(ProviderError::invalid(format!(
                "image {} has {} layers; at most {LAYERS_MAX} are taken",
                image.id,
                image.layers.len()
            )));
        }
        for layer in &image.layers {
            digest(&layer.digest)?;
            digest(&layer.diff_id)?;
            if !compression::is_known(&layer.media_type) {
                return Err(ProviderError::unsupported(format!(
                    "layers of type {:?} are not supported",
                    layer.media_type
                )));
            }
        }
        let diff_ids = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        Ok(Self { id: image.id.clone(), diff_ids })
    }
}

pub(super) fn digest(text: &str) -> Result<Digest> {
    Digest::parse(text)
        .map_err(|error| ProviderError::invalid("a digest is malformed").with_source(error))
}

/// Which attributes this file system keeps; an upper layer without any cannot be.
fn probe(dir: &Path) -> Result<OverlayForm> {
    let fd = open_dir(dir).map_err(io_error("cannot open the directory of layers"))?;
    for form in [OverlayForm::Trusted, OverlayForm::User] {
        // On the parent of all layers the attribute means nothing.
        match fsetxattr(&fd, form.opaque(), b"n", XattrFlags::empty()) {
            Ok(()) => return Ok(form),
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(io_error("cannot try extended attributes")(error)),
        }
    }
    Err(ProviderError::unsupported(format!(
        "the file system of {} keeps no extended attributes, and overlayfs needs them; mount a tmpfs there",
        dir.display()
    )))
}

fn is_in_memory(dir: &OwnedFd) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    rustix::fs::fstatfs(dir).is_ok_and(|stat| [TMPFS, RAMFS].contains(&(stat.f_type as u64)))
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error(format!("cannot make {}", path.display())))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(format!("cannot remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

fn write_record(path: &Path, record: &impl Serialize) -> Result<()> {
    let failed = || io_error(format!("cannot write {}", path.display()));
    let text = serde_json::to_vec(record).map_err(|error| failed()(io::Error::from(error)))?;
    let new = path.with_extension("new");
    fs::write(&new, text).map_err(failed())?;
    fs::rename(&new, path).map_err(failed())
}

fn read_records<T: DeserializeOwned>(dir: &Path) -> Result<Vec<(PathBuf, T)>> {
    let failed = || io_error(format!("cannot read {}", dir.display()));
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = fs::read(&path).map_err(failed())?;
            // One that cannot be read names nothing; a layer without a record is imported again.
            match serde_json::from_slice(&text) {
                Ok(record) => records.push((path, record)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a record is damaged, and dropped");
                    remove_file(&path)?;
                }
            }
        }
    }
    Ok(records)
}

fn remove_unrecorded(layers: &Path, kept: &HashSet<String>) -> Result<()> {
    let failed = || io_error(format!("cannot clean {}", layers.display()));
    for entry in fs::read_dir(layers).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_staging = path.to_string_lossy().ends_with(STAGING);
        if is_staging || (!kept.contains(&stem) && stem != EMPTY) {
            remove_tree(&path).map_err(failed())?;
        }
    }
    Ok(())
}

const LAYERS: &str = "layers";
const IMAGES: &str = "images";
const STAGING: &str = ".part";
/// Stands for the layers of an image without any.
const EMPTY: &str = "empty";
const LAYERS_MAX: usize = 128;
