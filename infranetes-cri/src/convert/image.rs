//! Images: what requests name, and what the store knows.

use std::time::SystemTime;

use infranetes_core::error::FailureKind;
use infranetes_core::image::{
    AuthFields, Credentials, ImageInfo, ImageUser, PullError, PullFailure, StoreUsage,
};
use tonic::Status;

use super::status::nanos;
use super::{Refusal, check, from_kind};
use crate::api::v1;

/// The image that a request names: a tag, a digest or an id.
pub fn image_reference(image: Option<v1::ImageSpec>) -> Result<String, Refusal> {
    let image = check::required("image", image)?;
    check::text("image.image", image.image, MAX_REFERENCE)
}

/// The credentials of a pull; `None` for an anonymous one.
pub fn credentials(auth: Option<v1::AuthConfig>) -> Result<Option<Credentials>, Refusal> {
    let Some(auth) = auth else { return Ok(None) };
    let fields = AuthFields {
        username: auth.username,
        password: auth.password.into(),
        auth: auth.auth.into(),
        server_address: auth.server_address,
        identity_token: auth.identity_token.into(),
        registry_token: auth.registry_token.into(),
    };
    Credentials::from_auth(fields).map_err(|error| Refusal::invalid("auth", error.to_string()))
}

/// An image of the store.
pub fn image(image: &ImageInfo) -> v1::Image {
    let (uid, username) = match &image.user {
        ImageUser::Uid(uid) => (Some(v1::Int64Value { value: *uid }), String::new()),
        ImageUser::Name(name) => (None, name.clone()),
    };
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        uid,
        username,
        spec: Some(v1::ImageSpec {
            image: image
                .repo_tags
                .first()
                .or(image.repo_digests.first())
                .cloned()
                .unwrap_or_default(),
            annotations: image.annotations.clone(),
            ..Default::default()
        }),
        pinned: image.pinned,
    }
}

/// What images take. Writable layers are in the machines, so containers take nothing of the node; they are reported on the
/// same file system, because the kubelet asks for both.
pub fn image_usage(usage: &StoreUsage, now: SystemTime) -> v1::ImageFsInfoResponse {
    let of = |bytes, inodes| v1::FilesystemUsage {
        timestamp: nanos(now),
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: usage.root.to_string_lossy().into_owned(),
        }),
        used_bytes: Some(v1::UInt64Value { value: bytes }),
        inodes_used: Some(v1::UInt64Value { value: inodes }),
    };
    v1::ImageFsInfoResponse {
        image_filesystems: vec![of(usage.bytes, usage.inodes)],
        container_filesystems: vec![of(0, 0)],
    }
}

/// A pull that failed, for the wire.
pub fn pull_failed(error: &PullError) -> Status {
    from_kind(pull_kind(error.failure()), error)
}

fn pull_kind(failure: &PullFailure) -> FailureKind {
    match failure {
        PullFailure::Reference(_) => FailureKind::Invalid,
        PullFailure::Endpoint(_) | PullFailure::Certificates { .. } => FailureKind::WrongState,
        PullFailure::Unreachable { .. }
        | PullFailure::Stalled { .. }
        | PullFailure::CutOff { .. }
        | PullFailure::Throttled { .. }
        | PullFailure::RegistryFault { .. } => FailureKind::Unavailable,
        PullFailure::Unauthorized { .. } | PullFailure::Forbidden { .. } => FailureKind::Denied,
        PullFailure::NotFound { .. } => FailureKind::NotFound,
        PullFailure::Protocol { .. } | PullFailure::WrongDigest { .. } => FailureKind::Internal,
        PullFailure::TooLarge { .. } | PullFailure::DiskFull { .. } => FailureKind::Exhausted,
        PullFailure::Unusable(_) => FailureKind::WrongState,
        PullFailure::Disk { .. } => FailureKind::Internal,
        PullFailure::TimedOut { .. } => FailureKind::TimedOut,
    }
}

const MAX_REFERENCE: usize = 1024;
