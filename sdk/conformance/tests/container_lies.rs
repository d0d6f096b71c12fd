//! The suite of containers against a provider that keeps every promise, and against the same provider with one lie at a time:
//! each lie has to be found, under the right name.

mod containers;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use containers::{Liar, Lie};
use infranetes_conformance::{ContainerSubject, ContainerSuite, Limits, Report, Verdict};
use infranetes_sdk::container::{Image, Layer};

#[tokio::test(start_paused = true)]
async fn a_provider_that_keeps_its_promises_passes() {
    let report = run(Lie::None).await;
    report.assert_ok();
    let kept = report.lines.iter().filter(|line| line.verdict == Verdict::Kept).count();
    assert_eq!(kept, report.lines.len(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn each_lie_is_found() {
    for (lie, name) in [
        (Lie::WrongKindForUnknownId, "container/unknown-id"),
        (Lie::RemoveOfNothingFails, "container/remove/unknown-id"),
        (Lie::DeniesStats, "container/describe/honest"),
        (Lie::RunsWithoutImage, "image/create/missing"),
        (Lie::TakesWrongBytes, "image/import/wrong-digest"),
        (Lie::KeepsHalves, "image/import/cut-off"),
        (Lie::ForgetsLayers, "image/import"),
        (Lie::RemovesUsedImage, "image/list"),
        (Lie::RunsAtOnce, "container/create"),
        (Lie::IgnoresShapes, "container/create/again"),
        (Lie::HasNoProcess, "container/start"),
        (Lie::ListsOtherwise, "container/status"),
        (Lie::HasNoCounters, "container/stats"),
        (Lie::RunsWhilePaused, "container/pause"),
        (Lie::StaysPaused, "container/pause"),
        (Lie::UpdateFails, "container/update"),
        (Lie::UpdatesOnce, "container/update"),
        (Lie::KeepsUnusedImage, "image/remove"),
        (Lie::RemoveImageOfNothingFails, "image/remove"),
        (Lie::GrantsAttach, "container/attach/honest"),
        (Lie::AllIsWell, "exec/exit-code"),
        (Lie::MixesStreams, "exec/streams"),
        (Lie::LosesInput, "exec/stdin"),
        (Lie::AllIsWell, "exec/unknown-program"),
        (Lie::IgnoresTimeout, "exec/timeout"),
        (Lie::SurvivesDrop, "exec/drop"),
        (Lie::OneAtATime, "exec/concurrent"),
        (Lie::LosesEnvironment, "container/process"),
        (Lie::ForgetsTimes, "container/exit"),
        (Lie::RunsTheDead, "exec/exited"),
        (Lie::LosesOutput, "logs/order"),
        (Lie::BeginsAgain, "logs/resume"),
        (Lie::HoldsOutput, "logs/follow"),
        (Lie::StartsNothing, "container/start/unknown-program"),
        (Lie::KillsAtOnce, "container/stop/signal"),
        (Lie::NeverKills, "container/stop/grace"),
        (Lie::TakesAnySignal, "container/kill"),
        (Lie::TellsOnlyChanges, "container/events"),
        (Lie::CreatesOnce, "container/create/cancelled"),
        (Lie::CreatesOnce, "container/create/deadline"),
        (Lie::LateIsInternal, "container/create/deadline"),
        (Lie::StartsHalf, "container/start/cancelled"),
        (Lie::LateIsInternal, "container/start/deadline"),
        (Lie::NeverKills, "container/stop/cancelled"),
        (Lie::NeverKills, "container/stop/deadline"),
        (Lie::LateIsInternal, "container/stop/deadline"),
        (Lie::RemoveDoesNothing, "container/remove/cancelled"),
        (Lie::RemoveDoesNothing, "container/remove/deadline"),
        (Lie::LateIsInternal, "container/remove/deadline"),
        (Lie::LateIsInternal, "container/deadlines"),
        (Lie::LateIsInternal, "exec/deadline"),
        (Lie::SurvivesDrop, "exec/deadline"),
        (Lie::RemoveDoesNothing, "container/remove"),
        (Lie::RemoveDoesNothing, "container/clean"),
        (Lie::Panics, "container/stats"),
    ] {
        let report = run(lie).await;
        let found = report.broken().any(|line| line.name == name);
        assert!(found, "{lie:?} is not found as {name}:\n{report}");
        assert!(!report.is_ok());
    }
}

async fn run(lie: Lie) -> Report {
    let blobs: HashMap<String, Vec<u8>> =
        (1..=2_u8).map(|number| (format!("sha256:{number:064}"), vec![number; 100_000])).collect();
    let layers = (1..=2_u8).map(|number| Layer {
        digest: format!("sha256:{number:064}"),
        diff_id: format!("sha256:{:064}", 10 + number),
        size_bytes: 100_000,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
    });
    let image = Image { id: format!("sha256:{:064}", 99), layers: layers.collect() };
    let provider = Arc::new(Liar::new(lie, blobs.clone()));
    let limits = Limits {
        call: Duration::from_secs(15),
        start: Duration::from_secs(5),
        settle: Duration::from_secs(2),
        check: Duration::from_secs(60),
    };
    let subject = ContainerSubject { limits, ..ContainerSubject::new(image, blobs) };
    ContainerSuite::new(provider, subject).run().await
}
