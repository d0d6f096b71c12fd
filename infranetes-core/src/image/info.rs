//! What the store says about its images and about itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::digest::ImageId;

/// One image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The digest of the image's configuration.
    pub id: ImageId,
    /// Complete references with a tag, sorted. Empty once every tag moved on to another image.
    pub repo_tags: Vec<String>,
    /// Complete references with the digest that the registry serves the image by, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of manifest, configuration and layers, as they are stored (compressed).
    pub size_bytes: u64,
    /// Whom the image's program runs as, unless the container says otherwise.
    pub user: ImageUser,
    /// Whether the configuration of the store pins the image.
    pub pinned: bool,
    /// The annotations of the image's manifest.
    pub annotations: BTreeMap<String, String>,
}

/// The user of an image, as far as it can be known without the image's user database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// A number. An image that names no user means 0.
    Uid(i64),
    /// A name, to be looked up in the image.
    Name(String),
}

/// What the store takes of its file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUsage {
    /// The directory of the store, which lies on the file system in question.
    pub root: PathBuf,
    /// Bytes of all files, those of unfinished pulls included.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

impl ImageUser {
    /// Reads the `User` of an image configuration: `user`, `uid`, `user:group`, `uid:gid`, or nothing.
    pub fn parse(text: &str) -> ImageUser {
        let user = text.split(':').next().unwrap_or_default();
        if user.is_empty() {
            return ImageUser::Uid(0);
        }
        user.parse().map_or_else(|_| ImageUser::Name(user.to_owned()), ImageUser::Uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_a_number_or_a_name_and_never_empty() {
        let cases = [
            ("", ImageUser::Uid(0)),
            (":7", ImageUser::Uid(0)),
            ("1000", ImageUser::Uid(1000)),
            ("1000:7", ImageUser::Uid(1000)),
            ("www-data:www", ImageUser::Name("www-data".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(ImageUser::parse(text), expected, "{text:?}");
        }
    }
}
