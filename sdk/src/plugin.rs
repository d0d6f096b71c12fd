//! What an author implements to be a plugin, and what the host gives to it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::de::DeserializeOwned;

use crate::error::{ProviderError, Result};
use crate::provider::{ContainerProvider, PodProvider, VolumeProvider};

/// A plugin: configuration in, providers out. Exported with [`export_provider!`](crate::export_provider).
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// The `[config]` table of the instance; put `#[serde(deny_unknown_fields)]` on it, so that a typing error is
    /// refused with its name.
    type Config: DeserializeOwned + Send + 'static;

    /// Starts one instance.
    ///
    /// - Runs on the plugin's own tokio runtime; what it spawns there ends when the instance is dropped.
    /// - May be called more than once in one process, once for each instance; instances share nothing.
    /// - Answers within 30 s or is refused; slow discovery belongs into the first calls.
    /// - Changes nothing outside: machines and disks that exist stay as they are.
    async fn start(host: Host, config: Self::Config) -> Result<Providers>;
}

/// What an instance provides; a plugin may export any of the three.
#[derive(Clone, Default)]
pub struct Providers {
    /// Machines.
    pub pods: Option<Arc<dyn PodProvider>>,
    /// Containers in a machine.
    pub containers: Option<Arc<dyn ContainerProvider>>,
    /// Disks that outlive a pod.
    pub volumes: Option<Arc<dyn VolumeProvider>>,
}

impl Providers {
    /// Adds machines.
    #[must_use]
    pub fn with_pods(mut self, pods: impl PodProvider) -> Self {
        self.pods = Some(Arc::new(pods));
        self
    }

    /// Adds containers.
    #[must_use]
    pub fn with_containers(mut self, containers: impl ContainerProvider) -> Self {
        self.containers = Some(Arc::new(containers));
        self
    }

    /// Adds disks.
    #[must_use]
    pub fn with_volumes(mut self, volumes: impl VolumeProvider) -> Self {
        self.volumes = Some(Arc::new(volumes));
        self
    }

    /// Names of what is provided: "pod", "container", "volume".
    pub fn services(&self) -> Vec<&'static str> {
        let all = [
            (self.pods.is_some(), "pod"),
            (self.containers.is_some(), "container"),
            (self.volumes.is_some(), "volume"),
        ];
        all.into_iter().filter_map(|(there, name)| there.then_some(name)).collect()
    }
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Providers").field(&self.services()).finish()
    }
}

/// The host as a plugin sees it. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    instance: Arc<str>,
    state_dir: Option<Arc<Path>>,
    services: Arc<dyn HostServices>,
}

impl Host {
    /// A host for an instance that is linked in, or for a test. Loaded plugins get theirs from the loader.
    pub fn new(
        instance: impl Into<String>,
        state_dir: Option<PathBuf>,
        services: Arc<dyn HostServices>,
    ) -> Self {
        Self {
            instance: instance.into().into(),
            state_dir: state_dir.map(|path| path.into()),
            services,
        }
    }

    /// The instance's name, unique on this host.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// A directory of this instance alone, mode 0700, kept over restarts of the host.
    pub fn state_dir(&self) -> Result<&Path> {
        self.state_dir
            .as_deref()
            .ok_or_else(|| ProviderError::unsupported("this host gives no state directory"))
    }

    /// Writes a log line at the host. Never blocks. `tracing` and `log` macros arrive there by themselves in a loaded
    /// plugin; this is for lines that must not be filtered by them.
    pub fn log(&self, level: LogLevel, message: &str) {
        self.services.log(level, &self.instance, message);
    }

    /// Reports a sample of a metric. Never blocks.
    pub fn metric(&self, name: &str, value: f64) {
        self.services.metric(name, value);
    }

    /// A secret by the name that the host's configuration gives it, as it is now; [`ErrorKind::NotFound`](crate::ErrorKind::NotFound)
    /// for a name that it does not know, [`ErrorKind::Credentials`](crate::ErrorKind::Credentials) for one that it cannot read.
    pub async fn secret(&self, name: &str) -> Result<Secret> {
        self.services.secret(name).await
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("instance", &self.instance)
            .field("state_dir", &self.state_dir)
            .finish_non_exhaustive()
    }
}

/// What a host does for its plugins. Implemented by hosts and tests.
#[async_trait]
pub trait HostServices: Send + Sync + 'static {
    /// Takes a log line. Must not block.
    fn log(&self, level: LogLevel, target: &str, message: &str);

    /// Takes a sample. Must not block.
    fn metric(&self, name: &str, value: f64);

    /// Looks a secret up.
    async fn secret(&self, name: &str) -> Result<Secret> {
        Err(ProviderError::not_found(format!("this host knows no secret named {name:?}")))
    }
}

/// Host services of a test: log lines go to `tracing`, metrics nowhere, and there are no secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingServices;

impl HostServices for TracingServices {
    fn log(&self, level: LogLevel, target: &str, message: &str) {
        match level {
            LogLevel::Error => tracing::error!(plugin = target, "{message}"),
            LogLevel::Warn => tracing::warn!(plugin = target, "{message}"),
            LogLevel::Info => tracing::info!(plugin = target, "{message}"),
            LogLevel::Debug => tracing::debug!(plugin = target, "{message}"),
            LogLevel::Trace => tracing::trace!(plugin = target, "{message}"),
        }
    }

    fn metric(&self, _name: &str, _value: f64) {}
}

/// How loud a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Somebody has to act.
    Error,
    /// Something is wrong and was handled.
    Warn,
    /// What an operator wants to know in normal operation.
    Info,
    /// For the author of the plugin.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As it is spelled in the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Reads the spelling of the protocol; anything else is `Info`.
    pub fn parse(text: &str) -> Self {
        match text {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => Self::Info,
        }
    }
}

/// A secret's bytes; `Debug` hides them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes. Keep them out of logs and errors.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text.
    pub fn expose_str(&self) -> Result<&str> {
        std::str::from_utf8(&self.0)
            .map_err(|_| ProviderError::invalid("the secret is not UTF-8 text"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}
