//! Makes and removes what a container is made of on disk.
//!
//! ```text
//! RUN/c/ID/config.json      for the runtime
//! RUN/c/ID/rootfs           the mount
//! RUN/c/ID/images/N         an image that it has mounted
//! RUN/c/ID/log.N            output that nobody acknowledged
//! ROOT/writable/ID/         the writable layer, and what only changes the owners of images
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use infranetes_sdk::v1::{CreateContainerRequest, PidNamespace};
use infranetes_sdk::{ProviderError, Result};

use crate::cgroup::Cgroups;
use crate::container::{Container, Parts};
use crate::convert::{self, Surroundings, Users};
use crate::error::io_error;
use crate::image::{ImageStore, make_private_dir, remove_tree};
use crate::image_mounts::{Owned, mount_images, unmount_images};
use crate::pause::Pause;
use crate::rootfs::{Rootfs, make_dir_in, open_root};
use crate::spool::{Spool, SpoolLimits};
use crate::users::{self, shift_owners};

/// Makes containers.
pub(crate) struct Creator {
    pub(crate) images: Arc<ImageStore>,
    pub(crate) root: PathBuf,
    pub(crate) run: PathBuf,
    pub(crate) cgroups: Cgroups,
    pub(crate) cgroup_parent: String,
    pub(crate) spool: SpoolLimits,
    pub(crate) pause: Pause,
}

impl Creator {
    /// Makes a container; after a failure nothing of it is left.
    pub(crate) fn create(
        &self,
        request: CreateContainerRequest,
        pid_namespace_of: Option<u32>,
    ) -> Result<Container> {
        let id = request.id.clone();
        let made = self.make(request, pid_namespace_of);
        if made.is_err()
            && let Err(error) = self.remove_files(&id)
        {
            tracing::warn!(container = id, error = error.chain(), "something half-made is left");
        }
        made
    }

    /// Removes all that is on disk, mounts and cgroups included.
    pub(crate) fn remove(&self, container: &Container) -> Result<()> {
        container.cgroup.remove().map_err(io_error("cannot remove the container's cgroup"))?;
        self.remove_files(container.id())
    }

    fn make(
        &self,
        request: CreateContainerRequest,
        pid_namespace_of: Option<u32>,
    ) -> Result<Container> {
        let image = request.image.as_ref();
        let image = image.ok_or_else(|| ProviderError::invalid("the container has no image"))?;
        convert::signal(request.process.as_ref().map_or("", |process| &process.stop_signal))?;
        let mut layers = self.images.layers_of(image)?;
        if layers.is_empty() {
            layers.push(self.images.empty_layer()?);
        }
        let bundle = self.run.join(BUNDLES).join(&request.id);
        make_private_dir(&bundle)?;
        let users = self.users(&request, &bundle)?;
        let rootfs = rootfs(&self.run, &self.root, &request.id);
        rootfs.mount(&self.images.layers_dir(), &layers, self.images.form(), users.is_some())?;
        let root = open_root(&rootfs.mountpoint)?;
        let cgroup = self.cgroups.container(&self.cgroup_parent, &request.id);
        let owned = users.as_ref();
        let owned =
            owned.map(|users| Owned { users: &users.map, dir: rootfs.writable.join(IMAGES) });
        let (with_images, used) = mount_images(&self.images, &bundle, &request, owned)?;
        layers.extend(used);
        let spec = convert::spec(
            &with_images,
            &Surroundings {
                rootfs: &rootfs.mountpoint,
                root: &root,
                cgroups_path: cgroup.path_for_runtime(),
                cgroup_v2: self.cgroups.is_v2(),
                limitable: self.cgroups.limitable(),
                pod_shm: Path::new("/dev/shm"),
                pid_namespace_of,
                users: users.clone(),
            },
        )?;
        make_dir_in(&root, &spec.process.cwd)?;
        if let Some(users) = &users {
            shift_owners(&root, &users.map)?;
        }
        let text = serde_json::to_vec(&spec).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(bundle.join("config.json"), text))
            .map_err(io_error("cannot write the container's configuration"))?;
        let spool = Spool::new(bundle.clone(), self.spool);
        let process = spec.process;
        Ok(Container::new(Parts { request, layers, process, bundle, rootfs, cgroup, spool }))
    }

    /// The process that holds the pod's users, for a pod whose users are others here. They have to reach the bundle.
    fn users(&self, request: &CreateContainerRequest, bundle: &Path) -> Result<Option<Users>> {
        let asked = request.namespaces.clone().unwrap_or_default();
        let Some(map) = asked.users else { return Ok(None) };
        users::check(&map)?;
        if asked.pid() == PidNamespace::Machine {
            let problem = "a container with users of its own cannot have the machine's processes";
            return Err(ProviderError::invalid(problem));
        }
        fs::set_permissions(bundle, fs::Permissions::from_mode(0o711))
            .map_err(io_error("cannot open the container's bundle to its users"))?;
        Ok(Some(Users { held_by: self.pause.pid(Some(map))?, map }))
    }

    fn remove_files(&self, id: &str) -> Result<()> {
        remove_mounts(&self.run, &self.root, id)?;
        remove_tree(&self.run.join(BUNDLES).join(id))
            .map_err(io_error("cannot remove the container's bundle"))
    }
}

/// Unmounts all that a container has, and removes its writable layer.
pub(crate) fn remove_mounts(run: &Path, root: &Path, id: &str) -> Result<()> {
    unmount_images(&run.join(BUNDLES).join(id))
        .map_err(io_error("cannot unmount an image of the container"))?;
    rootfs(run, root, id).remove()
}

/// Where the root file system of a container is.
fn rootfs(run: &Path, root: &Path, id: &str) -> Rootfs {
    Rootfs {
        mountpoint: run.join(BUNDLES).join(id).join("rootfs"),
        writable: root.join("writable").join(id),
    }
}

const BUNDLES: &str = "c";
const IMAGES: &str = "images";
