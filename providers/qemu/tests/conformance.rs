//! The promises of `PodProvider`, kept by real machines, through the plugin as hosts load it.

mod machines;
mod support;

use std::path::PathBuf;
use std::time::Duration;

use infranetes_conformance::{Limits, PodSubject, PodSuite};
use infranetes_loader::{LoadedPlugin, Loader, PluginSpec};
use infranetes_sdk::pod::{CreateRequest, GetRequest, PlanRequest};
use support::{World, ctx};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_keeps_the_promises_of_a_machine_provider() {
    let world = World::new("").await;
    let plugin = load(&world).await;
    let provider = plugin.pods().expect("it provides machines");
    let subject = PodSubject {
        has_console_output: true,
        limits: Limits { start: Duration::from_secs(90), ..Default::default() },
        ..Default::default()
    };
    let report = PodSuite::new(provider, subject).run().await;
    println!("{report}");
    report.assert_ok();
    drop(plugin);
    assert_clean(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_outlives_the_plugin_and_is_taken_up_by_the_next() {
    let world = World::new("").await;
    let plugin = load(&world).await;
    let provider = plugin.pods().expect("it provides machines");
    let plan = provider.plan(ctx(), PlanRequest::default()).await.expect("a plan");
    let request = CreateRequest {
        token: "token".to_owned(),
        name: "name".to_owned(),
        machine_type: plan.candidates.into_iter().next(),
        ..Default::default()
    };
    let made = provider.create(ctx(), request.clone()).await.expect("created");
    // Wherever it is on its way: between record and process, too.
    drop(provider);
    drop(plugin);
    let plugin = load(&world).await;
    let provider = plugin.pods().expect("it provides machines");
    let again = provider.create(ctx(), request).await.expect("found");
    assert_eq!(again.id, made.id);
    let get = GetRequest { id: made.id.clone() };
    provider.get(ctx(), get).await.expect("there");
    support::destroy(provider.as_ref(), &made.id).await;
    drop(provider);
    drop(plugin);
    assert_clean(&world);
}

/// The plugin that cargo built beside this test, over a directory of its own in the world's.
async fn load(world: &World) -> LoadedPlugin {
    let test = std::env::current_exe().expect("the path of this test");
    let file: PathBuf = test.with_file_name("libinfranetes_provider_qemu.so");
    let config = serde_json::json!({
        "kernel": world.config.kernel,
        "initramfs": world.config.initramfs,
        "cgroup": world.config.cgroup,
        "run_dir": world.dir.path().join("plugin"),
    });
    let spec = PluginSpec::new("qemu", file).with_config_json(config.to_string());
    Loader::new().load(spec).await.expect("the plugin loads")
}

/// Looks whether anything is left.
fn assert_clean(world: &World) {
    let machines = world.dir.path().join("plugin").join("machines");
    let left: Vec<_> = std::fs::read_dir(machines)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name != ".boot")
        .collect();
    assert!(left.is_empty(), "directories are left: {left:?}");
    world.assert_clean();
}
