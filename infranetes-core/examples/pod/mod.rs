//! One pod, from its image to its end: what both examples do with their engine.

use std::path::Path;
use std::time::Duration;

use infranetes_core::engine::Engine;
use infranetes_core::image::{Endpoint, ImageStore, ImageStoreConfig, Reference, RegistryConfig};
use infranetes_core::spec::{ContainerSpec, PodIdentity, SandboxSpec};

/// Opens the node's store of images, and pulls one. `registry` is where its registry answers, if not at its own name.
pub(crate) async fn pull(
    directory: &Path,
    image: &str,
    registry: Option<&String>,
) -> Result<ImageStore, Box<dyn std::error::Error>> {
    let mut config = ImageStoreConfig::new(directory.join("images"));
    if let Some(url) = registry {
        let itself = Some(Endpoint::new(url)?);
        let host = image.parse::<Reference>()?.registry().to_owned();
        config.registries.hosts.insert(host, RegistryConfig { itself, ..Default::default() });
    }
    let images = ImageStore::open(config).await?;
    images.pull(image, None).await?;
    Ok(images)
}

/// Runs a pod with one container, asks something of it, and removes both.
pub(crate) async fn run(engine: &Engine, image: &str) -> Result<(), Box<dyn std::error::Error>> {
    let pod = PodIdentity::new("default", "hello", "a-uid-of-its-own");
    let sandbox = SandboxSpec { hostname: "hello".into(), ..SandboxSpec::new(pod) };
    let sandbox = engine.run_sandbox(sandbox).await?;
    println!("the sandbox {sandbox} is ready");

    let script = "trap 'exit 0' TERM; while true; do sleep 1 & wait; done";
    let container = ContainerSpec {
        command: ["sh", "-c", script].map(str::to_owned).into(),
        ..ContainerSpec::new("main", image)
    };
    let container = engine.create_container(&sandbox, container).await?;
    engine.start_container(&container).await?;
    let asked = ["hostname".to_owned()].into();
    let said = engine.exec_sync(&container, asked, Some(Duration::from_secs(10))).await?;
    print!("the container says {}", String::from_utf8_lossy(&said.stdout));

    engine.stop_container(&container, Duration::from_secs(5)).await?;
    engine.remove_sandbox(&sandbox).await?;
    engine.shutdown(Duration::from_secs(5)).await;
    println!("nothing is left");
    Ok(())
}
