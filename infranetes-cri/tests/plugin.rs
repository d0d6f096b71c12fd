//! `plugin check` on files that are no plugins. What it says of real ones is tested where the product is built.

#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;

use common::Node;

#[test]
fn a_file_that_is_no_plugin_is_a_sentence_and_a_report() {
    let node = Node::new("");
    let (file, report) = (node.path("text.so"), node.path("report.json"));
    fs::write(&file, "no library").unwrap();
    let said = node.fails_alone(&["plugin", "check", text(&file), "--json", text(&report)]);
    let expected = format!("{} is not a shared library", file.display());
    assert!(said.contains(&expected), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["ok"], false);
    assert!(report["refused"].as_str().unwrap().contains(&expected), "{report}");
}

#[test]
fn a_wrong_check_table_is_refused_before_anything_is_loaded() {
    let node = Node::new("");
    let file = node.path("x.toml");
    for (table, expected) in [
        ("[check.pod]\nmachines = 3", "the [check] table is wrong: unknown field `machines`"),
        ("[check.pod]\nmachines_max = 1", "check.pod.machines_max is 1: at least 2 are needed"),
        ("[check.container]\nimage = \"/no\"", "check.container.image: /no cannot be used"),
        ("[chekc]", "unknown key \"chekc\" in the top level; did you mean \"check\"?"),
    ] {
        fs::write(&file, format!("plugin = \"/p.so\"\n{table}\n")).unwrap();
        let said = node.fails_alone(&["plugin", "check", "/no.so", "--config", text(&file)]);
        assert!(said.contains(expected), "{table}: {said}");
    }
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}
