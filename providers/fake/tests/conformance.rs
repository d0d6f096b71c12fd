//! The promises of `PodProvider`, kept by a cloud on its best day and by slower, more forgetful ones.

use std::sync::Arc;

use infranetes_conformance::{PodSubject, PodSuite};
use infranetes_loader::{Loader, PluginSpec};
use infranetes_provider_fake::{
    Behaviour, FakeCloud, FakeProvider, Feature, Outcome, Script, Span, When,
};

async fn check(script: Script) {
    let cloud = FakeCloud::new(1);
    let provider = Arc::new(FakeProvider::new(cloud.clone(), script));
    let subject = PodSubject { has_console_output: true, ..Default::default() };
    let report = PodSuite::new(provider, subject).run().await;
    println!("{report}");
    report.assert_ok();
    assert!(cloud.created() > 0, "the suite made no machine");
    assert_eq!(cloud.alive(), 0, "machines are left");
}

#[tokio::test(start_paused = true)]
async fn a_cloud_on_its_best_day() {
    check(Script::default()).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_cloud_whose_listings_lag() {
    let machines = Behaviour {
        boot: Span::between(1_000, 8_000),
        stop: Span::between(100, 2_000),
        destroy: Span::between(100, 2_000),
        hidden: Span::between(0, 1_500),
        lingers: Span::between(0, 1_500),
    };
    check(Script { delay: Span::between(1, 120), machines, ..Default::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn a_cloud_whose_guests_ignore_the_power_button() {
    check(Script::default().with_outcome(When::Always, Outcome::IgnoresStop)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_can_do_little() {
    let without = vec![
        Feature::Attach,
        Feature::Console,
        Feature::StopStart,
        Feature::Resize,
        Feature::Events,
        Feature::Sweep,
        Feature::Quota,
    ];
    check(Script { without, ..Default::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plugin_as_hosts_load_it() {
    let test = std::env::current_exe().expect("the path of this test");
    let config = serde_json::json!({
        "seed": 3,
        "script": { "delay": [0, 5], "machines": { "boot": [10, 50], "hidden": 5, "lingers": 5 } },
    });
    let spec = PluginSpec::new("fake", test.with_file_name("libinfranetes_provider_fake.so"))
        .with_config_json(config.to_string());
    let plugin = Loader::new().load(spec).await.expect("the plugin loads");
    let provider = plugin.pods().expect("it provides machines");
    let subject = PodSubject { has_console_output: true, ..Default::default() };
    let report = PodSuite::new(provider, subject).run().await;
    println!("{report}");
    report.assert_ok();
}
