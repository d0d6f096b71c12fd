//! What an operator tells the daemon: one TOML file, and one for each provider instance.
//!
//! Three steps, each with errors that name the file, the line and what to do: *parse* (`file`, which mirrors the file and
//! nothing else), *resolve* (`resolve`: defaults, units, paths) and *validate* (the same place), whose result is [`Config`]:
//! typed, complete, and never checked again. A key that nobody knows is refused, with the nearest one that exists.
//!
//! `config.example.toml` shows every key with its default; a test keeps the two the same.

mod document;
mod error;
mod file;
mod instance;
mod resolve;
mod streaming;
mod units;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use infranetes_cni::CniSettings;
use infranetes_core::engine::HandlerConfig;
use infranetes_core::image::RegistriesConfig;
use infranetes_core::mounts::MountPolicy;
use infranetes_loader::signature::PublicKey;

use crate::streaming::StreamingConfig;

pub use self::error::ConfigError;
pub use self::instance::{ProviderInstance, read_instance, read_instances};

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/infranetes/config.toml";

/// The whole configuration, valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// Path of the socket that the kubelet dials.
    pub socket: PathBuf,
    /// Everything that has to survive the daemon.
    pub state_dir: PathBuf,
    /// One TOML file for each provider instance.
    pub providers_dir: PathBuf,
    /// Names this cluster in the tags of what is ours at a provider.
    pub cluster: String,
    /// Names this node there.
    pub node: String,
    /// Handlers by name; "" is the default handler.
    pub handlers: BTreeMap<String, HandlerConfig>,
    /// The node's images.
    pub images: Images,
    /// Where the node's CNI plugins are, for handlers that use them.
    pub cni: CniSettings,
    /// What may be mounted from the node.
    pub mounts: MountPolicy,
    /// How long an agent's certificate is good for.
    pub agent_certificate_lifetime: Duration,
    /// How often machines tell what they use.
    pub agent_stats_period: Duration,
    /// Who may vouch for plugins. Where there is any, a plugin needs a signature of one of them, or a pinned digest.
    pub trusted_keys: Vec<PublicKey>,
    /// How long calls that run may go on when the daemon is told to end.
    pub shutdown_grace: Duration,
    /// The server for exec, attach and port-forward.
    pub streaming: StreamingConfig,
    /// Bounds.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
}

/// Where images are kept and come from.
#[derive(Clone, Debug)]
pub struct Images {
    /// Directory of the image store.
    pub root: PathBuf,
    /// Images pulled at once.
    pub parallel_pulls: usize,
    /// Images that the kubelet's garbage collection leaves alone.
    pub pinned: Vec<infranetes_core::image::Reference>,
    /// Registries that need more than the defaults.
    pub registries: RegistriesConfig,
}

/// Bounds of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Machines that are being created at once.
    pub concurrent_creates: usize,
    /// Bytes of one CRI message, in either direction.
    pub message_bytes: usize,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or filter directives as `RUST_LOG` has them.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the command line says over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Over `listen`.
    pub listen: Option<String>,
    /// Over `state_dir`.
    pub state_dir: Option<PathBuf>,
    /// Over `providers_dir`.
    pub providers_dir: Option<PathBuf>,
    /// Over `log.level`.
    pub log_level: Option<String>,
}

impl Config {
    /// Reads the file at `path`, or at [`DEFAULT_PATH`] if none is named. Only the latter may be missing: then everything
    /// has its default.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.is_none() => String::new(),
            Err(source) => return Err(ConfigError::Read { file: file.to_owned(), source }),
        };
        Config::parse(file, &text, overrides)
    }

    /// Reads the text of a file; `file` is for errors alone.
    pub fn parse(file: &Path, text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
        let document = document::Document::parse(file, text)?;
        document.refuse_unknown_keys(&file::tables())?;
        let mut parsed: file::File = document.read()?;
        parsed.apply(overrides);
        resolve::resolve(parsed).map_err(|invalid| document.invalid(invalid))
    }
}

#[cfg(test)]
mod tests;
