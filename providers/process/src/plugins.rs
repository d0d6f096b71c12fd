//! The directory of plugins that one machine's agent gets: links to the instance's plugins, and their configuration with
//! what differs from machine to machine.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::ProcessError;

/// What stands for the placeholders in a plugin's configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'a> {
    /// `{machine}`: the machine's directory.
    pub(crate) machine: &'a Path,
    /// `{cgroup}`: where containers go.
    pub(crate) cgroup: &'a str,
}

/// Fills the directory of a machine's plugins.
pub(crate) fn lay_out(config: &Config, dir: &Path, words: Words<'_>) -> Result<(), ProcessError> {
    for plugin in find(config)? {
        let link = dir.join(plugin.file_name().unwrap_or_default());
        let settings = settings(config, &plugin, words)?;
        symlink(&plugin, &link)
            .and_then(|()| fs::write(link.with_extension("json"), settings.to_string()))
            .map_err(ProcessError::io("lay out plugins in", dir))?;
    }
    Ok(())
}

/// Whether there are plugins, and their configuration can be read.
pub(crate) fn check(config: &Config) -> Result<(), ProcessError> {
    let words = Words { machine: Path::new("/"), cgroup: "" };
    for plugin in find(config)? {
        settings(config, &plugin, words)?;
    }
    Ok(())
}

fn find(config: &Config) -> Result<Vec<PathBuf>, ProcessError> {
    let missing = |source| ProcessError::NoPlugins { path: config.plugins.clone(), source };
    let entries = fs::read_dir(&config.plugins).map_err(missing)?;
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(missing)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "so"));
    paths.sort();
    match paths.is_empty() {
        true => Err(missing(io::Error::new(io::ErrorKind::NotFound, "no file of it ends in .so"))),
        false => Ok(paths),
    }
}

fn settings(config: &Config, plugin: &Path, words: Words<'_>) -> Result<Value, ProcessError> {
    let name = plugin.file_stem().unwrap_or_default().to_string_lossy();
    let mut all = defaults(&name);
    all.extend(read(&plugin.with_extension("json"))?);
    all.extend(config.plugin_config.get(name.as_ref()).cloned().unwrap_or_default());
    let mut all = Value::Object(all);
    fill(&mut all, words);
    Ok(all)
}

/// Without these, the pods of a node would share what each has to have alone, and their containers could share nothing.
fn defaults(name: &str) -> Map<String, Value> {
    let is_oci = name == "oci" || name.ends_with("_oci") || name.ends_with("-oci");
    let own = json!({
        "run": "{machine}/run",
        "cgroup_parent": "{cgroup}",
        "pause": PAUSE,
    });
    match own {
        Value::Object(defaults) if is_oci => defaults,
        _ => Map::new(),
    }
}

fn read(path: &Path) -> Result<Map<String, Value>, ProcessError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        text => text.map_err(ProcessError::io("read", path))?,
    };
    let path = path.to_owned();
    serde_json::from_slice(&text).map_err(|source| ProcessError::PluginConfig { path, source })
}

fn fill(value: &mut Value, words: Words<'_>) {
    match value {
        Value::String(text) => {
            let machine = words.machine.to_string_lossy();
            *text = text.replace("{machine}", &machine).replace("{cgroup}", words.cgroup);
        }
        Value::Array(values) => values.iter_mut().for_each(|value| fill(value, words)),
        Value::Object(values) => values.values_mut().for_each(|value| fill(value, words)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Holds a pid namespace: a shell that waits reaps whatever is left to it.
/// The plugin lives in the agent's process, so this is the agent's program.
const PAUSE: [&str; 2] = ["/proc/self/exe", "--pause"];

#[cfg(test)]
mod tests {
    use super::*;

    fn config(files: &[(&str, &str)]) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("written");
        }
        let config = Config { plugins: dir.path().to_owned(), ..Default::default() };
        (dir, config)
    }

    #[test]
    fn each_machine_has_its_own_configuration() {
        let (_dir, mut config) = config(&[
            ("libx_oci.so", ""),
            ("libx_oci.json", r#"{"runtime": "runc", "log_file_mib": 1, "root": "{machine}/r"}"#),
            ("other.so", ""),
            ("README", ""),
        ]);
        let table = json!({ "runtime": "/bin/crun", "pause": ["{machine}/p", "x"] });
        let Value::Object(table) = table else { panic!("an object") };
        config.plugin_config.insert("libx_oci".to_owned(), table);
        let out = tempfile::tempdir().expect("a directory");
        let words = Words { machine: Path::new("/m/p-1"), cgroup: "a/b/pod" };
        lay_out(&config, out.path(), words).expect("laid out");
        let read = |name: &str| {
            let text = fs::read(out.path().join(name)).expect("read");
            serde_json::from_slice::<Value>(&text).expect("JSON")
        };
        let expected = json!({
            "run": "/m/p-1/run", "cgroup_parent": "a/b/pod", "runtime": "/bin/crun",
            "log_file_mib": 1, "root": "/m/p-1/r", "pause": ["/m/p-1/p", "x"],
        });
        assert_eq!(read("libx_oci.json"), expected);
        assert_eq!(read("other.json"), json!({}));
        assert!(out.path().join("other.so").is_symlink());
        assert!(!out.path().join("README").exists());
    }

    #[test]
    fn a_directory_without_plugins_or_with_a_wrong_file_is_refused() {
        let (_dir, none) = config(&[("README", "")]);
        assert!(matches!(check(&none), Err(ProcessError::NoPlugins { .. })));
        let (_dir, wrong) = config(&[("a.so", ""), ("a.json", "[]")]);
        assert!(matches!(check(&wrong), Err(ProcessError::PluginConfig { .. })));
        let gone = Config { plugins: "/no/such/directory".into(), ..none };
        assert!(matches!(check(&gone), Err(ProcessError::NoPlugins { .. })));
    }
}
