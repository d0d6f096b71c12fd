use std::collections::BTreeSet;
use std::path::Path;

use super::document::Table;
use super::*;

const EXAMPLE: &str = include_str!("../../config.example.toml");
const MANUAL: &str = include_str!("../../docs/configuration.md");

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("c.toml"), text, &Overrides::default()).map_err(|e| e.to_string())
}

/// The example with the lines that begin with `mark` made active.
fn uncomment(mark: &str) -> String {
    let active = |line: &str| match line.strip_prefix(mark) {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(active).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_valid_and_documents_the_defaults() {
    let example = parse(EXAMPLE).unwrap();
    let defaults = parse(&uncomment("#")).unwrap();
    assert_eq!(format!("{defaults:#?}"), format!("{example:#?}"));
    let bare = parse("[handlers.vm]\nprovider = \"qemu\"").unwrap();
    assert_eq!(format!("{bare:#?}"), format!("{example:#?}"));
}

#[test]
fn the_examples_in_the_example_are_valid() {
    let text = uncomment("##");
    let config = parse(&text).unwrap();
    assert_eq!(config.images.registries.hosts["registry.example:5000"].mirrors.len(), 1);
    assert_eq!(config.images.registries.default_mirrors.len(), 1);
}

/// Every key of every table, as the manual writes it.
fn all_keys() -> BTreeSet<String> {
    let words = |prefix: &str, table: &Table| {
        let path = table.path.replace("handlers.*", "handlers.NAME");
        let path = path.replace("registries.*", "registries.HOST").replace(".[]", "[]");
        let path = if path.is_empty() { prefix.to_owned() } else { format!("{prefix}{path}.") };
        table.keys.iter().map(move |key| format!("{path}{key}")).collect::<Vec<_>>()
    };
    let tables = file::tables();
    let sub_tables: BTreeSet<&str> = BTreeSet::from([
        "handlers",
        "images",
        "cni",
        "mounts",
        "agent",
        "streaming",
        "plugins",
        "limits",
        "log",
        "images.registries",
        "handlers.NAME.timeouts",
    ]);
    let mut keys: BTreeSet<String> = tables.iter().flat_map(|table| words("", table)).collect();
    keys.retain(|key| !sub_tables.contains(key.as_str()));
    keys.extend(words("provider: ", &instance::table()));
    keys
}

/// The rows of the manual's tables: key and default.
fn manual_rows() -> Vec<(String, String)> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let key = cells.next()?.trim_end_matches('`').to_owned();
        Some((key, cells.next()?.trim_matches('`').to_owned()))
    };
    MANUAL.lines().filter_map(row).collect()
}

#[test]
fn the_manual_has_every_key_and_no_other() {
    let manual: BTreeSet<String> = manual_rows().into_iter().map(|(key, _)| key).collect();
    assert_eq!(manual, all_keys());
}

#[test]
fn the_manual_has_the_defaults_of_the_example() {
    for (key, default) in manual_rows() {
        let name = key.rsplit(['.', ' ']).next().unwrap();
        let shown: BTreeSet<&str> = EXAMPLE
            .lines()
            .filter_map(|line| line.strip_prefix('#')?.strip_prefix(name)?.strip_prefix(" = "))
            .collect();
        let described = default.is_empty()
            || default == "required"
            || key.starts_with("provider: ")
            || key.contains("[]")
            || key.contains("HOST");
        assert!(
            described || shown.contains(default.as_str()),
            "{key}: {default} is not in {shown:?}"
        );
    }
}

#[test]
fn a_wrong_file_is_refused_with_line_and_hint() {
    let handler = "[handlers.vm]\nprovider = \"q\"\n";
    let with = |rest: &str| format!("{handler}{rest}");
    let cases = [
        (
            "listn = \"x\"".to_owned(),
            r#"c.toml:1: unknown key "listn" in the top level; did you mean "listen"?"#,
        ),
        (
            "\n\n[logs]\nlevel = 1".into(),
            r#"c.toml:3: unknown key "logs" in the top level; did you mean "log"?"#,
        ),
        (
            with("memry = \"1Gi\""),
            r#"c.toml:3: unknown key "memry" in [handlers.vm]; did you mean "memory"?"#,
        ),
        (
            with("[handlers.vm.timeouts]\nbot = 1"),
            r#"c.toml:4: unknown key "bot" in [handlers.vm.timeouts]; did you mean "boot"?"#,
        ),
        (
            "[images.registries.\"a.b\"]\nplain_http = true".into(),
            r#"c.toml:2: unknown key "plain_http" in [images.registries."a.b"]; known keys: url, ca_file, mirrors"#,
        ),
        (
            "[images]\nmirrors = [{ urk = \"x\" }]".into(),
            r#"c.toml:2: unknown key "urk" in [images.mirrors[]]; did you mean "url"?"#,
        ),
        ("listen = 5".into(), "c.toml:1: invalid type: integer `5`, expected a string"),
        ("a = [".into(), "c.toml:1: "),
        ("cluster = \"a\"\ncluster = \"b\"".into(), "c.toml:2: duplicate key"),
        (
            "listen = \"/run/x.sock\"".into(),
            r#"c.toml:1: listen: "/run/x.sock" is no socket; write it like "unix:///run/infranetes/cri.sock""#,
        ),
        ("listen = \"tcp://127.0.0.1:1\"".into(), "c.toml:1: listen: "),
        ("state_dir = \"var\"".into(), "c.toml:1: state_dir: \"var\" has to be an absolute path"),
        (
            "cluster = \"Prod 1\"".into(),
            "c.toml:1: cluster: \"Prod 1\" has to match [a-z0-9_-]{1,63}",
        ),
        (
            "\ndefault_handler = \"vn\"\n[handlers.vm]\nprovider = \"q\"".into(),
            "c.toml:2: default_handler: there is no [handlers.vn]; there is: vm",
        ),
        (
            "[handlers.vm]\ncpu = \"1\"".into(),
            "c.toml:1: handlers.vm.provider: name the provider instance",
        ),
        (
            "[handlers.\"V M\"]\nprovider = \"q\"".into(),
            "c.toml:1: handlers.\"V M\": a RuntimeClass's handler has a name like",
        ),
        (
            with("cpu = \"two\""),
            "c.toml:3: handlers.vm.cpu: \"two\" is no amount of CPU; write it like",
        ),
        (with("cpu = \"0\""), "c.toml:3: handlers.vm.cpu: \"0\" is not between 1m and 1024000m"),
        (
            with("memory = \"1Mi\""),
            "c.toml:3: handlers.vm.memory: \"1Mi\" is not between 16Mi and 64Ti",
        ),
        (
            with("[handlers.vm.timeouts]\nrun_call = \"5m\""),
            "c.toml:4: handlers.vm.timeouts.run_call: the kubelet gives up after 4m",
        ),
        (
            with("[handlers.vm.timeouts]\nboot = \"5m\"\nprovider_call = \"100s\""),
            "c.toml:5: handlers.vm.timeouts.provider_call: it has to be shorter than 100s",
        ),
        (
            with(
                "[handlers.vm.timeouts]\nbind = \"30s\"\nrun_call = \"20s\"\nprovider_call = \"10s\"",
            ),
            "c.toml:4: handlers.vm.timeouts.bind: it has to be shorter than run_call",
        ),
        (
            // What contradicts may be a default: then the line is its table's.
            with("[handlers.vm.timeouts]\nrun_call = \"1m\""),
            "c.toml:3: handlers.vm.timeouts.provider_call: it has to be shorter than run_call",
        ),
        (
            with("[handlers.vm.timeouts]\nenrol = \"8s\""),
            "c.toml:4: handlers.vm.timeouts.enrol: it has to be longer than 8s",
        ),
        (
            with("[handlers.vm.timeouts]\nboot = \"0s\""),
            "c.toml:4: handlers.vm.timeouts.boot: \"0s\" is not between 100ms and 3600s",
        ),
        ("[images]\nmirrors = [{ url = \"reg.example\" }]".into(), "c.toml:2: images.mirrors: "),
        (
            "[images.registries.r]\nurl = \"https://u:p4ss@r\"".into(),
            "c.toml:2: images.registries.r.url: ",
        ),
        ("[images]\npinned = [\"A B\"]".into(), "c.toml:2: images.pinned: "),
        (
            "[images]\nparallel_pulls = 0".into(),
            "c.toml:2: images.parallel_pulls: 0 is not between 1 and 100",
        ),
        (
            "[limits]\nmessage_mib = 9999".into(),
            "c.toml:2: limits.message_mib: 9999 is not between 1 and 256",
        ),
        ("[limits]\nconcurrent_creates = -1".into(), "c.toml:2: "),
        ("[agent]\nstats_period = \"10ms\"".into(), "c.toml:2: agent.stats_period: "),
        ("[agent]\ncertificate_lifetime = \"1s\"".into(), "c.toml:2: agent.certificate_lifetime: "),
        ("[log]\nlevel = \"loud=very=much\"".into(), "c.toml:2: log.level: "),
        (
            "[log]\nformat = \"xml\"".into(),
            "c.toml:2: log.format: \"xml\" is no log format; one of \"text\", \"json\"",
        ),
    ];
    for (text, expected) in cases {
        let error = parse(&text).expect_err(&text);
        assert!(error.contains(expected), "{text:?}:\n  {error}\n  {expected}");
        assert!(!error.contains("p4ss"), "{error}");
    }
}

#[test]
fn every_table_refuses_unknown_keys() {
    for table in file::tables() {
        let path = table.path.replace('*', "x");
        let text = match path.split_once(".[]") {
            Some((array, _)) => format!("[[{array}]]\nno_such_key_at_all = 1"),
            None if path.is_empty() => "no_such_key_at_all = 1".to_owned(),
            None => format!("[{path}]\nno_such_key_at_all = 1"),
        };
        let error = parse(&text).expect_err(&text);
        assert!(error.contains("unknown key \"no_such_key_at_all\""), "{text}: {error}");
    }
}

#[test]
fn the_command_line_wins_over_the_file() {
    let overrides = Overrides {
        listen: Some("unix:///tmp/other.sock".into()),
        state_dir: Some("/tmp/state".into()),
        providers_dir: Some("/tmp/providers".into()),
        log_level: Some("debug".into()),
    };
    let text = "listen = \"unix:///a\"\nstate_dir = \"/b\"\n[log]\nlevel = \"warn\"";
    let config = Config::parse(Path::new("c.toml"), text, &overrides).unwrap();
    assert_eq!(config.socket, Path::new("/tmp/other.sock"));
    assert_eq!(config.images.root, Path::new("/tmp/state/images"));
    assert_eq!(config.providers_dir, Path::new("/tmp/providers"));
    assert_eq!(config.log.level, "debug");
}

#[test]
fn the_default_handler_is_one_of_the_handlers() {
    let config =
        parse("default_handler = \"vm\"\n[handlers.vm]\nprovider = \"q\"\nmemory = \"2Gi\"")
            .unwrap();
    assert_eq!(config.handlers[""].default_resources.memory_bytes, 2 << 30);
    assert_eq!(config.handlers.len(), 2);
}

#[test]
fn only_the_default_path_may_be_missing() {
    let error =
        Config::load(Some(Path::new("/nonexistent/c.toml")), &Overrides::default()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nonexistent/c.toml");
    assert!(std::error::Error::source(&error).is_some());
}
