//! The promises of `PodProvider`, kept by real machines.

mod machines;
mod support;

use std::sync::Arc;
use std::time::Duration;

use infranetes_conformance::{Limits, PodSubject, PodSuite};
use support::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_keeps_the_promises_of_a_machine_provider() {
    let World { dir, config, provider } = World::new("").await;
    let subject = PodSubject {
        has_console_output: true,
        limits: Limits { start: Duration::from_secs(90), ..Default::default() },
        ..Default::default()
    };
    let provider = Arc::new(provider);
    let report = PodSuite::new(provider.clone(), subject).run().await;
    println!("{report}");
    report.assert_ok();
    let provider = Arc::into_inner(provider).expect("the suite let go of it");
    World { dir, config, provider }.assert_clean();
}
