//! The engine in a program of its own: no CRI, no daemon, and a provider that is linked in.
//!
//! ```text
//! embed AGENT PLUGINS DIRECTORY IMAGE [REGISTRY-URL]
//! ```
//!
//! Machines are namespaces of this node (the `process` provider), which takes root: AGENT is `infranetes-agent`, PLUGINS a
//! directory with the agent's container plugin, `oci.so`. DIRECTORY holds the state, IMAGE has to have a shell.

mod pod;

use std::path::PathBuf;
use std::sync::Arc;

use infranetes_core::engine::{Engine, EngineConfig, EngineParts, HandlerConfig};
use infranetes_provider_process::{Config, ProcessProvider};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [agent, plugins, directory, image, registry @ ..] = arguments.as_slice() else {
        return Err("usage: embed AGENT PLUGINS DIRECTORY IMAGE [REGISTRY-URL]".into());
    };
    let directory = PathBuf::from(directory);

    let config = Config { agent: agent.into(), plugins: plugins.into(), ..Config::default() };
    let provider = ProcessProvider::open(config, &directory.join("machines")).await?;

    let images = pod::pull(&directory, image, registry.first()).await?;
    let parts = EngineParts::on_disk(&directory, images).await?;
    let parts = parts.with_provider("local", Arc::new(provider));
    let config =
        EngineConfig::new("example", "embed").with_handler("", HandlerConfig::new("local"));
    let engine = Engine::start(config, parts).await?;
    pod::run(&engine, image).await
}
