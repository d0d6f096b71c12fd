//! Fields of a container's record that say what it has mounted. The first records have none of them.

use serde::{Deserialize, Serialize};

use super::fields::UsersField;
use crate::engine::mounts::{Kept, Sharing};
use crate::mounts::{MountSource, MountSpec, Mounted, NodePath, Propagation};

/// A mount, as it was asked for.
#[derive(Serialize, Deserialize)]
pub(crate) struct VolumeField {
    destination: String,
    source: SourceField,
    read_only: bool,
    recursive_read_only: bool,
    propagation: PropagationField,
    selinux_relabel: bool,
    options: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    users: Option<UsersField>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SourceField {
    Node { path: String },
    Image { image: String, sub_path: String, id: String },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PropagationField {
    Private,
    HostToContainer,
    Bidirectional,
}

/// A copy that follows the node, or that the node follows.
#[derive(Serialize, Deserialize)]
pub(crate) struct KeptField {
    id: String,
    root: String,
    below: String,
    file: bool,
    follow: bool,
    write_back: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sharing: Option<SharingField>,
}

/// How a directory is shared. Paths are relative; without `mounted`, whatever is mounted belongs to it.
#[derive(Serialize, Deserialize)]
struct SharingField {
    inode: u64,
    mounted: Option<Vec<String>>,
    writable: Vec<String>,
}

impl From<&MountSpec> for VolumeField {
    fn from(spec: &MountSpec) -> Self {
        let source = match spec.source.clone() {
            MountSource::Node(path) => {
                SourceField::Node { path: path.to_string_lossy().into_owned() }
            }
            MountSource::Image { image, sub_path, id } => {
                SourceField::Image { image, sub_path, id }
            }
        };
        Self {
            destination: spec.destination.clone(),
            source,
            read_only: spec.read_only,
            recursive_read_only: spec.recursive_read_only,
            propagation: match spec.propagation {
                Propagation::Private => PropagationField::Private,
                Propagation::HostToContainer => PropagationField::HostToContainer,
                Propagation::Bidirectional => PropagationField::Bidirectional,
            },
            selinux_relabel: spec.selinux_relabel,
            options: spec.options.clone(),
            users: spec.users.map(Into::into),
        }
    }
}

impl From<VolumeField> for MountSpec {
    fn from(field: VolumeField) -> Self {
        let source = match field.source {
            SourceField::Node { path } => MountSource::Node(path.into()),
            SourceField::Image { image, sub_path, id } => {
                MountSource::Image { image, sub_path, id }
            }
        };
        Self {
            destination: field.destination,
            source,
            read_only: field.read_only,
            recursive_read_only: field.recursive_read_only,
            propagation: match field.propagation {
                PropagationField::Private => Propagation::Private,
                PropagationField::HostToContainer => Propagation::HostToContainer,
                PropagationField::Bidirectional => Propagation::Bidirectional,
            },
            selinux_relabel: field.selinux_relabel,
            options: field.options,
            users: field.users.map(Into::into),
        }
    }
}

impl From<&Kept> for KeptField {
    fn from(kept: &Kept) -> Self {
        // Both come from a request's text.
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        Self {
            id: kept.id.clone(),
            root: text(&kept.path.root),
            below: text(&kept.path.below),
            file: kept.file,
            follow: kept.follow,
            write_back: kept.write_back,
            sharing: kept.sharing.as_ref().map(|sharing| SharingField {
                inode: sharing.inode,
                mounted: match &sharing.mounted {
                    Mounted::Then(paths) => Some(paths.iter().map(|path| text(path)).collect()),
                    Mounted::Now => None,
                },
                writable: sharing.writable.iter().map(|path| text(path)).collect(),
            }),
        }
    }
}

impl From<KeptField> for Kept {
    fn from(field: KeptField) -> Self {
        Self {
            id: field.id,
            path: NodePath { root: field.root.into(), below: field.below.into() },
            file: field.file,
            follow: field.follow,
            write_back: field.write_back,
            sharing: field.sharing.map(|field| Sharing {
                inode: field.inode,
                mounted: match field.mounted {
                    Some(paths) => Mounted::Then(paths.into_iter().map(Into::into).collect()),
                    None => Mounted::Now,
                },
                writable: field.writable.into_iter().map(Into::into).collect(),
            }),
        }
    }
}
