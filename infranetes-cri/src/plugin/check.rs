//! `plugin check`: runs the conformance suites against a built plugin.
//!
//! The file is first opened in a child process, so that a damaged one is a sentence and not a crash. Then it is loaded as
//! the daemon would, and what it provides is tested: one line for each promise, as soon as it is known. It makes real
//! machines and removes them; the first interrupt ends the tests and still cleans up, the second one does not.

use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use infranetes_conformance::{ContainerSuite, Line, PodSuite, Report, VolumeSuite};
use infranetes_cri::chain;
use infranetes_cri::config::{ProviderInstance, read_instance};
use infranetes_cri::daemon::{InstanceServices, helper};
use infranetes_loader::{LoadError, LoadedPlugin, Loader, PluginSpec};
use infranetes_sdk::{HostServices, LogLevel, ProviderError, Secret, async_trait};
use serde_json::{Value, json};

use super::subject::Subjects;
use crate::output::say;

/// What to test, and with what.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The plugin: a built .so
    file: PathBuf,

    /// The provider instance to start, as in the daemon's providers.d: NAME.toml with [config], and [check] for the suites
    #[arg(id = "config", long, value_name = "FILE")]
    instance: Option<PathBuf>,

    /// What to test; may be given more than once [default: all that the plugin provides]
    #[arg(long = "suite", value_name = "SUITE")]
    suites: Vec<Suite>,

    /// The least that a log line of the plugin has to be to be shown, on standard error
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log: Level,

    /// Where the report goes as JSON; `-` is standard output, and then nothing else goes there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    Pod,
    Container,
    Volume,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    fn of_plugins(self) -> LogLevel {
        match self {
            Self::Error => LogLevel::Error,
            Self::Warn => LogLevel::Warn,
            Self::Info => LogLevel::Info,
            Self::Debug => LogLevel::Debug,
            Self::Trace => LogLevel::Trace,
        }
    }
}

/// Answers whether every promise that was looked at is kept.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let instance = arguments.instance.as_deref().map(read_instance).transpose()?;
    let subjects = Subjects::read(instance.as_ref().map(|instance| &instance.check));
    let subjects = subjects.with_context(|| match &arguments.instance {
        Some(file) => format!("{} cannot be used", file.display()),
        None => "nothing can be tested".to_owned(),
    })?;
    let state = tempfile::Builder::new().prefix("infranetes-check-").tempdir();
    let state = state.context("cannot make a state directory for the plugin")?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(WORKERS).enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let check = Check { arguments, instance: instance.as_ref(), state: state.path() };
    let result = runtime.block_on(check.run(&subjects));
    // Calls of the plugin that hang are not waited for.
    runtime.shutdown_background();
    result
}

struct Check<'a> {
    arguments: &'a Arguments,
    instance: Option<&'a ProviderInstance>,
    state: &'a Path,
}

impl Check<'_> {
    async fn run(&self, subjects: &Subjects) -> anyhow::Result<bool> {
        let started = Instant::now();
        let plugin = match self.load().await {
            Ok(plugin) => plugin,
            Err(error) => {
                self.write(&json!({ "ok": false, "refused": chain(&error) }))?;
                return Err(error.into());
            }
        };
        let load_ms = millis(started);
        self.say(&format!("{}\n", plugin.manifest()));
        let interrupted = watch_for_interrupt();
        let mut reports = Vec::new();
        for suite in self.suites(&plugin, subjects)? {
            let watch = |line: &Line| {
                self.say(&line.to_string());
                match interrupted.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            let report = run_suite(suite, &plugin, subjects, watch).await?;
            self.say(&format!("{}: {}\n", suite.name(), report.summary()));
            reports.push((suite, report));
        }
        let was_cut = interrupted.load(Ordering::Relaxed);
        let ok = !was_cut && reports.iter().all(|(_, report)| report.is_ok());
        let suites: serde_json::Map<String, Value> = reports
            .iter()
            .map(|(suite, report)| (suite.name().to_owned(), report.to_json()))
            .collect();
        self.write(&json!({
            "ok": ok,
            "interrupted": was_cut,
            "plugin": manifest(&plugin),
            "suites": suites,
            "load_ms": load_ms,
            "took_ms": millis(started),
        }))?;
        Ok(ok)
    }

    async fn load(&self) -> Result<LoadedPlugin, LoadError> {
        let name = self.instance.map_or("check", |instance| instance.name.as_str());
        let level = self.arguments.log.of_plugins();
        let services = Author { level, instance: self.instance.map(InstanceServices::new) };
        let mut spec = PluginSpec::new(name, &self.arguments.file)
            .with_state_dir(self.state)
            .with_log_level(level)
            .with_services(Arc::new(services));
        let mut loader = Loader::new().with_helper(helper());
        if let Some(instance) = self.instance {
            spec = spec
                .with_config_json(instance.config.to_string())
                .with_isolation(instance.isolation)
                .with_worker_threads(instance.worker_threads);
            spec.sha256.clone_from(&instance.sha256);
            loader = loader.with_hang_timeout(instance.hang_timeout);
        }
        match std::env::current_exe() {
            Ok(program) => {
                let arguments = ["plugin", "probe"].map(OsString::from);
                loader = loader.with_probe_command(program, arguments);
            }
            Err(source) => {
                let program = PathBuf::from("infranetes-cri");
                return Err(LoadError::NoProbe { program, source });
            }
        }
        loader.load(spec).await
    }

    /// Those that were asked for, else all that can be run; a suite that cannot be run is said.
    fn suites(&self, plugin: &LoadedPlugin, subjects: &Subjects) -> anyhow::Result<Vec<Suite>> {
        let services = plugin.providers().services();
        let asked = &self.arguments.suites;
        if let Some(suite) = asked.iter().find(|suite| !services.contains(&suite.name())) {
            let name = suite.name();
            bail!("the plugin provides no {name}s, so that --suite {name} has nothing to test");
        }
        let mut suites: Vec<Suite> = match asked.is_empty() {
            true => Suite::value_variants().to_vec(),
            false => asked.clone(),
        };
        suites.retain(|suite| services.contains(&suite.name()));
        if subjects.container.is_none() && suites.contains(&Suite::Container) {
            let missing = "the container suite needs an image: check.container.image";
            if asked.contains(&Suite::Container) || suites.len() == 1 {
                bail!("{missing} in the file of --config");
            }
            self.say(&format!("container: not tested; {missing}\n"));
            suites.retain(|suite| *suite != Suite::Container);
        }
        if suites.is_empty() {
            bail!("the plugin provides nothing, so that there is nothing to test");
        }
        Ok(suites)
    }

    fn say(&self, text: &str) {
        if self.arguments.json.as_deref() != Some(Path::new("-")) {
            // Whatever becomes of the reader, the suites have to clean up.
            let _ = say(text);
        }
    }

    fn write(&self, report: &Value) -> anyhow::Result<()> {
        match &self.arguments.json {
            None => Ok(()),
            Some(path) if path == Path::new("-") => say(format_args!("{report:#}")),
            Some(path) => std::fs::write(path, format!("{report:#}\n"))
                .with_context(|| format!("cannot write {}", path.display())),
        }
    }
}

/// The host as an author wants it: what the plugin logs, and where it panics, is on standard error.
struct Author {
    level: LogLevel,
    instance: Option<InstanceServices>,
}

#[async_trait]
impl HostServices for Author {
    fn log(&self, level: LogLevel, target: &str, message: &str) {
        if level <= self.level {
            // Nobody has to read it.
            let _ = writeln!(std::io::stderr(), "{} {target}: {message}", level.as_str());
        }
    }

    fn metric(&self, name: &str, value: f64) {
        self.log(LogLevel::Debug, "metric", &format!("{name} {value}"));
    }

    async fn secret(&self, name: &str) -> infranetes_sdk::Result<Secret> {
        match &self.instance {
            Some(instance) => instance.secret(name).await,
            None => Err(ProviderError::not_found(format!(
                "there is no secret {name:?}: --config has to name an instance with [secrets]"
            ))),
        }
    }
}

impl Suite {
    /// The service that it tests, as plugins name it.
    fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Container => "container",
            Self::Volume => "volume",
        }
    }
}

async fn run_suite(
    suite: Suite,
    plugin: &LoadedPlugin,
    subjects: &Subjects,
    watch: impl FnMut(&Line) -> ControlFlow<()>,
) -> anyhow::Result<Report> {
    let absent = || format!("the plugin provides no {}s", suite.name());
    Ok(match suite {
        Suite::Pod => {
            let provider = plugin.pods().with_context(absent)?;
            let mut suite = PodSuite::new(provider, subjects.pod.clone());
            if let Some(volumes) = plugin.volumes() {
                suite = suite.with_volumes(volumes, subjects.volume.clone());
            }
            suite.run_with(watch).await
        }
        Suite::Container => {
            let provider = plugin.containers().with_context(absent)?;
            let subject = subjects.container.clone().with_context(absent)?;
            ContainerSuite::new(provider, subject).run_with(watch).await
        }
        Suite::Volume => {
            let provider = plugin.volumes().with_context(absent)?;
            VolumeSuite::new(provider, subjects.volume.clone()).run_with(watch).await
        }
    })
}

fn manifest(plugin: &LoadedPlugin) -> Value {
    let manifest = plugin.manifest();
    json!({
        "file": plugin.path(),
        "name": manifest.name,
        "version": manifest.version,
        "abi": manifest.abi,
        "sdk": manifest.sdk,
        "rustc": manifest.rustc,
        "target": manifest.target,
        "provides": plugin.providers().services(),
    })
}

/// Becomes true with the first interrupt; the second one ends the process.
fn watch_for_interrupt() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            return;
        }
        flag.store(true, Ordering::Relaxed);
        let said = "interrupted: cleaning up; once more to leave everything as it is";
        let _ = writeln!(std::io::stderr(), "{said}");
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(INTERRUPTED);
        }
    });
    interrupted
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The plugin has a runtime of its own; this one waits for it.
const WORKERS: usize = 2;
/// As shells say it.
const INTERRUPTED: i32 = 130;
