//! Container providers as plugins: every `.so` of a directory.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, TryFutureExt};
use infranetes_loader::{LoadError, Loader, PluginSpec};
use infranetes_sdk::{ContainerProvider, Plugin, ProviderError};

use crate::lines::chain;

/// The container provider: there, or coming when somebody first asks for it.
#[derive(Clone)]
pub struct Containers(Shared<BoxFuture<'static, Loaded>>);

/// The provider, or why there is none.
type Loaded = Result<Arc<dyn ContainerProvider>, Arc<str>>;

impl Containers {
    /// One that `load` brings. It begins when the first call needs it, and is tried once: what an image lacks does not come
    /// by itself, so that every call gets the same answer.
    pub fn later<E>(
        load: impl Future<Output = Result<Arc<dyn ContainerProvider>, E>> + Send + 'static,
    ) -> Self
    where
        E: std::error::Error + 'static,
    {
        let loaded = load.map_err(|error| {
            let text = chain(&error);
            tracing::error!(error = text, "containers cannot be run");
            Arc::from(text)
        });
        Self(loaded.boxed().shared())
    }

    /// The provider, once it is loaded.
    pub async fn provider(&self) -> Result<Arc<dyn ContainerProvider>, ProviderError> {
        self.0.clone().await.map_err(|text| ProviderError::internal(text.as_ref()))
    }
}

impl From<Arc<dyn ContainerProvider>> for Containers {
    fn from(provider: Arc<dyn ContainerProvider>) -> Self {
        Self(std::future::ready(Ok(provider)).boxed().shared())
    }
}

/// Gives the container provider of an agent. It is told where plugins and their configuration lie, and below what directory each of them
/// has one for its state.
pub type Open = fn(PathBuf, PathBuf) -> BoxFuture<'static, Opened>;

/// A container provider, or why there is none.
pub type Opened = Result<Arc<dyn ContainerProvider>, PluginError>;

/// The provider of the plugins in the directory; see [`load`].
pub fn open(dir: PathBuf, state: PathBuf) -> BoxFuture<'static, Opened> {
    async move { load(&dir, &state).await }.boxed()
}

/// Starts a plugin that is part of this program, as if `DIR/NAME.so` were it: `DIR/NAME.json` is its configuration.
pub async fn link<P: Plugin>(name: &str, dir: &Path, state: &Path) -> Opened {
    let file = dir.join(name).with_extension("so");
    let plugin = Loader::new().link::<P>(spec(&file, state)?).await?;
    plugin.containers().ok_or_else(|| PluginError::NoProvider { dir: dir.to_owned() })
}

/// Loads the plugins of a directory in the order of their names and answers the first container provider among them. Beside
/// `NAME.so`, an optional `NAME.json` is its configuration; `STATE/NAME` is its directory.
pub async fn load(dir: &Path, state: &Path) -> Opened {
    let loader = Loader::new();
    for path in shared_objects(dir)? {
        let plugin = loader.load(spec(&path, state)?).await?;
        match plugin.containers() {
            Some(provider) => return Ok(provider),
            None => tracing::warn!(file = %path.display(), "not a container provider"),
        }
    }
    Err(PluginError::NoProvider { dir: dir.to_owned() })
}

fn spec(path: &Path, state: &Path) -> Result<PluginSpec, PluginError> {
    let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let state = state.join(&name);
    make_private_dir(&state).map_err(failed(&state))?;
    let config = path.with_extension("json");
    let mut spec = PluginSpec::new(name, path);
    spec.state_dir = Some(state);
    match std::fs::read_to_string(&config) {
        Ok(text) => spec.config_json = text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
        Err(error) => return Err(failed(&config)(error)),
    }
    Ok(spec)
}

fn shared_objects(dir: &Path) -> Result<Vec<PathBuf>, PluginError> {
    let entries = std::fs::read_dir(dir).map_err(failed(dir))?;
    let mut paths: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(failed(dir))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "so"));
    paths.sort();
    Ok(paths)
}

/// Makes a directory that only this user can enter; there already is success.
pub(crate) fn make_private_dir(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> PluginError {
    let path = path.display().to_string();
    move |cause| PluginError::File { path: path.clone(), cause }
}

/// Why there is no container provider.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No plugin of the directory runs containers.
    #[error("no plugin in {} runs containers", .dir.display())]
    NoProvider {
        /// The directory.
        dir: PathBuf,
    },
    /// A plugin was refused.
    #[error("a plugin was not loaded")]
    Refused(#[from] LoadError),
    /// A file or directory could not be used.
    #[error("{path} cannot be used")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_without_plugins_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("README"), "no plugin").unwrap();
        let error = load(dir.path(), &dir.path().join("state")).await.err().unwrap();
        assert!(matches!(error, PluginError::NoProvider { .. }), "{error:?}");
        let error = load(&dir.path().join("none"), dir.path()).await.err().unwrap();
        assert!(matches!(error, PluginError::File { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_provider_that_comes_later_is_looked_for_once_when_it_is_needed() {
        let tries = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counted = Arc::clone(&tries);
        let containers = Containers::later(async move {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let dir = tempfile::tempdir().unwrap();
            load(dir.path(), &dir.path().join("state")).await
        });
        assert_eq!(tries.load(std::sync::atomic::Ordering::Relaxed), 0);
        for _ in 0..2 {
            let error = containers.provider().await.err().unwrap();
            assert_eq!(error.kind, infranetes_sdk::ErrorKind::Internal);
            assert!(error.message.contains("runs containers"), "{error:?}");
        }
        assert_eq!(tries.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
