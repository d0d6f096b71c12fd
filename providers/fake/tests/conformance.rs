//! The promises of `PodProvider` and `VolumeProvider`, kept by a cloud on its best day and by slower, more forgetful ones.

use std::sync::Arc;
use std::time::Duration;

use infranetes_conformance::{PodSubject, PodSuite, VolumeSubject, VolumeSuite};
use infranetes_loader::{Loader, PluginSpec};
use infranetes_provider_fake::{
    Behaviour, FakeCloud, FakeProvider, Feature, Outcome, Script, Span, When,
};
use infranetes_sdk::pod::{AttachRequest, CreateRequest, DestroyRequest, PlanRequest};
use infranetes_sdk::volume::{CreateVolumeRequest, VolumeRef, VolumeState};
use infranetes_sdk::{CallContext, ErrorKind, PodProvider, VolumeProvider};

async fn check(script: Script) {
    let cloud = FakeCloud::new(1);
    let provider = Arc::new(FakeProvider::new(cloud.clone(), script));
    let subject = PodSubject { has_console_output: true, ..Default::default() };
    let suite = PodSuite::new(provider.clone(), subject);
    let report = suite.with_volumes(provider, VolumeSubject::default()).run().await;
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

#[tokio::test(start_paused = true)]
async fn disks_on_a_best_day_on_a_slow_one_and_without_extras() {
    let slow = Script { delay: Span::between(1, 120), ..Default::default() };
    let without = vec![Feature::Expand, Feature::Snapshot];
    let plain = Script { without, ..Default::default() };
    for (script, skipped) in [(Script::default(), 0), (slow, 0), (plain, 5)] {
        let provider = Arc::new(FakeProvider::new(FakeCloud::new(2), script));
        let report = VolumeSuite::new(provider, VolumeSubject::default()).run().await;
        println!("{report}");
        report.assert_ok();
        let summary = format!("{} kept, 0 broken, {skipped} skipped", 25 - skipped);
        assert_eq!(report.summary(), summary);
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_a_machine_has_is_attached_and_cannot_be_deleted() {
    let provider = FakeProvider::new(FakeCloud::new(4), Script::default());
    let (pods, volumes): (&dyn PodProvider, &dyn VolumeProvider) = (&provider, &provider);
    let ctx = || CallContext::new("r1").with_timeout(Duration::from_secs(5));
    let wish = CreateVolumeRequest {
        token: "t".into(),
        name: "disk".into(),
        size_bytes: 1,
        ..CreateVolumeRequest::default()
    };
    let volume = volumes.create(ctx(), wish).await.expect("a volume");
    let plan = pods.plan(ctx(), PlanRequest::default()).await.expect("a plan");
    let wish = CreateRequest {
        token: "t".into(),
        name: "machine".into(),
        machine_type: plan.candidates.first().cloned(),
        ..CreateRequest::default()
    };
    let machine = pods.create(ctx(), wish).await.expect("a machine");
    let attach = |volume_id: &str| AttachRequest {
        machine_id: machine.id.clone(),
        volume_id: volume_id.into(),
        read_only: false,
    };
    let error = pods.attach(ctx(), attach("none")).await.expect_err("no such volume");
    assert_eq!(error.kind, ErrorKind::NotFound);
    pods.attach(ctx(), attach(&volume.id)).await.expect("it is attached");
    let reference = VolumeRef { id: volume.id.clone() };
    let held = volumes.get(ctx(), reference.clone()).await.expect("it is there");
    assert_eq!(held.state(), VolumeState::Attached);
    assert_eq!(held.machine_id, machine.id);
    let error = volumes.delete(ctx(), reference.clone()).await.expect_err("it is attached");
    assert_eq!(error.kind, ErrorKind::Conflict);
    pods.destroy(ctx(), DestroyRequest { id: machine.id.clone() }).await.expect("destroyed");
    let kept = volumes.get(ctx(), reference.clone()).await.expect("disks outlive machines");
    assert_eq!(kept.state(), VolumeState::Available);
    volumes.delete(ctx(), reference).await.expect("deleted");
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
    let volumes = plugin.volumes().expect("it provides disks");
    let subject = PodSubject { has_console_output: true, ..Default::default() };
    let suite = PodSuite::new(provider, subject);
    let report = suite.with_volumes(volumes.clone(), VolumeSubject::default()).run().await;
    println!("{report}");
    report.assert_ok();
    let report = VolumeSuite::new(volumes, VolumeSubject::default()).run().await;
    println!("{report}");
    report.assert_ok();
}
