//! The promises of `PodProvider`, kept by real agents in namespaces of this node. Needs root.

#[expect(dead_code, reason = "the suite needs a part of it")]
mod support;

use std::sync::Arc;

use infranetes_conformance::{PodSubject, PodSuite};
use support::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_keeps_the_promises_of_a_machine_provider() {
    let World { dir, config, provider } = World::new().await;
    let subject = PodSubject {
        user_data: support::user_data(),
        has_console_output: true,
        ..Default::default()
    };
    let provider = Arc::new(provider);
    let report = PodSuite::new(provider.clone(), subject).run().await;
    println!("{report}");
    report.assert_ok();
    let provider = Arc::into_inner(provider).expect("the suite let go of it");
    World { dir, config, provider }.assert_clean();
}
