//! The path of an author: from nothing to a plugin that keeps its promises.

use std::fs;

use infranetes_tests::author::{Workshop, checkout, target_dir};
use infranetes_tests::node::Programs;
use infranetes_tests::tutorial;

#[test]
fn a_new_provider_is_clean_keeps_its_promises_and_loads() {
    let workshop = Workshop::new(&programs(), target_dir().unwrap()).unwrap();
    // The longest name, and a short one, leave the sources formatted.
    for name in ["a", "a-provider-with-the-longest-name-that-there-may-be-0123456789ab"] {
        let dir = workshop.new_crate(name).unwrap();
        workshop.cargo(&dir, ["fmt", "--check"]).unwrap();
    }
    let dir = workshop.new_crate("meadow-9").unwrap();
    let output = workshop.shell(&dir, "./ci.sh").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("test the_provider_keeps_its_promises ... ok"), "{said}");
    assert!(said.contains("pod: 33 kept, 0 broken, 5 skipped"), "{said}");
}

#[test]
fn a_broken_promise_is_named_and_fails_the_check_and_a_panic_has_its_place() {
    let workshop = Workshop::new(&programs(), target_dir().unwrap()).unwrap();
    let dir = workshop.new_crate("liar").unwrap();
    let lib = dir.join("src/lib.rs");
    let source = fs::read_to_string(&lib).unwrap();
    let lie = source.replace("stop_start: true,", "stop_start: true,\n            quota: true,");
    assert_ne!(source, lie);
    // The instance is none the worse for it, but an author wants to know.
    let start = "Result<Providers> {";
    let panic =
        format!("{start}\n        tokio::spawn(async {{ panic!(\"the meadow floods\") }});");
    let broken = lie.replacen(start, &panic, 1);
    assert_ne!(lie, broken);
    fs::write(&lib, broken).unwrap();
    workshop.cargo(&dir, ["build"]).unwrap();
    let check =
        "infranetes-cri plugin check target/debug/libliar.so --config liar.toml --json report.json";
    let output = workshop.shell(&dir, check).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("describe grants quota, it answers Unsupported"), "{said}");
    assert!(said.contains("error panic: panicked at src/lib.rs:"), "{said}");
    assert!(said.contains("the meadow floods"), "{said}");
    assert!(said.contains("pod: 32 kept, 1 broken, 5 skipped"), "{said}");
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(report["plugin"]["name"], "liar");
    let lines = report["suites"]["pod"]["lines"].as_array().unwrap();
    let broken: Vec<_> = lines.iter().filter(|line| line["verdict"] == "broken").collect();
    assert_eq!(broken.len(), 1);
    assert_eq!(broken[0]["name"], "pod/describe/honest");
}

#[test]
fn the_tutorial_is_true() {
    let page = fs::read_to_string(checkout().join("docs/writing-a-provider.md")).unwrap();
    let workshop = Workshop::new(&programs(), target_dir().unwrap()).unwrap();
    tutorial::follow(&page, &workshop).unwrap();
}

fn programs() -> Programs {
    // No machine is needed: the guest image may be missing.
    let bin = std::env::var_os("INFRANETES_BIN").expect("run this by `cargo xtask test`");
    Programs { bin: bin.into(), guest: Default::default() }
}
