//! From a vetted file to running providers.

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use abi_stable::std_types::RResult;
use infranetes_sdk::bridge::abi::open::OpenError;
use infranetes_sdk::bridge::abi::{self, EndpointBox, PluginModuleRef, StartFuture};
use infranetes_sdk::bridge::{
    HostEndpoint, Remote, RemoteContainers, RemotePods, RemoteVolumes, start_linked,
};
use infranetes_sdk::{
    CallContext, ContainerProvider, HostServices, LogLevel, Plugin, PodProvider, ProviderError,
    Providers, TracingServices, VolumeProvider, v1,
};
use prost::Message;
use tokio::runtime::Handle;

use crate::error::{LinkerSays, LoadError};
use crate::files;
use crate::isolation::{self, Helper, Isolated, Isolation};
use crate::manifest::Manifest;
use crate::probe::{self, Probe};
use crate::signature::PublicKey;
use crate::vet::{Trust, Vetted, vet_with};

/// Loads plugins.
#[derive(Clone, Debug)]
pub struct Loader {
    pub(crate) start_timeout: Duration,
    describe_timeout: Duration,
    pub(crate) hang_timeout: Duration,
    probe: Option<Probe>,
    helper: Option<Helper>,
    pub(crate) keys: Vec<PublicKey>,
}

/// One instance of a plugin, as the host wants it.
#[derive(Clone)]
pub struct PluginSpec {
    /// The instance's name, unique on this host.
    pub instance: String,
    /// The `.so` file.
    pub path: PathBuf,
    /// The digest that the file must have, in hex, with or without "sha256:".
    pub sha256: Option<String>,
    /// The `[config]` table, as JSON; empty means `{}`.
    pub config_json: String,
    /// A directory of this instance alone, mode 0700; the host makes it.
    pub state_dir: Option<PathBuf>,
    /// Threads of the plugin's runtime; 0 means 1.
    pub worker_threads: u32,
    /// The most verbose level of log lines that the host wants.
    pub log_level: LogLevel,
    /// Which process it runs in.
    pub isolation: Isolation,
    /// What the host does for it.
    pub services: Arc<dyn HostServices>,
}

/// A running instance. It ends when this and every provider that came from it is dropped.
#[derive(Clone)]
pub struct LoadedPlugin {
    manifest: Manifest,
    sha256: Option<String>,
    instance: String,
    path: PathBuf,
    providers: Providers,
    remote: Remote,
    isolated: Option<Arc<Isolated>>,
}

impl Loader {
    /// A loader with the limits of the SDK: 30 s to start, 5 s to describe itself.
    pub fn new() -> Self {
        Self {
            start_timeout: Duration::from_secs(30),
            describe_timeout: Duration::from_secs(5),
            hang_timeout: Duration::from_secs(60),
            probe: None,
            helper: None,
            keys: Vec::new(),
        }
    }

    /// Changes how long a plugin may take to start.
    #[must_use]
    pub fn with_start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = limit;
        self
    }

    /// Changes how long the threads of a plugin in a process of its own may answer nothing at all before that process is taken for
    /// hung, killed and started again: 60 s. A call may take longer; a thread that blocks may not.
    #[must_use]
    pub fn with_hang_timeout(mut self, limit: Duration) -> Self {
        self.hang_timeout = limit;
        self
    }

    /// Opens each file in a child process first, which a damaged file may crash; `program` is `infranetes-probe`.
    #[must_use]
    pub fn with_probe(self, program: impl Into<PathBuf>) -> Self {
        self.with_probe_command(program, [])
    }

    /// As [`Self::with_probe`], with a program that takes `arguments` before those of `infranetes-probe`: a host may so be
    /// its own probe, with [`probe`](crate::probe()).
    #[must_use]
    pub fn with_probe_command(
        mut self,
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Self {
        let arguments = arguments.into_iter().collect();
        self.probe = Some(Probe { program: program.into(), arguments });
        self
    }

    /// Takes only files that one of these keys signed, or whose digest is pinned.
    #[must_use]
    pub fn with_trusted_keys(mut self, keys: impl IntoIterator<Item = PublicKey>) -> Self {
        self.keys.extend(keys);
        self
    }

    /// Names the program that runs plugins whose [`PluginSpec::isolation`] is [`Isolation::Process`].
    #[must_use]
    pub fn with_helper(mut self, helper: Helper) -> Self {
        self.helper = Some(helper);
        self
    }

    /// Vets the file, opens it, starts the instance and asks what it provides. Must be called on a tokio runtime, which
    /// then runs the host services.
    pub async fn load(&self, spec: PluginSpec) -> Result<LoadedPlugin, LoadError> {
        let (file, endpoint, isolated) = match spec.isolation {
            Isolation::None => {
                let host = HostEndpoint::new(Handle::current(), spec.services.clone()).into_raw();
                let (file, endpoint) = self.open(&spec, host).await?;
                (file, endpoint, None)
            }
            Isolation::Process => {
                let unknown = || LoadError::NoIsolation { path: spec.path.clone() };
                let helper = self.helper.as_ref().ok_or_else(unknown)?;
                let (file, endpoint, isolated) = isolation::start(self, helper, &spec).await?;
                (file, endpoint, Some(isolated))
            }
        };
        let remote = Remote::new(endpoint, &spec.instance);
        let description = self.describe(&remote, &spec).await?;
        tracing::info!(
            instance = spec.instance,
            provider = file.name,
            version = file.version,
            services = ?description.services,
            process = isolated.as_ref().and_then(|isolated| isolated.process()),
            "plugin loaded"
        );
        Ok(LoadedPlugin { isolated, ..LoadedPlugin::new(file, spec, &description, remote) })
    }

    /// As [`Self::load`]; but a plugin that is to run in a process of its own, and does not start, is there all the same: it has a
    /// [problem](LoadedPlugin::problem), calls get it as an answer, and it is tried again for ever, as after a crash. What it provides is
    /// unknown until then, so it has all kinds of providers, and those that it lacks answer `Unsupported`.
    ///
    /// Fails where trying again cannot help: in this process, or where no helper is known.
    pub async fn load_or_retry(&self, spec: PluginSpec) -> Result<LoadedPlugin, LoadError> {
        let error = match self.load(spec.clone()).await {
            Err(error) if !matches!(error, LoadError::NoIsolation { .. }) => error,
            done => return done,
        };
        let (Isolation::Process, Some(helper)) = (spec.isolation, &self.helper) else {
            return Err(error);
        };
        let problem = chain(&error);
        tracing::warn!(
            instance = spec.instance,
            problem,
            "a plugin does not start, and is tried again"
        );
        let (endpoint, isolated) = isolation::start_later(self, helper, &spec, problem);
        let remote = Remote::new(endpoint, &spec.instance);
        let services = ["pod", "container", "volume"].map(str::to_owned).to_vec();
        let description = v1::PluginDescription { services, ..Default::default() };
        let file = LoadedFile { manifest: Manifest::of_unknown(&spec.path), sha256: None };
        let plugin = LoadedPlugin::new(file, spec, &description, remote);
        Ok(LoadedPlugin { isolated: Some(isolated), ..plugin })
    }

    /// Vets the file, opens it and starts the instance in this process.
    pub(crate) async fn open(
        &self,
        spec: &PluginSpec,
        host: EndpointBox,
    ) -> Result<(LoadedFile, EndpointBox), LoadError> {
        let trust = Trust { sha256: spec.sha256.clone(), keys: self.keys.clone() };
        let vetted = vet_in_background(spec.path.clone(), trust).await?;
        if let Some(probe) = &self.probe {
            probe::in_child(probe, &vetted).await?;
        }
        let (file, module) = open(vetted).await?;
        let start = |host, request: Vec<u8>| module.start()(host, request.into());
        Ok((file, self.start(start, spec, host).await?))
    }

    /// Runs a plugin that is linked into this program as if it were loaded: on a runtime of its own, with deadlines
    /// and panics handled there. Nothing is vetted; of `spec`, `path` only stands in messages, and `sha256` is not
    /// looked at. Its log lines are this program's own.
    pub async fn link<P: Plugin>(&self, spec: PluginSpec) -> Result<LoadedPlugin, LoadError> {
        let name = std::any::type_name::<P>();
        let start = |host, request: Vec<u8>| start_linked::<P>(name, "linked", host, &request);
        let host = HostEndpoint::new(Handle::current(), spec.services.clone()).into_raw();
        let remote = Remote::new(self.start(start, &spec, host).await?, &spec.instance);
        let description = self.describe(&remote, &spec).await?;
        let file = LoadedFile { manifest: Manifest::of_linked(name), sha256: None };
        Ok(LoadedPlugin::new(file, spec, &description, remote))
    }

    async fn start(
        &self,
        start: impl FnOnce(EndpointBox, Vec<u8>) -> StartFuture,
        spec: &PluginSpec,
        host: EndpointBox,
    ) -> Result<EndpointBox, LoadError> {
        let failed = |source| LoadError::Start {
            path: spec.path.clone(),
            instance: spec.instance.clone(),
            source: Box::new(source),
        };
        let request = spec.start_request().map_err(failed)?.encode_to_vec();
        let starting = start(host, request);
        match tokio::time::timeout(self.start_timeout, starting).await {
            Ok(RResult::ROk(endpoint)) => Ok(endpoint),
            Ok(RResult::RErr(status)) => Err(failed(read_status(&status))),
            Err(_) => Err(LoadError::StartTimeout {
                path: spec.path.clone(),
                instance: spec.instance.clone(),
                limit: self.start_timeout,
            }),
        }
    }

    async fn describe(
        &self,
        remote: &Remote,
        spec: &PluginSpec,
    ) -> Result<v1::PluginDescription, LoadError> {
        let context = CallContext::new("describe").with_timeout(self.describe_timeout);
        remote.call("plugin/describe", &context, &v1::DescribePluginRequest {}).await.map_err(
            |source| LoadError::Describe {
                path: spec.path.clone(),
                instance: spec.instance.clone(),
                source: Box::new(source),
            },
        )
    }
}

impl Default for Loader {
    fn default() -> Self {
        Self::new()
    }
}

impl PluginSpec {
    /// An instance without configuration and state directory, whose log lines go to `tracing`.
    pub fn new(instance: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            instance: instance.into(),
            path: path.into(),
            sha256: None,
            config_json: String::new(),
            state_dir: None,
            worker_threads: 0,
            log_level: LogLevel::Info,
            isolation: Isolation::None,
            services: Arc::new(TracingServices),
        }
    }

    /// Sets the configuration.
    #[must_use]
    pub fn with_config_json(mut self, json: impl Into<String>) -> Self {
        self.config_json = json.into();
        self
    }

    /// Pins the file's digest.
    #[must_use]
    pub fn with_sha256(mut self, digest: impl Into<String>) -> Self {
        self.sha256 = Some(digest.into());
        self
    }

    /// Sets the state directory.
    #[must_use]
    pub fn with_state_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(directory.into());
        self
    }

    /// Sets what the host does for the instance.
    #[must_use]
    pub fn with_services(mut self, services: Arc<dyn HostServices>) -> Self {
        self.services = services;
        self
    }

    /// Sets the most verbose level of log lines.
    #[must_use]
    pub fn with_log_level(mut self, level: LogLevel) -> Self {
        self.log_level = level;
        self
    }

    /// Sets how many threads run the plugin's calls.
    #[must_use]
    pub fn with_worker_threads(mut self, threads: u32) -> Self {
        self.worker_threads = threads;
        self
    }

    /// Sets which process runs it.
    #[must_use]
    pub fn with_isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    fn start_request(&self) -> Result<v1::StartRequest, ProviderError> {
        let state_dir = match &self.state_dir {
            None => String::new(),
            Some(path) => path.to_str().map(str::to_owned).ok_or_else(|| {
                ProviderError::invalid(format!("the state directory {path:?} is not UTF-8"))
            })?,
        };
        Ok(v1::StartRequest {
            instance: self.instance.clone(),
            config_json: self.config_json.clone(),
            state_dir,
            worker_threads: self.worker_threads,
            log_level: self.log_level.as_str().into(),
        })
    }
}

impl fmt::Debug for PluginSpec {
    /// Without the configuration, which may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginSpec")
            .field("instance", &self.instance)
            .field("path", &self.path)
            .field("sha256", &self.sha256)
            .field("state_dir", &self.state_dir)
            .field("worker_threads", &self.worker_threads)
            .field("log_level", &self.log_level)
            .field("isolation", &self.isolation)
            .finish_non_exhaustive()
    }
}

impl LoadedPlugin {
    fn new(
        vetted: LoadedFile,
        spec: PluginSpec,
        description: &v1::PluginDescription,
        remote: Remote,
    ) -> Self {
        let has = |service: &str| description.services.iter().any(|name| name == service);
        let mut providers = Providers::default();
        if has("pod") {
            providers = providers.with_pods(RemotePods::new(remote.clone()));
        }
        if has("container") {
            providers = providers.with_containers(RemoteContainers::new(remote.clone()));
        }
        if has("volume") {
            providers = providers.with_volumes(RemoteVolumes::new(remote.clone()));
        }
        Self {
            manifest: vetted.manifest,
            sha256: vetted.sha256,
            instance: spec.instance,
            path: spec.path,
            providers,
            remote,
            isolated: None,
        }
    }

    /// Machines, if it provides them.
    pub fn pods(&self) -> Option<Arc<dyn PodProvider>> {
        self.providers.pods.clone()
    }

    /// Containers, if it provides them.
    pub fn containers(&self) -> Option<Arc<dyn ContainerProvider>> {
        self.providers.containers.clone()
    }

    /// Disks, if it provides them.
    pub fn volumes(&self) -> Option<Arc<dyn VolumeProvider>> {
        self.providers.volumes.clone()
    }

    /// All that it provides, in the form in which a linked plugin gives it.
    pub fn providers(&self) -> &Providers {
        &self.providers
    }

    /// What the file said about itself when it was loaded; of one that never was, only its name is known.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The file's SHA-256 digest, in hex, when one was pinned or signed.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// The instance's name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why it cannot be used now, although it was loaded: the process that runs it ended, and is started again.
    /// A plugin within this process has no such problems.
    pub fn problem(&self) -> Option<String> {
        self.isolated.as_ref().and_then(|isolated| isolated.problem())
    }

    /// The process of its own that runs it, if it has one and that runs.
    pub fn process(&self) -> Option<u32> {
        self.isolated.as_ref().and_then(|isolated| isolated.process())
    }

    /// Tells the plugin that the host now wants log lines up to `level`.
    pub fn set_log_level(&self, level: LogLevel) {
        let record = v1::LogRecord { level: level.as_str().into(), ..Default::default() };
        self.remote.notify("plugin/log_level", &record);
    }
}

impl fmt::Debug for LoadedPlugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedPlugin")
            .field("instance", &self.instance)
            .field("path", &self.path)
            .field("manifest", &self.manifest)
            .field("providers", &self.providers)
            .finish_non_exhaustive()
    }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// What is kept of a vetted file once it is open for ever.
pub(crate) struct LoadedFile {
    pub(crate) manifest: Manifest,
    pub(crate) sha256: Option<String>,
}

impl std::ops::Deref for LoadedFile {
    type Target = Manifest;

    fn deref(&self) -> &Manifest {
        &self.manifest
    }
}

async fn vet_in_background(path: PathBuf, trust: Trust) -> Result<Vetted, LoadError> {
    let stopped = LoadError::Stopped { path: path.clone() };
    // Reading blocks.
    tokio::task::spawn_blocking(move || vet_with(&path, &trust)).await.unwrap_or(Err(stopped))
}

async fn open(vetted: Vetted) -> Result<(LoadedFile, PluginModuleRef), LoadError> {
    let stopped = LoadError::Stopped { path: vetted.path.clone() };
    // Linking blocks; what comes out is a pointer to statics.
    tokio::task::spawn_blocking(move || open_vetted(vetted)).await.unwrap_or(Err(stopped))
}

pub(crate) fn open_vetted(vetted: Vetted) -> Result<(LoadedFile, PluginModuleRef), LoadError> {
    let Vetted { manifest, sha256, file, path, .. } = vetted;
    let kept =
        files::keep(file).map_err(|source| LoadError::Read { path: path.clone(), source })?;
    let module =
        abi::open::open(&kept, &manifest.symbol).map_err(|error| not_opened(path, &kept, error))?;
    Ok((LoadedFile { manifest, sha256 }, module))
}

/// The linker knows the file by its descriptor; who reads its message does not.
fn not_opened(path: PathBuf, kept: &Path, error: OpenError) -> LoadError {
    match error {
        OpenError::Linker(source) => {
            // The outer error only says which function failed.
            let said = source.source().map_or_else(|| source.to_string(), ToString::to_string);
            let name = |path: &Path| path.display().to_string();
            let source = LinkerSays(said.replace(&name(kept), &name(&path)));
            LoadError::Linker { path, source }
        }
        source => LoadError::Abi { path, source },
    }
}

pub(crate) fn read_status(status: &[u8]) -> ProviderError {
    v1::Status::decode(status).map_or_else(
        |source| ProviderError::internal("the plugin's answer is not readable").with_source(source),
        ProviderError::from,
    )
}
