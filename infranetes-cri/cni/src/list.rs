//! The node's CNI configuration: a network with its chain of plugins.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::CniError;

/// A network and its plugins, in the order of ADD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkList {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) disable_check: bool,
    /// What was written down before there was GC was not collected.
    #[serde(default)]
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin's part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Plugin(pub(crate) Map<String, Value>);

impl Plugin {
    /// The program's name; a list that was parsed has one for every plugin.
    pub(crate) fn kind(&self) -> &str {
        self.0.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether it declares a capability.
    pub(crate) fn declares(&self, capability: &str) -> bool {
        let capabilities = self.0.get("capabilities").and_then(Value::as_object);
        capabilities.and_then(|all| all.get(capability)).and_then(Value::as_bool).unwrap_or(false)
    }
}

impl NetworkList {
    /// The first configuration of a directory, by name.
    pub(crate) fn first(dir: &Path) -> Result<Self, CniError> {
        let missing = || CniError::NoConfiguration(dir.to_owned());
        let mut files: Vec<PathBuf> = match fs::read_dir(dir) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(CniError::io("read", dir)(error)),
        };
        files.retain(|path| is_configuration(path));
        files.sort();
        Self::read(files.first().ok_or_else(missing)?)
    }

    fn read(path: &Path) -> Result<Self, CniError> {
        let unusable = |problem| CniError::Configuration { path: path.to_owned(), problem };
        let size = fs::metadata(path).map_err(CniError::io("read", path))?.len();
        if size > FILE_MAX {
            return Err(unusable(format!("it has more than {FILE_MAX} bytes")));
        }
        let text = fs::read(path).map_err(CniError::io("read", path))?;
        let value = serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        Self::parse(value).map_err(unusable)
    }

    /// A list, or a single plugin's configuration, which is a list of one.
    fn parse(value: Value) -> Result<Self, String> {
        let Value::Object(mut object) = value else { return Err("it is no object".to_owned()) };
        let name = text(&object, "name")?;
        let version = version(&object)?;
        let plugins = match object.remove("plugins") {
            None => vec![Plugin(object.clone())],
            Some(Value::Array(plugins)) => {
                plugins.into_iter().map(plugin).collect::<Result<_, _>>()?
            }
            Some(_) => return Err("its \"plugins\" is no list".to_owned()),
        };
        if plugins.is_empty() || plugins.len() > PLUGINS_MAX {
            return Err(format!("it has {} plugins", plugins.len()));
        }
        if let Some(plugin) = plugins.iter().find(|plugin| !is_program(plugin.kind())) {
            return Err(format!("{:?} is no plugin's \"type\"", plugin.kind()));
        }
        let (disable_check, disable_gc) =
            (flag(&object, "disableCheck"), flag(&object, "disableGC"));
        Ok(Self { name, version, disable_check, disable_gc, plugins })
    }

    /// Whether plugins of this version know CHECK, and it is wanted.
    pub(crate) fn can_check(&self) -> bool {
        !self.disable_check && !self.version.starts_with("0.3.")
    }

    /// Whether plugins of this version know STATUS.
    pub(crate) fn can_status(&self) -> bool {
        self.version == "1.1.0"
    }

    /// Whether plugins of this version know GC, and it is wanted.
    pub(crate) fn can_gc(&self) -> bool {
        !self.disable_gc && self.can_status()
    }

    /// Whether a plugin of the chain declares a capability.
    pub(crate) fn declares(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.declares(capability))
    }

    /// What a plugin reads: its own configuration, the network's, the result so far, and what it asked for.
    pub(crate) fn stdin_of(
        &self,
        plugin: &Plugin,
        previous: Option<&Value>,
        runtime: &Map<String, Value>,
    ) -> Value {
        let mut config = plugin.0.clone();
        config.insert("name".to_owned(), self.name.clone().into());
        config.insert("cniVersion".to_owned(), self.version.clone().into());
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        let declared: Map<String, Value> = runtime
            .iter()
            .filter(|(capability, _)| plugin.declares(capability))
            .map(|(capability, value)| (capability.clone(), value.clone()))
            .collect();
        if !declared.is_empty() {
            config.insert("runtimeConfig".to_owned(), declared.into());
        }
        config.into()
    }
}

fn is_configuration(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let ending = path.extension().and_then(|ending| ending.to_str());
    !hidden && matches!(ending, Some("conflist" | "conf" | "json"))
}

fn plugin(value: Value) -> Result<Plugin, String> {
    match value {
        Value::Object(object) => Ok(Plugin(object)),
        _ => Err("one of its \"plugins\" is no object".to_owned()),
    }
}

/// The newest version that both sides know.
fn version(object: &Map<String, Value>) -> Result<String, String> {
    let many = object.get("cniVersions").and_then(Value::as_array);
    let many = many.into_iter().flatten().filter_map(Value::as_str);
    let said: Vec<&str> =
        object.get("cniVersion").and_then(Value::as_str).into_iter().chain(many).collect();
    let known = VERSIONS.iter().rev().find(|known| said.contains(known));
    match known {
        Some(known) => Ok((*known).to_owned()),
        None => Err(format!(
            "its \"cniVersion\" is {:?}, and versions {} are known",
            said.join(", "),
            VERSIONS.join(", ")
        )),
    }
}

fn flag(object: &Map<String, Value>, key: &str) -> bool {
    match object.get(key) {
        Some(Value::Bool(flag)) => *flag,
        Some(Value::String(text)) => text == "true",
        _ => false,
    }
}

fn text(object: &Map<String, Value>, key: &str) -> Result<String, String> {
    let value = object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    value.map(str::to_owned).ok_or_else(|| format!("it has no {key:?}"))
}

/// A file name, so that a configuration cannot name programs elsewhere.
fn is_program(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != ".."
}

/// Oldest first.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const FILE_MAX: u64 = 1 << 20;
const PLUGINS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(value: Value) -> Result<NetworkList, String> {
        NetworkList::parse(value)
    }

    #[test]
    fn the_first_file_by_name_counts_whatever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(NetworkList::first(dir.path()), Err(CniError::NoConfiguration(_))));
        let gone = dir.path().join("gone");
        assert!(matches!(NetworkList::first(&gone), Err(CniError::NoConfiguration(_))));
        let conf = |name: &str| json!({"cniVersion": "1.0.0", "name": name, "type": "bridge"});
        for (file, network) in [
            ("20-b.conf", "b"),
            ("10-a.conflist", "a"),
            (".00-x.conf", "x"),
            ("00-y.conf.bak", "y"),
        ] {
            fs::write(dir.path().join(file), conf(network).to_string()).unwrap();
        }
        assert_eq!(NetworkList::first(dir.path()).unwrap().name, "a");
        fs::write(dir.path().join("05-broken.conf"), "{").unwrap();
        let error = NetworkList::first(dir.path()).unwrap_err().to_string();
        assert!(error.contains("05-broken.conf cannot be used"), "{error}");
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_a_reason() {
        let plugins = json!([{"type": "a"}]);
        for (value, part) in [
            (json!([]), "no object"),
            (json!({"cniVersion": "1.0.0", "plugins": plugins}), "no \"name\""),
            (json!({"name": "n", "plugins": plugins}), "\"cniVersion\" is \"\""),
            (json!({"name": "n", "cniVersion": "0.2.0", "plugins": plugins}), "0.2.0"),
            (json!({"name": "n", "cniVersion": "1.0.0", "plugins": []}), "0 plugins"),
            (json!({"name": "n", "cniVersion": "1.0.0", "plugins": [3]}), "no object"),
            (json!({"name": "n", "cniVersion": "1.0.0", "plugins": {}}), "no list"),
            (json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{}]}), "\"type\""),
            (json!({"name": "n", "cniVersion": "1.0.0", "type": "../../bin/sh"}), "\"type\""),
        ] {
            let problem = list(value.clone()).unwrap_err();
            assert!(problem.contains(part), "{value}: {problem}");
        }
    }

    #[test]
    fn the_newest_version_that_is_known_is_spoken() {
        for (said, versions, spoken) in [
            ("0.3.1", json!([]), "0.3.1"),
            ("0.4.0", json!(["0.4.0", "1.0.0", "9.0.0"]), "1.0.0"),
            ("1.1.0", json!(null), "1.1.0"),
        ] {
            let value =
                json!({"name": "n", "cniVersion": said, "cniVersions": versions, "type": "a"});
            assert_eq!(list(value).unwrap().version, spoken);
        }
    }

    #[test]
    fn a_plugin_reads_what_it_declared_and_no_more() {
        let value = json!({"name": "n", "cniVersion": "1.0.0", "plugins": [
            {"type": "bridge", "mtu": 1400},
            {"type": "portmap", "capabilities": {"portMappings": true, "dns": false}},
        ]});
        let list = list(value).unwrap();
        let runtime = json!({"portMappings": [], "dns": {}, "bandwidth": {}});
        let Value::Object(runtime) = runtime else { panic!("no object") };
        let first = list.stdin_of(&list.plugins[0], None, &runtime);
        assert_eq!(
            first,
            json!({"type": "bridge", "mtu": 1400, "name": "n", "cniVersion": "1.0.0"})
        );
        let second = list.stdin_of(&list.plugins[1], Some(&json!({"ips": []})), &runtime);
        assert_eq!(second["runtimeConfig"], json!({"portMappings": []}));
        assert_eq!(second["prevResult"], json!({"ips": []}));
        assert!(list.declares("portMappings") && !list.declares("dns"));
    }
}
