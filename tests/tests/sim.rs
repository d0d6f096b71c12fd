//! The simulated world: whatever dies, nothing is lost, doubled or left behind.

use infranetes_provider_fake::Span;
use infranetes_tests::sim::{self, History, Report, Sabotage, Scenario};

fn keeps_all_promises(history: &History) {
    let transcript = history.transcript.join("\n");
    assert!(history.broken.is_empty(), "{:#?}\n{transcript}", history.broken);
}

fn none_failed(report: &Report) {
    for failure in &report.failures {
        eprintln!("{}\n{}: {:#?}", failure.transcript.join("\n"), failure.scenario, failure.broken);
    }
    assert!(report.failures.is_empty(), "{} histories broke a promise", report.failures.len());
}

#[test]
fn a_calm_life_breaks_no_promise() {
    let history = sim::run(&Scenario::calm(1));
    keeps_all_promises(&history);
    assert_eq!((history.machines, history.crashes), (1, 0));
}

#[test]
fn an_engine_may_die_at_every_place_of_a_pods_life() {
    let mut report = Report::default();
    report.every_crash_point();
    none_failed(&report);
    assert!(report.crash_points > 100, "only {} places", report.crash_points);
    // The last places are passed after the pod is gone, so some of these engines live on.
    assert!(report.crashes > report.crash_points * 9 / 10, "{} crashes", report.crashes);
}

#[test]
fn an_engine_may_die_at_every_place_of_a_checkpoint_and_of_what_comes_out_of_it() {
    let mut report = Report::default();
    report.every_crash_point_of_checkpoints();
    none_failed(&report);
    assert!(report.crash_points > 150, "only {} places", report.crash_points);
    assert!(report.crashes > report.crash_points * 8 / 10, "{} crashes", report.crashes);
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..40 {
        let (one, two) = (sim::run_seed(seed), sim::run_seed(seed));
        for (number, (one, two)) in one.transcript.iter().zip(&two.transcript).enumerate() {
            assert_eq!(one, two, "line {number} of seed {seed}");
        }
        assert_eq!(one.transcript.len(), two.transcript.len(), "seed {seed}");
    }
}

#[test]
fn many_seeds_break_no_promise() {
    let mut report = Report::default();
    report.seeds(0..400);
    none_failed(&report);
    assert!(report.crashes > 400, "{} crashes", report.crashes);
}

/// What finds nothing proves nothing: each way of breaking the world is noticed.
#[test]
fn a_broken_world_is_noticed() {
    let sabotages = [
        Sabotage::IntentsForgotten,
        Sabotage::WishesForgotten,
        Sabotage::GoalsForgotten,
        Sabotage::TokensIgnored,
        Sabotage::WritesLost,
    ];
    for sabotage in sabotages {
        // Some kubelets stop a pod before they remove it, which hides a forgotten removal.
        let noticed = (1..9).find_map(|seed| {
            let mut calm = Scenario { sabotage, ..Scenario::calm(seed) };
            if sabotage == Sabotage::GoalsForgotten {
                // Long enough for a removal to be answered while it goes on.
                calm.script.machines.destroy = Span::millis(180_000);
            }
            let points = sim::run(&calm).passages;
            (1..=points)
                .map(|point| sim::run(&Scenario { crashes: vec![point], ..calm.clone() }))
                .find(|history| !history.broken.is_empty())
        });
        let noticed = noticed.unwrap_or_else(|| panic!("{sabotage:?} was not noticed"));
        eprintln!("{sabotage:?}: {:?}", noticed.broken);
    }
}
