//! Images that a container has mounted besides its own.
//!
//! ```text
//! RUN/c/ID/images/N         the layers of the mount N of the request, read-only
//! ROOT/writable/ID/images/N whose they are, for a pod with users of its own: a layer that only changes owners
//! ```
//!
//! Nothing of an image can be written. Its programs can be run, as Kubernetes wants of these volumes.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use infranetes_sdk::v1::{CreateContainerRequest, Mount, UserNamespace};
use infranetes_sdk::{ProviderError, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::io_error;
use crate::image::{ImageStore, LayerPath};
use crate::rootfs::{Rootfs, mount_read_only, open_in, open_root, unmount};
use crate::users::shift_owners;

/// Mounts every image that the request names, and gives the request with binds of these mounts in their place. Also the
/// layers that are used so.
pub(crate) fn mount_images(
    images: &ImageStore,
    bundle: &Path,
    request: &CreateContainerRequest,
    owned: Option<Owned<'_>>,
) -> Result<(CreateContainerRequest, Vec<LayerPath>)> {
    let mut request = request.clone();
    let mut used = Vec::new();
    for (number, mount) in request.mounts.iter_mut().enumerate() {
        if mount.r#type == IMAGE {
            let target = bundle.join(IMAGES).join(number.to_string());
            let number = number.to_string();
            let owned =
                owned.as_ref().map(|owned| Owned { dir: owned.dir.join(&number), ..*owned });
            used.extend(mount_one(images, &target, mount, owned)?);
        }
    }
    Ok((request, used))
}

/// For a pod whose users are others in the machine: to whom an image's files are given, and where that is kept.
pub(crate) struct Owned<'a> {
    pub(crate) users: &'a UserNamespace,
    pub(crate) dir: PathBuf,
}

/// Unmounts all of them; none is fine.
pub(crate) fn unmount_images(bundle: &Path) -> io::Result<()> {
    for entry in fs::read_dir(bundle.join(IMAGES)).into_iter().flatten().flatten() {
        unmount(&entry.path())?;
    }
    Ok(())
}

fn mount_one(
    images: &ImageStore,
    target: &Path,
    mount: &mut Mount,
    owned: Option<Owned<'_>>,
) -> Result<Vec<LayerPath>> {
    let image = mount.image.take();
    let image = image.ok_or_else(|| ProviderError::invalid("an image mount names no image"))?;
    if let Some(option) = mount.options.iter().find(|option| WRITABLE.contains(&option.as_str())) {
        return Err(ProviderError::invalid(format!(
            "an image is mounted read-only; {option:?} is not possible"
        )));
    }
    let mut layers = images.layers_of(&image)?;
    // An overlay that nobody can write to has two directories at least.
    while layers.len() < 2 {
        layers.insert(0, images.empty_layer()?);
    }
    match owned {
        None => mount_read_only(&images.layers_dir(), &layers, images.form(), target)?,
        Some(Owned { users, dir }) => {
            let tree = Rootfs { mountpoint: target.to_owned(), writable: dir };
            tree.mount(&images.layers_dir(), &layers, images.form(), true)?;
            shift_owners(&open_root(target)?, users)?;
        }
    }
    let source = part_of(target, &mount.sub_path)?;
    mount.r#type = "bind".to_owned();
    mount.source = source.display().to_string();
    mount.sub_path = String::new();
    mount.options.retain(|option| !OURS.contains(&option.as_str()));
    mount.options.extend(OURS.map(str::to_owned));
    Ok(layers)
}

/// The path of a part of a mounted image; its links lead to places in the image.
fn part_of(target: &Path, sub_path: &str) -> Result<PathBuf> {
    if sub_path.is_empty() {
        return Ok(target.to_owned());
    }
    if sub_path.starts_with('/') || sub_path.split('/').any(|name| name == "..") {
        return Err(ProviderError::invalid(format!("{sub_path:?} is no path within an image")));
    }
    let found =
        open_in(&open_root(target)?, sub_path, OFlags::PATH).map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR => {
                ProviderError::not_found(format!("the image has no {sub_path:?}"))
            }
            error => io_error(format!("cannot open {sub_path:?} in the image"))(error),
        })?;
    // Nothing changes in a read-only image: the path stays what it is.
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .map_err(io_error("cannot find a part of an image"))
}

/// The type of mounts that name an image.
const IMAGE: &str = "image";
const IMAGES: &str = "images";
const WRITABLE: [&str; 3] = ["rw", "suid", "dev"];
const OURS: [&str; 3] = ["ro", "nosuid", "nodev"];
