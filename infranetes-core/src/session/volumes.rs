//! Volumes: what a machine has of the node for its containers to mount.

use crate::mounts::Parts;
use crate::session::MachineImage;

/// A volume on its way into a machine.
pub struct VolumeSource {
    /// Its id: 1 to 64 of a-z, 0-9 and -.
    pub id: String,
    /// What it is.
    pub kind: VolumeKind,
    /// What the node calls this content.
    pub revision: String,
    /// Its root, and what is in it. A stream that ends with an error brings nothing.
    pub parts: Parts,
}

/// What a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// A directory that the node owns: a new delivery replaces it while containers have it mounted.
    Tree,
    /// One file, which a new delivery is written over.
    File,
    /// A directory that containers and the node own together; a new delivery changes nothing.
    Shared,
    /// A directory that containers own; a new delivery changes nothing.
    Empty {
        /// In memory of this size; 0 is wherever the machine has room.
        memory_bytes: u64,
    },
}

/// A mount of a volume or an image, as a machine is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMount {
    /// Absolute path in the container.
    pub destination: String,
    /// What is mounted.
    pub source: VolumeMountSource,
    /// Only what is below this relative path in it; empty means all of it.
    pub sub_path: String,
    /// Mount options.
    pub options: Vec<String>,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeMountSource {
    /// The volume of this id.
    Volume(String),
    /// An image whose layers are in the machine.
    Image(MachineImage),
}
