//! Plugins in a process of their own: what crashes there ends calls, not the host.
//!
//! ```text
//!   host                                                     helper: a program of ours, one for each instance
//!   Arc<dyn PodProvider> ─► Remote ─► Isolated ─► Link ═══ socket ═══ Link ─► the plugin's endpoint (the same .so)
//!   HostEndpoint ◄──────────────────────────────  Link ═══        ═══ Link ◄─ the host, as the plugin sees it
//! ```
//!
//! The cut is at the ABI's `Endpoint`: requests are encoded there anyway, so that proxies, router, deadlines and errors are the
//! very code of a plugin within this process. Frames carry what crosses (`frame`), a `link` keeps apart what goes on at once,
//! and the `keeper` starts the helper, and starts it again.
//!
//! # What it promises
//!
//! - The end of a helper is the answer `Transient` to what was in flight, with the instance, how the process ended and its last
//!   words. Until it runs again, all calls get that answer.
//! - It is started again for ever: after 200 ms, then after twice as long each time, at most 30 s; one that did not even start the
//!   first time too, where the host wants that ([`Loader::load_or_retry`]).
//! - One whose threads answer nothing for a minute, not even what it provides, is killed and started again.
//! - Cancellation, deadlines, back-pressure and the limits of messages are as within one process.
//! - No helper outlives its host: the end of the socket is its end.
//!
//! # What it does not do
//!
//! It is no sandbox: a helper has the rights of its host. The file is vetted and opened anew at each start, so that what was
//! installed meanwhile is what runs then.

mod frame;
mod helper;
mod keeper;
mod link;
mod process;
mod stream;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use infranetes_sdk::{LogLevel, ProviderError, TracingServices, v1};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::signature::{PublicKey, SignatureError};
use crate::start::{Loader, PluginSpec};

pub use helper::{ServeError, serve};
pub(crate) use keeper::{Isolated, start, start_later};

/// Where a plugin runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// In the host's process: fastest, and its crash is the host's.
    #[default]
    None,
    /// In a process of its own.
    Process,
}

/// A program whose `main` calls [`serve`] when it is started with these arguments, and one more: the instance's name.
#[derive(Clone, Debug)]
pub struct Helper {
    program: PathBuf,
    name: OsString,
    arguments: Vec<OsString>,
}

impl Helper {
    /// The program at a path.
    pub fn new(program: impl Into<PathBuf>) -> Helper {
        let program = program.into();
        Helper { name: program.clone().into_os_string(), program, arguments: Vec::new() }
    }

    /// This very program: always there and always of the host's version, whatever was installed meanwhile.
    pub fn this_program() -> Helper {
        let name = std::env::args_os().next().unwrap_or_default();
        Helper { name, ..Helper::new("/proc/self/exe") }
    }

    /// Adds an argument.
    #[must_use]
    pub fn with_argument(mut self, argument: impl Into<OsString>) -> Helper {
        self.arguments.push(argument.into());
        self
    }
}

/// What a helper is to run. Holds the configuration and so maybe secrets: never in a log.
#[derive(Serialize, Deserialize)]
struct Order {
    loader: String,
    instance: String,
    path: PathBuf,
    sha256: Option<String>,
    keys: Vec<String>,
    config_json: String,
    state_dir: Option<PathBuf>,
    worker_threads: u32,
    log_level: String,
    start_timeout: Duration,
}

impl Order {
    fn new(spec: &PluginSpec, loader: &Loader) -> Order {
        Order {
            loader: env!("CARGO_PKG_VERSION").to_owned(),
            instance: spec.instance.clone(),
            // The helper works in another directory. What cannot be made absolute is as wrong there as here.
            path: std::path::absolute(&spec.path).unwrap_or_else(|_| spec.path.clone()),
            sha256: spec.sha256.clone(),
            keys: loader.keys.iter().map(PublicKey::to_string).collect(),
            config_json: spec.config_json.clone(),
            state_dir: spec.state_dir.clone(),
            worker_threads: spec.worker_threads,
            log_level: spec.log_level.as_str().to_owned(),
            start_timeout: loader.start_timeout,
        }
    }

    /// A loader with the same limits and the same trust.
    fn loader(&self) -> Result<Loader, SignatureError> {
        let keys: Result<Vec<PublicKey>, _> = self.keys.iter().map(|key| key.parse()).collect();
        Ok(Loader::new().with_start_timeout(self.start_timeout).with_trusted_keys(keys?))
    }

    fn into_spec(self) -> PluginSpec {
        PluginSpec {
            instance: self.instance,
            path: self.path,
            sha256: self.sha256,
            config_json: self.config_json,
            state_dir: self.state_dir,
            worker_threads: self.worker_threads,
            log_level: LogLevel::parse(&self.log_level),
            isolation: Isolation::None,
            services: std::sync::Arc::new(TracingServices),
        }
    }
}

/// What a helper says about the file that it runs.
#[derive(Clone, Serialize, Deserialize)]
struct Running {
    manifest: Manifest,
    sha256: Option<String>,
}

fn encode_status(error: &ProviderError) -> Vec<u8> {
    v1::Status::from(error).encode_to_vec()
}

/// The method by which a helper is told its order.
const LOAD: &str = "helper/load";
