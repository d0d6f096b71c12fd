//! The engine in a program of its own, with a provider that is loaded from a file.
//!
//! ```text
//! embed_plugin PLUGIN.so CONFIG-JSON DIRECTORY IMAGE [REGISTRY-URL]
//! ```
//!
//! What the engine gets is the same `Arc<dyn PodProvider>` as of a provider that is linked in: see `embed`.

mod pod;

use std::path::PathBuf;

use infranetes_core::engine::{Engine, EngineConfig, EngineParts, HandlerConfig};
use infranetes_loader::{Loader, PluginSpec};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [plugin, config, directory, image, registry @ ..] = arguments.as_slice() else {
        let usage = "usage: embed_plugin PLUGIN.so CONFIG-JSON DIRECTORY IMAGE [REGISTRY-URL]";
        return Err(usage.into());
    };
    let directory = PathBuf::from(directory);

    let state = directory.join("machines");
    std::fs::create_dir_all(&state)?;
    let spec = PluginSpec::new("loaded", plugin).with_config_json(config).with_state_dir(state);
    let plugin = Loader::new().load(spec).await?;
    println!("loaded {}", plugin.manifest());

    let images = pod::pull(&directory, image, registry.first()).await?;
    let parts = EngineParts::on_disk(&directory, images).await?;
    let parts = parts.with_provider("loaded", plugin.pods().ok_or("it makes no machines")?);
    let config =
        EngineConfig::new("example", "embed").with_handler("", HandlerConfig::new("loaded"));
    let engine = Engine::start(config, parts).await?;
    pod::run(&engine, image).await
}
