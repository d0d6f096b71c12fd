//! The node's files in memory; they outlive engines. Whatever is not a file is the directory around some.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::iter;
use infranetes_core::mounts::{
    Entry, EntryKind, Facts, FilesError, Incoming, Limits, MountSource, MountSpec, NodeFiles,
    NodeKind, NodePath, Opened, Part, Parts, Propagation, SharedPath, SharedTree, Taken,
};

use tokio::sync::mpsc::Receiver;

use crate::sim::scenario::Sabotage;
use crate::sim::seam::Seams;

/// All files. Clones are the same files.
#[derive(Clone)]
pub struct SimFiles {
    files: Arc<Mutex<BTreeMap<PathBuf, File>>>,
    seams: Seams,
    sabotage: Sabotage,
}

#[derive(Clone, Default)]
struct File {
    content: Vec<u8>,
    changes: u64,
}

impl SimFiles {
    /// No files yet.
    pub fn new(seams: Seams, sabotage: Sabotage) -> Self {
        Self { files: Arc::default(), seams, sabotage }
    }

    /// What is in a file.
    pub fn read_now(&self, path: &Path) -> Vec<u8> {
        self.with(|files| files.get(path).cloned()).unwrap_or_default().content
    }

    /// Writes a file, as the kubelet does.
    pub fn write_now(&self, path: &Path, content: &[u8]) {
        self.with(|files| {
            let file = files.entry(path.to_owned()).or_default();
            file.content = content.to_vec();
            file.changes += 1;
        });
    }

    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<PathBuf, File>) -> T) -> T {
        look(&mut self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All that is at a path or below it.
    fn below(&self, path: &NodePath) -> Vec<(PathBuf, File)> {
        let shown = path.shown();
        let all = |files: &mut BTreeMap<PathBuf, File>| {
            let below = files.iter().filter(|(path, _)| path.starts_with(&shown));
            below.map(|(path, file)| (path.clone(), file.clone())).collect()
        };
        self.with(all)
    }

    fn missing(path: &NodePath) -> FilesError {
        FilesError::Missing(path.shown())
    }
}

#[async_trait]
impl NodeFiles for SimFiles {
    async fn resolve(&self, path: &Path) -> Result<PathBuf, FilesError> {
        Ok(path.to_owned())
    }

    async fn origin(&self, _: &NodePath) -> Result<Option<PathBuf>, FilesError> {
        Ok(None)
    }

    async fn look(&self, path: &NodePath) -> Result<Facts, FilesError> {
        let kind = match self.below(path).first() {
            None => NodeKind::Missing,
            Some((found, _)) if *found == path.shown() => NodeKind::File,
            Some(_) => NodeKind::Directory,
        };
        Ok(Facts {
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            inode: 0,
            memory_bytes: None,
            huge_pages: false,
            submounts: Vec::new(),
        })
    }

    async fn revisions(&self, paths: Vec<NodePath>, _: Limits) -> Vec<Result<String, FilesError>> {
        let revision = |path: &NodePath| match self.below(path) {
            below if below.is_empty() => Err(Self::missing(path)),
            below => Ok(below.iter().map(|(_, file)| file.changes).sum::<u64>().to_string()),
        };
        paths.iter().map(revision).collect()
    }

    fn read(&self, path: NodePath, _: Limits, _: bool) -> Parts {
        let root = Entry::plain_directory();
        let below = self.below(&path);
        let mut parts = Vec::new();
        if !below.iter().any(|(found, _)| *found == path.shown()) {
            parts.push(Ok(Part::Entry(root.clone())));
        }
        for (found, file) in below {
            let path = found.strip_prefix(path.shown()).unwrap_or(&found).to_owned();
            parts.push(Ok(Part::Entry(Entry { path, kind: EntryKind::File, ..root.clone() })));
            parts.push(Ok(Part::Data(file.content.into())));
        }
        iter(parts).boxed()
    }

    async fn write(&self, path: &NodePath, content: Vec<u8>) -> Result<(), FilesError> {
        self.seams.pass("files: before write").await;
        if self.below(path).is_empty() {
            return Err(Self::missing(path));
        }
        if self.sabotage != Sabotage::WritesLost {
            self.write_now(&path.shown(), &content);
        }
        self.seams.pass("files: after write").await;
        Ok(())
    }

    async fn scan_shared(&self, path: &SharedPath, _: Limits) -> Result<SharedTree, FilesError> {
        Err(Self::missing(&path.path))
    }

    async fn open_shared(&self, path: &SharedPath, _: &Path) -> Result<Option<Opened>, FilesError> {
        Err(Self::missing(&path.path))
    }

    async fn take_shared(
        &self,
        path: &SharedPath,
        _: Receiver<Incoming>,
    ) -> Result<Vec<Taken>, FilesError> {
        Err(Self::missing(&path.path))
    }
}

/// The configuration that a pod has mounted, and follows.
pub fn config_of(pod_uid: &str) -> PathBuf {
    below(pod_uid, "volumes/kubernetes.io~configmap/config/key")
}

/// Where a pod's container writes its last words.
pub fn last_words_of(pod_uid: &str) -> PathBuf {
    below(pod_uid, "containers/main/0")
}

/// Both, as a kubelet mounts them.
pub fn mounts_of(pod_uid: &str) -> Vec<MountSpec> {
    let config = config_of(pod_uid);
    let config = config.parent().unwrap_or(&config);
    [(config, "/config", true), (&last_words_of(pod_uid), "/dev/termination-log", false)]
        .map(|(path, destination, read_only)| MountSpec {
            destination: destination.to_owned(),
            source: MountSource::Node(path.to_owned()),
            read_only,
            recursive_read_only: false,
            propagation: Propagation::Private,
            selinux_relabel: false,
            options: Vec::new(),
            users: None,
        })
        .to_vec()
}

fn below(pod_uid: &str, path: &str) -> PathBuf {
    Path::new("/var/lib/kubelet/pods").join(pod_uid).join(path)
}
