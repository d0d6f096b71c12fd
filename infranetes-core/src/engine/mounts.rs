//! From the mounts that a container asks for to what its machine has to have: volumes, images, and where they go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt;
use sha2::{Digest, Sha256};

use crate::engine::node::Node;
use crate::engine::share::Shared;
use crate::error::{Cause, EngineError};
use crate::mounts::{
    Allowed, Entry, EntryKind, Facts, FilesError, Follow, MountError, MountSource, MountSpec,
    Mounted, NodeKind, NodePath, Part, Parts, Place, Propagation, place,
};
use crate::session::{MachineImage, VolumeMount, VolumeMountSource};
use crate::spec::{SandboxSpec, UserNamespace};

/// All mounts of one container.
#[derive(Default)]
pub(crate) struct Mounts {
    /// For the machine.
    pub(crate) mounts: Vec<VolumeMount>,
    /// What has to be in the machine first.
    pub(crate) volumes: Vec<Volume>,
    pub(crate) images: Vec<MachineImage>,
    /// What goes on after the container was made.
    pub(crate) kept: Vec<Kept>,
    /// Ids of the images, by the number of their mount.
    pub(crate) image_ids: Vec<(usize, String)>,
}

/// Something that a machine has for its containers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Volume {
    pub(crate) id: String,
    pub(crate) content: Content,
}

/// What it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// An emptyDir: `Entry` is like the directory that the kubelet made for it.
    Empty { memory_bytes: u64, root: Entry },
    /// A copy. `whole`: all of it as it was at one moment.
    Copy { path: NodePath, file: bool, whole: bool },
    /// A directory of the node that is not there.
    Nothing,
    /// A directory of the node that is the machine's, too: it begins as this.
    Shared { root: Entry, shared: Box<Shared> },
}

/// A copy that is more than a copy: it follows the node, or the node follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) id: String,
    pub(crate) path: NodePath,
    pub(crate) file: bool,
    /// A change on the node is brought into the machine.
    pub(crate) follow: bool,
    /// What a container wrote is brought to the node when it exits.
    pub(crate) write_back: bool,
    /// It is no copy: both sides have it together.
    pub(crate) sharing: Option<Sharing>,
}

/// How a directory is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sharing {
    /// Its number when it was mounted.
    pub(crate) inode: u64,
    pub(crate) mounted: Mounted,
    /// Below which of its paths the container may write.
    pub(crate) writable: Vec<PathBuf>,
}

impl Kept {
    /// Whether something of it is brought to the node when the container exits.
    pub(crate) fn comes_back(&self) -> bool {
        self.write_back || self.sharing.is_some()
    }

    /// The volume to bring again.
    pub(crate) fn volume(&self) -> Volume {
        let content = Content::Copy { path: self.path.clone(), file: self.file, whole: true };
        Volume { id: self.id.clone(), content }
    }
}

/// Finds out what a container's mounts need, looking at the node's files and images.
pub(crate) async fn plan(
    node: &Arc<Node>,
    sandbox: &SandboxSpec,
    wanted: &[MountSpec],
) -> Result<Mounts, EngineError> {
    let mut mounts = Mounts::default();
    for (number, spec) in wanted.iter().enumerate() {
        let failed = |error: MountError| EngineError::Mount {
            destination: spec.destination.clone(),
            cause: Cause::of(error.kind(), &error),
        };
        spec.check(sandbox.users).map_err(failed)?;
        match &spec.source {
            MountSource::Image { image, sub_path, .. } => {
                let image = node.parts.images.resolve(image).await?.image;
                mounts.image_ids.push((number, image.id.clone()));
                let source = VolumeMountSource::Image(image.clone());
                mounts.mounts.push(mount(spec, source, sub_path.clone()));
                mounts.images.push(image);
            }
            MountSource::Node(path) => {
                let planner = Planner { node, pod_uid: &sandbox.pod.uid, spec };
                planner.plan(path, &mut mounts).await.map_err(failed)?;
            }
        }
    }
    Ok(mounts)
}

struct Planner<'a> {
    node: &'a Node,
    pod_uid: &'a str,
    spec: &'a MountSpec,
}

impl Planner<'_> {
    async fn plan(&self, path: &Path, into: &mut Mounts) -> Result<(), MountError> {
        let policy = &self.node.config.mounts;
        match place(path, &policy.kubelet_dir, self.pod_uid) {
            Place::EmptyDir { volume, part } => self.empty_dir(volume, &part, into).await,
            Place::Kept { path, follow } => self.copy(path, follow, into).await,
            Place::Plugin { path, plugin, name, follow } => {
                self.spec.is_private()?;
                self.plugin(&plugin, &name)?;
                self.copy(path, follow, into).await
            }
            Place::SubPath(path) => self.part(path, into).await,
            Place::Host(path) => self.host(&path, into).await,
        }
    }

    /// What the kubelet mounted for one container out of a volume belongs where it was mounted from.
    async fn part(&self, path: NodePath, into: &mut Mounts) -> Result<(), MountError> {
        let policy = &self.node.config.mounts;
        let files = &self.node.parts.files;
        let no_part = || MountError::NoPart(path.shown());
        let origin = files.origin(&path).await?.ok_or_else(no_part)?;
        // The kernel's list has no links in its paths.
        let kubelet_dir = files.resolve(&policy.kubelet_dir).await?;
        match place(&origin, &kubelet_dir, self.pod_uid) {
            Place::EmptyDir { volume, part } => {
                let volume = NodePath { root: policy.kubelet_dir.clone(), ..volume };
                self.empty_dir(volume, &part, into).await
            }
            Place::Kept { .. } => self.copy(path, Follow::No, into).await,
            Place::Plugin { plugin, name, .. } => {
                self.spec.is_private()?;
                self.plugin(&plugin, &name)?;
                self.copy(path, Follow::No, into).await
            }
            Place::SubPath(_) => Err(no_part()),
            Place::Host(origin) => {
                self.spec.is_private()?;
                policy.allow(&origin, self.spec.read_only)?;
                self.copy(path, Follow::No, into).await
            }
        }
    }

    /// Writes to a volume that has something behind it would be lost.
    fn plugin(&self, plugin: &str, name: &str) -> Result<(), MountError> {
        if self.spec.read_only {
            return Ok(());
        }
        Err(MountError::Plugin { plugin: plugin.to_owned(), volume: name.to_owned() })
    }

    async fn empty_dir(
        &self,
        path: NodePath,
        part: &Path,
        into: &mut Mounts,
    ) -> Result<(), MountError> {
        let facts = self.look(&path).await?;
        if facts.huge_pages {
            return Err(MountError::HugePages);
        }
        if facts.kind != NodeKind::Directory {
            return Err(FilesError::Missing(path.shown()).into());
        }
        let Facts { mode, uid, gid, .. } = facts;
        let root = Entry { mode, uid, gid, ..Entry::plain_directory() };
        let memory_bytes = facts.memory_bytes.unwrap_or(0);
        let id = volume_id("empty", &path);
        let part = part.to_string_lossy().into_owned();
        into.add(self.spec, id, Content::Empty { memory_bytes, root }, part);
        Ok(())
    }

    /// A copy of something below the pod's directory.
    async fn copy(
        &self,
        path: NodePath,
        follow: Follow,
        into: &mut Mounts,
    ) -> Result<(), MountError> {
        let facts = self.look(&path).await?;
        if facts.kind == NodeKind::Missing {
            return Err(FilesError::Missing(path.shown()).into());
        }
        let file = facts.kind == NodeKind::File;
        let id = volume_id("copy", &path);
        let (follow, write_back) = (follow == Follow::Yes, file && !self.spec.read_only);
        if follow || write_back {
            let (id, path) = (id.clone(), path.clone());
            into.kept.push(Kept { id, path, file, follow, write_back, sharing: None });
        }
        into.add(self.spec, id, Content::Copy { path, file, whole: true }, String::new());
        Ok(())
    }

    /// A copy of any other path, as far as the operator allows it.
    async fn host(&self, path: &Path, into: &mut Mounts) -> Result<(), MountError> {
        let policy = &self.node.config.mounts;
        let resolved = self.node.parts.files.resolve(path).await?;
        let allowed = policy.allow(&resolved, self.spec.read_only);
        if !matches!(allowed, Ok(Allowed::Shared)) {
            self.spec.is_private()?;
        }
        let allowed = allowed?;
        let path = NodePath::resolved(&resolved);
        let facts = self.look(&path).await?;
        if allowed == Allowed::Shared {
            return self.share(path, facts, into);
        }
        if facts.kind == NodeKind::Missing {
            // Others make the directory then. In the machine it is there; the node's disk is left alone.
            into.add(self.spec, volume_id("nothing", &path), Content::Nothing, String::new());
            return Ok(());
        }
        let id = volume_id("copy", &path);
        let file = facts.kind == NodeKind::File;
        let content = Content::Copy { path, file, whole: false };
        into.add(self.spec, id.clone(), content, String::new());
        if policy.allow(&resolved, false).is_ok() {
            self.writable_below(&id, &facts.submounts, into);
        }
        Ok(())
    }

    /// What is mounted below a path that is read-only, but not recursively so, may be written to. Gives the paths.
    fn writable_below(&self, id: &str, submounts: &[PathBuf], into: &mut Mounts) -> Vec<PathBuf> {
        if !self.spec.read_only || self.spec.recursive_read_only {
            return Vec::new();
        }
        let below = submounts.iter().take(SUBMOUNTS_MAX).filter_map(|path| path.to_str());
        let below: Vec<&str> = below.collect();
        into.mounts.extend(below.iter().map(|below| VolumeMount {
            destination: format!("{}/{below}", self.spec.destination.trim_end_matches('/')),
            source: VolumeMountSource::Volume(id.to_owned()),
            sub_path: (*below).to_owned(),
            options: vec!["bind".to_owned(), "rw".to_owned()],
        }));
        below.iter().map(PathBuf::from).collect()
    }

    /// A directory that the machine has together with the node.
    fn share(&self, path: NodePath, facts: Facts, into: &mut Mounts) -> Result<(), MountError> {
        match facts.kind {
            NodeKind::Directory => {}
            NodeKind::Missing => return Err(FilesError::Missing(path.shown()).into()),
            NodeKind::File => return Err(MountError::SharedFile(path.shown())),
        }
        let mounted = match self.spec.propagation {
            Propagation::Private => Mounted::Then(facts.submounts.clone()),
            _ => Mounted::Now,
        };
        // Containers that were promised other things of one directory have it twice.
        let id = volume_id(&format!("shared {} {mounted:?}", facts.inode), &path);
        let below = self.writable_below(&id, &facts.submounts, into);
        let writable = if self.spec.read_only { below } else { vec![PathBuf::new()] };
        let sharing = Sharing { inode: facts.inode, mounted, writable };
        let shared = Box::new(Shared::new(&id, &path, &sharing));
        let Facts { mode, uid, gid, .. } = facts;
        let root = Entry { mode, uid, gid, ..Entry::plain_directory() };
        into.add(self.spec, id.clone(), Content::Shared { root, shared }, String::new());
        let (file, follow, write_back) = (false, false, false);
        into.kept.push(Kept { id, path, file, follow, write_back, sharing: Some(sharing) });
        Ok(())
    }

    async fn look(&self, path: &NodePath) -> Result<Facts, MountError> {
        Ok(self.node.parts.files.look(path).await?)
    }
}

impl Mounts {
    /// Where in the container a volume is mounted, for people.
    pub(crate) fn destination(&self, id: &str) -> String {
        let source = VolumeMountSource::Volume(id.to_owned());
        let mount = self.mounts.iter().find(|mount| mount.source == source);
        mount.map_or_else(String::new, |mount| mount.destination.clone())
    }

    /// Gives volumes the names that a machine has for them; those that it has none for keep theirs.
    pub(crate) fn rename(&mut self, names: &BTreeMap<String, String>) {
        let rename = |id: &mut String| {
            if let Some(name) = names.get(id) {
                id.clone_from(name);
            }
        };
        for mount in &mut self.mounts {
            if let VolumeMountSource::Volume(id) = &mut mount.source {
                rename(id);
            }
        }
        for volume in &mut self.volumes {
            rename(&mut volume.id);
            if let Content::Shared { shared, .. } = &mut volume.content {
                rename(&mut shared.id);
            }
        }
        self.kept.iter_mut().for_each(|kept| rename(&mut kept.id));
    }

    fn add(&mut self, spec: &MountSpec, id: String, content: Content, part: String) {
        self.mounts.push(mount(spec, VolumeMountSource::Volume(id.clone()), part));
        // Several mounts of one volume are one delivery.
        if !self.volumes.iter().any(|volume| volume.id == id) {
            self.volumes.push(Volume { id, content });
        }
    }
}

fn mount(spec: &MountSpec, source: VolumeMountSource, sub_path: String) -> VolumeMount {
    let access = if spec.read_only { "ro" } else { "rw" };
    // Nothing is mounted below a volume or an image in a machine, so that read-only is recursively so.
    let mut options = match source {
        VolumeMountSource::Volume(_) => vec!["bind".to_owned(), access.to_owned()],
        VolumeMountSource::Image(_) => vec![access.to_owned()],
    };
    if spec.propagation == Propagation::HostToContainer {
        options.push("rslave".to_owned());
    }
    options.extend(spec.options.iter().cloned());
    VolumeMount { destination: spec.destination.clone(), source, sub_path, options }
}

/// The same path is the same volume for all containers of a pod.
fn volume_id(kind: &str, path: &NodePath) -> String {
    let mut hash = Sha256::new();
    for part in [PathBuf::from(kind), path.root.clone(), path.below.clone()] {
        let bytes = part.as_os_str().as_encoded_bytes();
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    }
    hex::encode(&hash.finalize()[..16])
}

/// The parts of a volume with the owners that they have in a machine where the pod's users are others.
pub(crate) fn owned(parts: Parts, users: UserNamespace) -> Parts {
    let owned = move |part| match part {
        Part::Entry(mut entry) => {
            (entry.uid, entry.gid) = users.in_machine(entry.uid, entry.gid);
            Part::Entry(entry)
        }
        data @ Part::Data(_) => data,
    };
    Box::pin(parts.map_ok(owned))
}

/// The parts of a volume that is not a copy.
pub(crate) fn only(root: Entry) -> Parts {
    debug_assert!(root.kind == EntryKind::Directory);
    Box::pin(futures::stream::iter([Ok(Part::Entry(root))]))
}

const SUBMOUNTS_MAX: usize = 32;
