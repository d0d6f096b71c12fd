//! The simulated world: whatever dies, nothing is lost, doubled or left behind.

use infranetes_tests::sim::{self, Scenario};

#[test]
fn a_calm_life_breaks_no_promise() {
    let history = sim::run(&Scenario::calm(1));
    assert!(history.broken.is_empty(), "{:#?}\n{}", history.broken, history.transcript.join("\n"));
    assert_eq!(history.machines, 1);
}
