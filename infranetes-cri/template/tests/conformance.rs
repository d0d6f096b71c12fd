//! Whether the provider keeps the promises of `PodProvider`.

use std::path::Path;
use std::sync::Arc;

use infranetes_conformance::{PodSubject, PodSuite};
use infranetes_sdk::{Host, Plugin, TracingServices};

use @CRATE@::{Config, Provider};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_keeps_its_promises() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_PKG_NAME"));
    std::fs::create_dir_all(&directory).expect("a directory for the servers");
    let host = Host::new("test", Some(directory), Arc::new(TracingServices));
    let providers = Provider::start(host, Config { boot_ms: 20 }).await;
    let pods = providers
        .expect("it starts")
        .pods
        .expect("it provides machines");
    // No agent runs in machines that are files. Remove this once yours are real.
    let subject = PodSubject {
        has_agent: false,
        ..PodSubject::default()
    };
    let report = PodSuite::new(pods, subject).run().await;
    println!("{report}");
    report.assert_ok();
}
