//! The workspace that cargo sees: where it lies, where cargo builds, which packages it has.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::program::Program;

/// What `cargo metadata` says of this workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    workspace_root: PathBuf,
    target_directory: PathBuf,
    /// The members.
    pub(crate) packages: Vec<Package>,
}

/// A member of the workspace.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    /// `Some` and empty when it must not be published.
    pub(crate) publish: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) description: Option<String>,
    #[serde(default)]
    pub(crate) license: Option<String>,
    #[serde(default)]
    pub(crate) rust_version: Option<String>,
    #[serde(default)]
    pub(crate) keywords: Vec<String>,
    #[serde(default)]
    pub(crate) categories: Vec<String>,
    /// `[package.metadata]`.
    #[serde(default)]
    pub(crate) metadata: serde_json::Value,
    pub(crate) targets: Vec<Target>,
}

/// What a package depends on.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// The versions that it may have.
    #[serde(default)]
    pub(crate) req: String,
    /// Absent for ordinary dependencies, else "dev" or "build".
    pub(crate) kind: Option<String>,
    /// Only dependencies of this workspace have one.
    pub(crate) path: Option<PathBuf>,
}

/// What cargo builds of a package.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

impl Workspace {
    /// The workspace of the current directory.
    pub(crate) fn find() -> Result<Workspace> {
        let metadata = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
        serde_json::from_str(&metadata).context("cargo metadata has another form than expected")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.workspace_root
    }

    /// Where cargo builds, and where commands keep what they fetched and made; outside of the tree that git tracks.
    pub(crate) fn target(&self) -> &Path {
        &self.target_directory
    }

    /// The oldest compiler that the SDK promises to its authors, as `rust-version` has it.
    pub(crate) fn rust_version(&self) -> &str {
        let sdk = self.packages.iter().find(|package| package.name == "infranetes-sdk");
        sdk.and_then(|package| package.rust_version.as_deref()).unwrap_or("1")
    }

    /// Where programs and plugins lie after `cargo build --release`.
    pub(crate) fn release(&self) -> PathBuf {
        self.target_directory.join("release")
    }

    /// Files that git tracks or would track, relative to the root, sorted.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let list = Program::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .dir(&self.workspace_root)
            .output()
            .context("the files of the tree are unknown without git")?;
        let paths = list.split_terminator('\0').map(PathBuf::from);
        // Deleted and not yet committed: listed, but gone.
        let mut files: Vec<PathBuf> =
            paths.filter(|path| self.workspace_root.join(path).exists()).collect();
        files.sort();
        files.dedup();
        Ok(files)
    }
}

impl Package {
    /// The directory of its manifest.
    pub(crate) fn dir(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("/"))
    }

    pub(crate) fn is_published(&self) -> bool {
        self.publish.as_ref().is_none_or(|registries| !registries.is_empty())
    }
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Program {
    Program::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
