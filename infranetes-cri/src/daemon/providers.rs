//! Provider instances: those that handlers name are loaded, each by itself. One that fails leaves a reason in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::join_all;
use infranetes_loader::isolation::{Helper, Isolation};
use infranetes_loader::{LoadedPlugin, Loader, PluginSpec};
use infranetes_sdk::{LogLevel, PodProvider};

use super::lock::StateDir;
use super::services::InstanceServices;
use crate::chain;
use crate::config::{Config, ConfigError, ProviderInstance, read_instances};

/// Provider instances by name: ready, or why not.
pub(super) type Providers = BTreeMap<String, Result<Arc<dyn PodProvider>, String>>;

/// Those that were loaded, by name.
pub(super) type Plugins = BTreeMap<String, LoadedPlugin>;

/// The program that runs plugins in processes of their own: this one.
pub fn helper() -> Helper {
    Helper::this_program().with_argument("plugin").with_argument("host")
}

/// Loads what the handlers name and `linked` does not have.
pub(super) async fn load(
    config: &Config,
    state: &StateDir,
    linked: BTreeMap<String, Arc<dyn PodProvider>>,
) -> Result<(Providers, Plugins), ConfigError> {
    let wanted: BTreeSet<&str> =
        config.handlers.values().map(|handler| handler.provider.as_str()).collect();
    let mut instances = read_instances(&config.providers_dir)?;
    let mut providers: Providers =
        linked.into_iter().map(|(name, provider)| (name, Ok(provider))).collect();
    let missing: Vec<&str> =
        wanted.into_iter().filter(|name| !providers.contains_key(*name)).collect();
    let loads = missing.into_iter().map(|name| {
        let instance = instances.remove(name);
        async move { (name.to_owned(), load_one(config, state, name, instance).await) }
    });
    let mut plugins = Plugins::new();
    for (name, loaded) in join_all(loads).await {
        let provider = loaded.map(|(plugin, pods)| {
            plugins.insert(name.clone(), plugin);
            pods
        });
        providers.insert(name, provider);
    }
    for (name, provider) in &providers {
        if let Err(problem) = provider {
            tracing::error!(
                provider = name,
                problem,
                "the provider cannot be used; its handlers refuse pods"
            );
        }
    }
    Ok((providers, plugins))
}

async fn load_one(
    config: &Config,
    state: &StateDir,
    name: &str,
    instance: Option<Result<ProviderInstance, ConfigError>>,
) -> Result<(LoadedPlugin, Arc<dyn PodProvider>), String> {
    let instance = match instance {
        None => {
            let file = config.providers_dir.join(format!("{name}.toml"));
            return Err(format!(
                "there is no provider instance {name:?}: {} is missing",
                file.display()
            ));
        }
        Some(instance) => instance.map_err(|error| chain(&error))?,
    };
    let directory = state.directory(&format!("providers/{name}")).map_err(|error| chain(&error))?;
    let services = Arc::new(InstanceServices::new(&instance));
    let mut spec = PluginSpec::new(name, instance.plugin)
        .with_config_json(instance.config.to_string())
        .with_state_dir(directory)
        .with_worker_threads(instance.worker_threads)
        .with_isolation(instance.isolation)
        .with_log_level(log_level())
        .with_services(services);
    spec.sha256 = instance.sha256;
    let mut loader = Loader::new()
        .with_helper(helper())
        .with_hang_timeout(instance.hang_timeout)
        .with_trusted_keys(config.trusted_keys.clone());
    if spec.isolation == Isolation::None && spec.sha256.is_none() && config.trusted_keys.is_empty()
    {
        // Nobody vouches for its bytes, and a damaged file can crash the process that opens it: not this one.
        loader = loader.with_probe_command("/proc/self/exe", ["plugin".into(), "probe".into()]);
    }
    // What failed may be a cloud that cannot be reached now: one with a process of its own is tried again, as after a crash.
    let plugin = loader.load_or_retry(spec).await.map_err(|error| chain(&error))?;
    match plugin.pods() {
        Some(pods) => Ok((plugin, pods)),
        None => {
            let path = plugin.path().display();
            Err(format!("the plugin {path} makes no machines: it exports no pod provider"))
        }
    }
}

/// What is shown of a plugin's log is decided here; what is louder need not come.
fn log_level() -> LogLevel {
    use tracing::level_filters::LevelFilter;
    match LevelFilter::current() {
        LevelFilter::OFF | LevelFilter::ERROR => LogLevel::Error,
        LevelFilter::WARN => LogLevel::Warn,
        LevelFilter::INFO => LogLevel::Info,
        LevelFilter::DEBUG => LogLevel::Debug,
        _ => LogLevel::Trace,
    }
}
