//! `check-config`: everything that can be known to be wrong without starting anything. No code of a plugin runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, bail};
use infranetes_cri::chain;
use infranetes_cri::config::{Config, ConfigError, ProviderInstance, read_instances};
use infranetes_loader::{Trust, vet_with};

use crate::output::say;

/// Prints what the configuration means, or fails with all that is wrong with its providers.
pub(crate) fn check(config: &Config) -> anyhow::Result<()> {
    let instances = read_instances(&config.providers_dir)?;
    let problems = problems(config, &instances);
    if !problems.is_empty() {
        bail!("{}", problems.join("\n  "));
    }
    say(summary(config, &instances).context("cannot write")?.trim_end())
}

fn problems(
    config: &Config,
    instances: &BTreeMap<String, Result<ProviderInstance, ConfigError>>,
) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, handler) in config.handlers.iter().filter(|(name, _)| !name.is_empty()) {
        if !instances.contains_key(&handler.provider) {
            let file = config.providers_dir.join(format!("{}.toml", handler.provider));
            problems.push(format!("handlers.{name}.provider: {} is missing", file.display()));
        }
    }
    for instance in instances.values() {
        match instance {
            Err(error) => problems.push(chain(error)),
            Ok(instance) => {
                let (sha256, keys) = (instance.sha256.clone(), config.trusted_keys.clone());
                let vetted = vet_with(&instance.plugin, &Trust { sha256, keys });
                if let Err(error) = vetted {
                    problems.push(format!("provider {}: {}", instance.name, chain(&error)));
                }
            }
        }
    }
    if config.handlers.is_empty() {
        problems.push("there is no handler: without a [handlers.NAME] no pod can run".to_owned());
    }
    problems
}

fn summary(
    config: &Config,
    instances: &BTreeMap<String, Result<ProviderInstance, ConfigError>>,
) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "listens on   unix://{}", config.socket.display())?;
    writeln!(text, "state        {}", config.state_dir.display())?;
    writeln!(text, "images       {}", config.images.root.display())?;
    writeln!(text, "owner tags   cluster {}, node {}", config.cluster, config.node)?;
    for (name, handler) in &config.handlers {
        let name = if name.is_empty() { "(default)" } else { name };
        writeln!(text, "handler      {name}: provider {}", handler.provider)?;
    }
    for (name, instance) in instances {
        if let Ok(instance) = instance {
            writeln!(text, "provider     {name}: {}", instance.plugin.display())?;
        }
    }
    Ok(text)
}
