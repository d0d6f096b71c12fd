//! Mounts of a container: what is asked for, and what status gives back. What is possible is the engine's to say.

use infranetes_core::mounts::{MountSource, MountSpec, Propagation};
use infranetes_core::spec::UserNamespace;
use infranetes_core::status::ContainerStatus;

use super::status::id_mapping;
use super::{Refusal, check, security};
use crate::api::v1;

type Result<T> = std::result::Result<T, Refusal>;

/// The mounts of a container.
pub(super) fn mounts(asked: Vec<v1::Mount>) -> Result<Vec<MountSpec>> {
    check::few("config.mounts", &asked, MAX_MOUNTS)?;
    let one = |(number, mount)| mount_spec(&format!("config.mounts[{number}]"), mount);
    asked.into_iter().enumerate().map(one).collect()
}

fn mount_spec(field: &str, mount: v1::Mount) -> Result<MountSpec> {
    let at = |name: &str| format!("{field}.{name}");
    let destination = check::absolute_path(&at("container_path"), mount.container_path)?;
    let destination = destination.to_string_lossy().into_owned();
    if destination == "/" {
        return Err(Refusal::invalid(at("container_path"), "is the container's root itself"));
    }
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    let users = if uids.is_empty() && gids.is_empty() {
        None
    } else {
        let uids = security::id_range(&at("uidMappings"), uids)?;
        Some(UserNamespace { uids, gids: security::id_range(&at("gidMappings"), gids)? })
    };
    if let Some(option) = mount.mount_options.iter().find(|one| !OPTIONS.contains(&one.as_str())) {
        let shown: String = option.chars().take(MAX_SHOWN).collect();
        let problem = format!("{shown:?} is not possible; these are: {}", OPTIONS.join(", "));
        return Err(Refusal::unsupported(at("mount_options"), problem));
    }
    let propagation = match check::variant(&at("propagation"), mount.propagation)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    Ok(MountSpec {
        destination,
        source: source(field, mount.host_path, mount.image, mount.image_sub_path)?,
        read_only: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        selinux_relabel: mount.selinux_relabel,
        options: mount.mount_options,
        users,
    })
}

fn source(
    field: &str,
    host_path: String,
    image: Option<v1::ImageSpec>,
    sub_path: String,
) -> Result<MountSource> {
    let at = |name: &str| format!("{field}.{name}");
    let image = image.map(|image| image.image).filter(|image| !image.is_empty());
    match (image, host_path.is_empty()) {
        (Some(_), false) => Err(Refusal::invalid(
            field,
            "names a path of the node and an image, of which one is possible",
        )),
        (Some(image), true) => {
            let sub_path = if sub_path.is_empty() {
                sub_path
            } else {
                let path = check::relative_path(&at("image_sub_path"), sub_path)?;
                path.to_string_lossy().into_owned()
            };
            let image = check::text(&at("image.image"), image, MAX_IMAGE)?;
            Ok(MountSource::Image { image, sub_path, id: String::new() })
        }
        (None, _) if !sub_path.is_empty() => {
            Err(Refusal::invalid(at("image_sub_path"), "is a path in no image"))
        }
        (None, _) => Ok(MountSource::Node(check::absolute_path(&at("host_path"), host_path)?)),
    }
}

/// The mounts of a container as they were asked for. An image is told by the id that `PullImage` answered, which says for good
/// what is mounted: a tag, or the digest of a list of platforms, may have become another image since.
pub(super) fn given_back(container: &ContainerStatus) -> Vec<v1::Mount> {
    let one = |spec: &MountSpec| {
        let mut mount = v1::Mount {
            container_path: spec.destination.clone(),
            readonly: spec.read_only,
            selinux_relabel: spec.selinux_relabel,
            recursive_read_only: spec.recursive_read_only,
            mount_options: spec.options.clone(),
            uid_mappings: spec.users.iter().map(|users| id_mapping(users.uids)).collect(),
            gid_mappings: spec.users.iter().map(|users| id_mapping(users.gids)).collect(),
            propagation: match spec.propagation {
                Propagation::Private => v1::MountPropagation::PropagationPrivate,
                Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
                Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
            } as i32,
            ..Default::default()
        };
        match &spec.source {
            MountSource::Node(path) => mount.host_path = path.to_string_lossy().into_owned(),
            MountSource::Image { image, sub_path, id } => {
                mount.image_sub_path.clone_from(sub_path);
                mount.image = Some(v1::ImageSpec {
                    image: image.clone(),
                    image_ref: id.clone(),
                    ..Default::default()
                });
            }
        }
        mount
    };
    container.spec.volumes.iter().map(one).collect()
}

const MAX_MOUNTS: usize = 1024;
const MAX_IMAGE: usize = 1024;
const MAX_SHOWN: usize = 64;
/// What a bind mount can have besides.
const OPTIONS: [&str; 8] =
    ["noexec", "nosuid", "nodev", "noatime", "nodiratime", "relatime", "norelatime", "strictatime"];
