//! Provider instances: one TOML file each, whose name without the ending is the instance's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use infranetes_loader::isolation::Isolation;
use serde::Deserialize;

use super::document::{Document, Table};
use super::error::{ConfigError, Invalid};
use super::resolve::duration;

/// A provider instance, as its file has it.
#[derive(Clone, PartialEq)]
pub struct ProviderInstance {
    /// Its name.
    pub name: String,
    /// The plugin's file.
    pub plugin: PathBuf,
    /// The digest that the plugin's file must have: 64 lower-case hexadecimal digits.
    pub sha256: Option<String>,
    /// Threads of the plugin's runtime.
    pub worker_threads: u32,
    /// Which process the plugin runs in.
    pub isolation: Isolation,
    /// How long the threads of a plugin in a process of its own may answer nothing before that process is killed and started again.
    pub hang_timeout: Duration,
    /// Files of the secrets that the plugin may ask for, by the names that it asks by.
    pub secrets: BTreeMap<String, PathBuf>,
    /// What the plugin is told: its `[config]` table. May hold secrets, so `Debug` leaves it out.
    pub config: serde_json::Value,
    /// What `plugin check` needs to know: its `[check]` table. Means nothing to the daemon.
    pub check: serde_json::Value,
}

impl fmt::Debug for ProviderInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderInstance")
            .field("name", &self.name)
            .field("plugin", &self.plugin)
            .finish_non_exhaustive()
    }
}

/// Reads every `*.toml` of a directory. A file that cannot be used takes its own instance's place with the reason, and
/// nobody else's. A directory that does not exist has no instances.
pub fn read_instances(
    directory: &Path,
) -> Result<BTreeMap<String, Result<ProviderInstance, ConfigError>>, ConfigError> {
    let unreadable = |source| ConfigError::Read { file: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut instances = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if let Some(name) = stem.filter(|_| path.extension().is_some_and(|ending| ending == "toml"))
        {
            instances.insert(name.to_owned(), read_named(name, &path));
        }
    }
    Ok(instances)
}

/// Reads one file, wherever it lies.
pub fn read_instance(path: &Path) -> Result<ProviderInstance, ConfigError> {
    read_named(path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default(), path)
}

fn read_named(name: &str, path: &Path) -> Result<ProviderInstance, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { file: path.to_owned(), source })?;
    let document = Document::parse(path, &text)?;
    document.refuse_unknown_keys(&[Table::of::<File>("")])?;
    let file: File = document.read()?;
    resolve(name, file).map_err(|invalid| document.invalid(invalid))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    plugin: PathBuf,
    sha256: Option<String>,
    worker_threads: Option<u32>,
    isolation: Option<String>,
    hang_timeout: Option<String>,
    #[serde(default)]
    secrets: BTreeMap<String, PathBuf>,
    #[serde(default)]
    config: toml::Table,
    #[serde(default)]
    check: toml::Table,
}

fn resolve(name: &str, file: File) -> Result<ProviderInstance, Invalid> {
    if !is_instance_name(name) {
        let problem = format!(
            "the file's name makes {name:?} the instance's; it has to match [a-z0-9][a-z0-9_-]{{0,62}}"
        );
        return Err(Invalid::new(&["plugin"], problem));
    }
    if !file.plugin.is_absolute() {
        return Err(Invalid::new(&["plugin"], "has to be an absolute path"));
    }
    let worker_threads = file.worker_threads.unwrap_or(1);
    if !(1..=64).contains(&worker_threads) {
        return Err(Invalid::new(&["worker_threads"], "is not between 1 and 64"));
    }
    let isolation = isolation(file.isolation.as_deref())?;
    Ok(ProviderInstance {
        name: name.to_owned(),
        plugin: file.plugin,
        sha256: file.sha256.map(sha256).transpose()?,
        worker_threads,
        isolation,
        hang_timeout: hang_timeout(file.hang_timeout, isolation)?,
        secrets: secrets(file.secrets)?,
        config: json_object(file.config, &["config".to_owned()])?,
        check: json_object(file.check, &["check".to_owned()])?,
    })
}

fn secrets(files: BTreeMap<String, PathBuf>) -> Result<BTreeMap<String, PathBuf>, Invalid> {
    match files.iter().find(|(_, path)| !path.is_absolute()) {
        Some((name, _)) => Err(Invalid::new(
            &["secrets", name],
            "has to be the absolute path of the secret's file",
        )),
        None => Ok(files),
    }
}

fn is_instance_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn isolation(word: Option<&str>) -> Result<Isolation, Invalid> {
    match word {
        None | Some("none") => Ok(Isolation::None),
        Some("process") => Ok(Isolation::Process),
        Some(_) => Err(Invalid::new(&["isolation"], "has to be \"none\" or \"process\"")),
    }
}

/// Nobody can kill a thread of the daemon's own process: there the key would promise what is not done.
fn hang_timeout(text: Option<String>, isolation: Isolation) -> Result<Duration, Invalid> {
    if text.is_some() && isolation == Isolation::None {
        let problem =
            "means something with isolation = \"process\" alone: add that, or remove this";
        return Err(Invalid::new(&["hang_timeout"], problem));
    }
    let allowed = Duration::from_secs(1)..=Duration::from_secs(3600);
    duration(&["hang_timeout"], text, HANG_TIMEOUT, allowed)
}

fn sha256(text: String) -> Result<String, Invalid> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(Invalid::new(&["sha256"], "has to be 64 hexadecimal digits, as sha256sum prints them"))
    }
}

/// TOML knows two things that JSON does not: dates become text, numbers that are none are refused.
fn json(value: toml::Value, path: &[String]) -> Result<serde_json::Value, Invalid> {
    use serde_json::Value;
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => match serde_json::Number::from_f64(number) {
            Some(number) => Value::Number(number),
            None => {
                let problem = "a plugin's configuration cannot hold an infinite number or nan";
                return Err(Invalid { key: path.to_vec(), problem: problem.to_owned() });
            }
        },
        toml::Value::Boolean(yes) => Value::Bool(yes),
        toml::Value::Datetime(date) => Value::String(date.to_string()),
        toml::Value::Array(elements) => {
            let elements = elements.into_iter().map(|element| json(element, path));
            Value::Array(elements.collect::<Result<_, _>>()?)
        }
        toml::Value::Table(table) => json_object(table, path)?,
    })
}

fn json_object(table: toml::Table, path: &[String]) -> Result<serde_json::Value, Invalid> {
    let entry = |(key, value): (String, toml::Value)| {
        let mut path = path.to_vec();
        path.push(key.clone());
        Ok((key, json(value, &path)?))
    };
    Ok(serde_json::Value::Object(table.into_iter().map(entry).collect::<Result<_, _>>()?))
}

const HANG_TIMEOUT: &str = "60s";

/// The keys of an instance's file, for the test that keeps the documentation complete.
#[cfg(test)]
pub(super) fn table() -> Table {
    Table::of::<File>("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<ProviderInstance, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(format!("{name}.toml")), text).unwrap();
        let shown = directory.path().display().to_string();
        let mut all = read_instances(directory.path()).unwrap();
        all.remove(name).unwrap().map_err(|e| e.to_string().replace(&shown, ""))
    }

    #[test]
    fn an_instance_is_its_file() {
        let text = format!(
            "plugin = \"/usr/lib/p.so\"\nsha256 = \"{}\"\nworker_threads = 2\nisolation = \"process\"\n\
             hang_timeout = \"5m\"\n[secrets]\ntoken = \"/t\"\n[config]\nzone = \"a\"\nsince = 2026-01-02\nn = 3\nlist = [1.5, true]\n[config.deep]\nx = 1\n",
            "0Af1".repeat(16)
        );
        let instance = read("cloud-1", &text).unwrap();
        assert_eq!(instance.name, "cloud-1");
        assert_eq!(instance.sha256.as_deref().unwrap(), "0af1".repeat(16));
        assert_eq!(instance.worker_threads, 2);
        assert_eq!(instance.isolation, Isolation::Process);
        assert_eq!(instance.hang_timeout, Duration::from_secs(300));
        assert_eq!(instance.secrets, [("token".to_owned(), PathBuf::from("/t"))].into());
        assert_eq!(
            instance.config.to_string(),
            r#"{"deep":{"x":1},"list":[1.5,true],"n":3,"since":"2026-01-02","zone":"a"}"#
        );
        assert!(!format!("{instance:?}").contains("zone"), "the configuration may hold secrets");
        let usual = read("cloud-1", "plugin = \"/p\"").unwrap();
        assert_eq!(usual.hang_timeout, Duration::from_secs(60));
    }

    #[test]
    fn a_wrong_instance_file_is_refused_with_line_and_reason() {
        let cases = [
            ("x", "", "/x.toml:1: missing field `plugin`"),
            ("x", "plugin = \"p.so\"", "/x.toml:1: plugin: has to be an absolute path"),
            (
                "x",
                "plugin = \"/p\"\n\nplugn = 1",
                "/x.toml:3: unknown key \"plugn\" in the top level; did you mean \"plugin\"?",
            ),
            (
                "x",
                "plugin = \"/p\"\nsha256 = \"12\"",
                "/x.toml:2: sha256: has to be 64 hexadecimal digits, as sha256sum prints them",
            ),
            (
                "x",
                "plugin = \"/p\"\nisolation = \"vm\"",
                "/x.toml:2: isolation: has to be \"none\" or \"process\"",
            ),
            (
                "x",
                "plugin = \"/p\"\nworker_threads = 0",
                "/x.toml:2: worker_threads: is not between 1 and 64",
            ),
            (
                "x",
                "plugin = \"/p\"\nisolation = \"process\"\nhang_timeout = \"999ms\"",
                "/x.toml:3: hang_timeout: \"999ms\" is not between 1s and 3600s",
            ),
            (
                "x",
                "plugin = \"/p\"\nisolation = \"process\"\nhang_timeout = \"2h\"",
                "/x.toml:3: hang_timeout: \"2h\" is not between 1s and 3600s",
            ),
            (
                "x",
                "plugin = \"/p\"\nisolation = \"process\"\nhang_timeout = \"never\"",
                "/x.toml:3: hang_timeout: \"never\" is no time; write it like \"500ms\", \"90s\", \"5m\" or \"24h\"",
            ),
            (
                "x",
                "plugin = \"/p\"\nisolation = \"process\"\nhang_timeout = 60",
                "/x.toml:3: invalid type: integer `60`, expected a string",
            ),
            (
                "x",
                "plugin = \"/p\"\n\nhang_timeout = \"90s\"",
                "/x.toml:3: hang_timeout: means something with isolation = \"process\" alone",
            ),
            (
                "x",
                "plugin = \"/p\"\nhang_timout = \"90s\"",
                "/x.toml:2: unknown key \"hang_timout\" in the top level; did you mean \"hang_timeout\"?",
            ),
            (
                "x",
                "plugin = \"/p\"\n[config]\na = [inf]",
                "/x.toml:3: config.a: a plugin's configuration cannot hold an infinite number or nan",
            ),
            (
                "x",
                "plugin = \"/p\"\n[secrets]\nk = \"s3cret\"",
                "/x.toml:3: secrets.k: has to be the absolute path of the secret's file",
            ),
            ("x", "plugin = ", "/x.toml:1: "),
            ("Big Cloud", "plugin = \"/p\"", "the instance's; it has to match"),
        ];
        for (name, text, expected) in cases {
            let error = read(name, text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn other_files_and_a_missing_directory_are_no_instances() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("README.md"), "no").unwrap();
        assert!(read_instances(directory.path()).unwrap().is_empty());
        assert!(read_instances(&directory.path().join("missing")).unwrap().is_empty());
    }
}
