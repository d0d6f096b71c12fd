//! What containers mount: files and directories of the node, and images.
//!
//! The node exports nothing. Each mount is placed by its path alone (`place`), and what it needs of the node travels into the
//! machine as a *volume*, which the pod's containers share:
//!
//! ```text
//!  below the pod's directory     emptyDir                          an empty directory in the machine, never copied
//!                                configmap, secret, projected …    a copy that follows the node, read-only as the kubelet asks
//!                                a file that may be written        a copy; its content flows back when a container exits
//!                                subPath of any of these           a copy, or the part of the emptyDir; it does not follow
//!  any other path of the node    by the operator's policy          a copy, or a directory that both sides have together; refused
//!                                                                  unless the configuration names the path
//!  an image                                                        its layers in the machine, read-only
//! ```
//!
//! Paths of the node are opened beneath a root without following a link (`disk`), so that neither a container nor a pod that
//! swaps a directory for a link makes this process read or write elsewhere. A machine never says where something goes: it sends
//! bytes for a path that the node remembers.

mod disk;
mod files;
mod kernel;
mod place;
mod policy;
mod shared;
mod walk;

pub use disk::DiskFiles;
pub use files::{
    Entry, EntryKind, Facts, FilesError, Limits, NodeFiles, NodeKind, NodePath, Part, Parts,
};
pub(crate) use place::{Follow, Place, place};
pub(crate) use policy::Allowed;
pub use policy::{MountError, MountPolicy};
pub(crate) use shared::{DEPTH_MAX, Plan, ToMachine, ToNode, is_temporary, plan};
pub use shared::{
    Incoming, Mounted, Opened, SharedEntry, SharedKind, SharedPath, SharedTree, Taken,
};

use crate::spec::UserNamespace;

/// A mount that a caller wants in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// Absolute path in the container.
    pub destination: String,
    /// What is mounted there.
    pub source: MountSource,
    /// The container cannot write to it.
    pub read_only: bool,
    /// Nor to what is mounted below it.
    pub recursive_read_only: bool,
    /// Which mounts made later are seen on the other side.
    pub propagation: Propagation,
    /// Given back by status; a machine has no labels of the node.
    pub selinux_relabel: bool,
    /// Further options of the mount.
    pub options: Vec<String>,
    /// Owners are to be mapped so. It has to be the pod's own mapping, by which they are mapped in any case.
    pub users: Option<UserNamespace>,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A path of the node.
    Node(std::path::PathBuf),
    /// An image of the node.
    Image {
        /// As the caller named it.
        image: String,
        /// Only what is below this path in it; empty means all of it.
        sub_path: String,
        /// Its id, once the engine found it; callers leave it empty.
        id: String,
    },
}

/// Which mounts made later are seen on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// Those of the node, in the container.
    HostToContainer,
    /// All, on both sides.
    Bidirectional,
}
