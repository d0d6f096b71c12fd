//! What `plugin` refuses. That a new provider builds, and what a check says of one, is tested where the product is built.

#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

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
        (
            "[check.pod]\nmachines = 3",
            "x.toml cannot be used: the [check] table is wrong: unknown field `machines`",
        ),
        ("[check.pod]\nmachines_max = 1", "check.pod.machines_max is 1: at least 2 are needed"),
        ("[check.container]\nimage = \"/no\"", "check.container.image: /no cannot be used"),
        ("[chekc]", "unknown key \"chekc\" in the top level; did you mean \"check\"?"),
    ] {
        fs::write(&file, format!("plugin = \"/p.so\"\n{table}\n")).unwrap();
        let said = node.fails_alone(&["plugin", "check", "/no.so", "--config", text(&file)]);
        assert!(said.contains(expected), "{table}: {said}");
    }
}

#[test]
fn a_name_that_no_crate_may_have_is_refused() {
    let node = Node::new("");
    let long = "a".repeat(64);
    for name in ["", "Big", "1st", "a_b", "a--b", "a-", "-a", "../a", "é", "fn", "serde", &long] {
        let dir = node.path("new");
        let said = node.fails_alone(&["plugin", "new", "--", name, text(&dir)]);
        assert!(said.contains("invalid value") && said.contains("NAME"), "{name:?}: {said}");
        assert!(!dir.exists());
    }
}

#[test]
fn what_exists_is_not_touched_and_nothing_half_made_is_left() {
    let node = Node::new("");
    let (dir, work) = (node.path("there"), node.path("work"));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&work).unwrap();
    std::os::unix::fs::symlink("nowhere", work.join("link")).unwrap();
    let missing = work.join("missing/new");
    let (new, sdk) = (work.join("new"), node.path("state"));
    for (arguments, expected) in [
        (vec![text(&dir)], "there exists already"),
        (vec![text(&work.join("link"))], "link exists already"),
        (vec![text(&missing)], "cannot write into"),
        (vec![text(&new), "--sdk-path", text(&work)], "is no checkout of infranetes"),
        (vec![text(&new), "--sdk-path", text(&sdk)], "cannot read"),
    ] {
        let said = node.fails_alone(&[&["plugin", "new", "x"], &arguments[..]].concat());
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&work).unwrap().count(), 1);
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_signed_file_is_verified_and_a_changed_one_is_not() {
    let node = Node::new("");
    let (key, other, file) = (node.path("a.key"), node.path("b.key"), node.path("x.so"));
    fs::write(&file, "the plugin").unwrap();
    let run = |args: &[&str]| {
        let output = node.run_alone(args);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), said)
    };
    for key in [&key, &other] {
        let (ok, said) = run(&["plugin", "keygen", text(key)]);
        assert!(ok && said.starts_with("ed25519:"), "{said}");
        assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let before = fs::read(&key).unwrap();
    let said = node.fails_alone(&["plugin", "keygen", text(&key)]);
    assert!(said.contains("cannot write the key") && fs::read(&key).unwrap() == before, "{said}");

    let (public, other) = (node.path("a.key.pub"), node.path("b.key.pub"));
    let said = node.fails_alone(&["plugin", "verify", text(&file), "--keys", text(&public)]);
    assert!(said.contains("x.so.sig") && said.contains("plugin sign"), "{said}");
    let (ok, said) = run(&["plugin", "sign", text(&file), "--key", text(&key)]);
    assert!(ok, "{said}");
    let itself = fs::read_to_string(&public).unwrap();
    for keys in [vec![text(&public)], vec![text(&other), text(&public)], vec![itself.trim()]] {
        let (ok, said) = run(&[&["plugin", "verify", text(&file), "--keys"], &*keys].concat());
        assert!(ok && said.contains(itself.trim()), "{keys:?}: {said}");
    }
    let said = node.fails_alone(&["plugin", "verify", text(&file), "--keys", text(&other)]);
    assert!(said.contains("none of the trusted keys"), "{said}");
    fs::write(&file, "another plugin").unwrap();
    let said = node.fails_alone(&["plugin", "verify", text(&file), "--keys", text(&public)]);
    assert!(said.contains("does not belong to these bytes"), "{said}");
    let said = node.fails_alone(&["plugin", "sign", text(&file), "--key", text(&public)]);
    assert!(said.contains("is no ed25519 key in PKCS#8 form"), "{said}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let node = Node::new("");
    let dir = node.path("new");
    for (arguments, ok) in [
        (&["plugin", "new", "x", text(&dir)][..], true),
        (&["plugin", "keygen", text(&node.path("a.key"))], true),
        (&["plugin", "check", "/no.so", "--json", "-"], false),
        (&["plugin", "--help"], true),
    ] {
        // Its other end is closed before anything is written.
        let (_, nobody) = std::io::pipe().unwrap();
        let output = node.run_alone_into(arguments, nobody.into());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), ok, "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
    assert!(dir.join("Cargo.toml").exists());
}

#[test]
fn options_of_the_daemon_are_those_of_its_commands_alone() {
    let node = Node::new("");
    let help = |arguments: &[&str]| {
        String::from_utf8(node.run_alone(&[arguments, &["--help"]].concat()).stdout).unwrap()
    };
    for command in [&[][..], &["serve"], &["check-config"]] {
        assert!(help(command).contains("--state-dir"), "{command:?}");
    }
    for command in [&["plugin"][..], &["plugin", "new"], &["plugin", "check"]] {
        assert!(!help(command).contains("--state-dir"), "{command:?}");
    }
    let said = node.fails(&["plugin", "check", "/no.so"]);
    assert!(said.contains("options of the daemon mean nothing to `plugin`"), "{said}");
    // Before the command and behind it; behind wins.
    let config = node.path("config.toml");
    for arguments in [
        &["--config", text(&config), "check-config"][..],
        &["check-config", "--config", text(&config)],
        &["--config", "/no", "check-config", "--config", text(&config)],
    ] {
        let said = node.fails_alone(arguments);
        assert!(said.contains("there is no handler"), "{arguments:?}: {said}");
    }
}
