//! What the command line says of a node: before the command or behind it, but only to the commands that concern a node.

use std::path::PathBuf;

use clap::Args;
use infranetes_cri::config::{Config, ConfigError, Overrides};

/// Options of the daemon.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The configuration file [default: /etc/infranetes/config.toml, which may be missing]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The socket that the kubelet dials, like unix:///run/infranetes/cri.sock
    #[arg(long, value_name = "URL")]
    listen: Option<String>,

    /// Directory of what has to survive the daemon
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Directory of provider instances
    #[arg(long, value_name = "DIR")]
    providers_dir: Option<PathBuf>,

    /// error, warn, info, debug, trace, or filter directives
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Options {
    /// With those behind the command, which win.
    pub(crate) fn over(self, before: Options) -> Options {
        Options {
            config: self.config.or(before.config),
            listen: self.listen.or(before.listen),
            state_dir: self.state_dir.or(before.state_dir),
            providers_dir: self.providers_dir.or(before.providers_dir),
            log_level: self.log_level.or(before.log_level),
        }
    }

    /// The configuration that they mean.
    pub(crate) fn load(self) -> Result<Config, ConfigError> {
        let overrides = Overrides {
            listen: self.listen,
            state_dir: self.state_dir,
            providers_dir: self.providers_dir,
            log_level: self.log_level,
        };
        Config::load(self.config.as_deref(), &overrides)
    }
}
