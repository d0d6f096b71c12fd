//! The `[config]` table of an instance.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

/// What an instance is started with. Everything may be left out.
///
/// ```toml
/// [config]
/// agent = "/usr/bin/infranetes-agent"
/// plugins = "/usr/lib/infranetes/plugins"
/// max_machines = 110
///
/// [config.plugin_config.oci]        # goes before plugins/oci.json
/// runtime = "/usr/bin/crun"
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The program of the agent.
    pub agent: PathBuf,
    /// Directory with the agent's plugins: every `*.so`, the first container provider serves. Beside `NAME.so` there may
    /// be its configuration, `NAME.json`. The loader's rules apply: nobody but root may be able to change any of it.
    pub plugins: PathBuf,
    /// Configuration of the agent's plugins by name (`NAME` of `NAME.so`), key by key before what `NAME.json` says. In its
    /// text, `{machine}` stands for the machine's directory and `{cgroup}` for the cgroup below which its containers go.
    /// A plugin named `oci` or `…_oci` gets `run = "{machine}/run"`, `cgroup_parent = "{cgroup}"`, and the
    /// agent's own program as `pause`, unless they are given.
    pub plugin_config: BTreeMap<String, Map<String, Value>>,
    /// Where machines keep their files; absent: the instance's state directory. One instance per directory. At most 75
    /// bytes long (65 with the oci plugin), because sockets are below it.
    pub run_dir: Option<PathBuf>,
    /// How many machines there may be.
    pub max_machines: u32,
    /// No machine is planned with more CPUs; absent: twice those of this node, at least 4.
    pub max_cpus: Option<u32>,
    /// No machine is planned with more memory; absent: the memory of this node.
    pub max_memory_mib: Option<u64>,
    /// How much of a console is kept.
    pub console_kib: u64,
    /// Name of the cgroup below which each machine has one, in every hierarchy that can be written. Empty: none.
    pub cgroup: String,
    /// A machine has at most so many processes and threads; 0 is no limit.
    pub max_pids: u64,
    /// How long an agent may take until it listens.
    pub start_timeout_s: u64,
    /// How loud agents are on their consoles: error, warn, info or debug.
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            agent: PathBuf::from("/usr/bin/infranetes-agent"),
            plugins: PathBuf::from("/usr/lib/infranetes/plugins"),
            plugin_config: BTreeMap::new(),
            run_dir: None,
            max_machines: 110,
            max_cpus: None,
            max_memory_mib: None,
            console_kib: 1024,
            cgroup: "infranetes-process".to_owned(),
            max_pids: 16384,
            start_timeout_s: 60,
            log: "info".to_owned(),
        }
    }
}

impl Config {
    /// What is wrong with it, in a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (key, path) in [("agent", &self.agent), ("plugins", &self.plugins)] {
            if !path.is_absolute() {
                return Err(format!("`{key}` has to be an absolute path, not {}", path.display()));
            }
        }
        if self.cgroup.contains('/') || self.cgroup.starts_with('.') {
            return Err(format!("`cgroup` has to be one name, not {:?}", self.cgroup));
        }
        if !["error", "warn", "info", "debug"].contains(&self.log.as_str()) {
            return Err(format!("`log` is error, warn, info or debug, not {:?}", self.log));
        }
        for (key, value) in [
            ("max_machines", u64::from(self.max_machines)),
            ("console_kib", self.console_kib),
            ("start_timeout_s", self.start_timeout_s),
        ] {
            if value == 0 {
                return Err(format!("`{key}` has to be more than 0"));
            }
        }
        if self.console_kib > CONSOLE_KIB_MAX || self.start_timeout_s > START_TIMEOUT_MAX_S {
            return Err(format!(
                "`console_kib` is at most {CONSOLE_KIB_MAX}, `start_timeout_s` {START_TIMEOUT_MAX_S}"
            ));
        }
        Ok(())
    }
}

const CONSOLE_KIB_MAX: u64 = 1 << 20;
const START_TIMEOUT_MAX_S: u64 = 3600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_with_the_key() {
        let good = Config::default();
        good.check().expect("the default can be used");
        for (config, key) in [
            (Config { agent: "agent".into(), ..good.clone() }, "`agent`"),
            (Config { plugins: "plugins".into(), ..good.clone() }, "`plugins`"),
            (Config { cgroup: "a/b".into(), ..good.clone() }, "`cgroup`"),
            (Config { cgroup: "..".into(), ..good.clone() }, "`cgroup`"),
            (Config { log: "loud".into(), ..good.clone() }, "`log`"),
            (Config { console_kib: 0, ..good.clone() }, "`console_kib`"),
            (Config { max_machines: 0, ..good.clone() }, "`max_machines`"),
        ] {
            let why = config.check().expect_err("refused");
            assert!(why.contains(key), "{why}");
        }
    }

    #[test]
    fn a_misspelled_key_is_refused_by_its_name() {
        let error = serde_json::from_str::<Config>(r#"{"agnet": "/a"}"#).expect_err("refused");
        assert!(error.to_string().contains("agnet"), "{error}");
    }
}
