//! What is inside of a guest image: `manifest.json`. Nothing in it changes from one build of the same inputs to the next.

use serde::Serialize;

/// The whole image.
#[derive(Debug, Serialize)]
pub(super) struct Manifest {
    pub(super) kernel: KernelEntry,
    /// In the order of the archive.
    pub(super) files: Vec<FileEntry>,
    /// The Debian packages that files are from.
    pub(super) packages: Vec<PackageEntry>,
    pub(super) totals: Totals,
}

#[derive(Debug, Serialize)]
pub(super) struct KernelEntry {
    pub(super) release: String,
    pub(super) package: String,
    pub(super) version: String,
}

/// A file of the initramfs. Directories, links and devices are not listed.
#[derive(Debug, Serialize)]
pub(super) struct FileEntry {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) sha256: String,
    /// The Debian package, or "infranetes".
    pub(super) package: String,
    pub(super) version: String,
}

#[derive(Debug, Serialize)]
pub(super) struct PackageEntry {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) sha256: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Totals {
    pub(super) files: usize,
    pub(super) file_bytes: u64,
    pub(super) initramfs_bytes: u64,
    pub(super) initramfs_sha256: String,
    pub(super) kernel_bytes: u64,
    pub(super) kernel_sha256: String,
}
