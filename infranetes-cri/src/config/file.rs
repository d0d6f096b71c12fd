//! The file as it is written, and nothing more: every key optional, every quantity text.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::Overrides;
use super::document::Table;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) listen: Option<String>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) providers_dir: Option<PathBuf>,
    pub(super) cluster: Option<String>,
    pub(super) node: Option<String>,
    pub(super) default_handler: Option<String>,
    pub(super) shutdown_grace: Option<String>,
    pub(super) handlers: BTreeMap<String, Handler>,
    pub(super) images: Images,
    pub(super) cni: Cni,
    pub(super) mounts: Mounts,
    pub(super) agent: Agent,
    pub(super) streaming: Streaming,
    pub(super) plugins: Plugins,
    pub(super) limits: Limits,
    pub(super) log: Log,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Handler {
    pub(super) provider: Option<String>,
    pub(super) cpu: Option<String>,
    pub(super) memory: Option<String>,
    pub(super) overhead_cpu: Option<String>,
    pub(super) overhead_memory: Option<String>,
    pub(super) machine_type: Option<String>,
    pub(super) zones: Vec<String>,
    pub(super) spot: Option<bool>,
    pub(super) allowed_annotations: Vec<String>,
    pub(super) network: Option<String>,
    pub(super) timeouts: Timeouts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Timeouts {
    pub(super) provider_call: Option<String>,
    pub(super) boot: Option<String>,
    pub(super) enrol: Option<String>,
    pub(super) bind: Option<String>,
    pub(super) run_call: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Images {
    pub(super) root: Option<PathBuf>,
    pub(super) parallel_pulls: Option<usize>,
    pub(super) pinned: Vec<String>,
    pub(super) mirrors: Vec<Endpoint>,
    pub(super) registries: BTreeMap<String, Registry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Registry {
    pub(super) url: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) mirrors: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Endpoint {
    pub(super) url: String,
    pub(super) ca_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) send_credentials: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cni {
    pub(super) conf_dir: Option<PathBuf>,
    pub(super) bin_dirs: Option<Vec<PathBuf>>,
    pub(super) namespace_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Mounts {
    pub(super) kubelet_dir: Option<PathBuf>,
    pub(super) host_paths: Vec<PathBuf>,
    pub(super) scratch_host_paths: Vec<PathBuf>,
    pub(super) shared_host_paths: Vec<PathBuf>,
    pub(super) copy_mib: Option<usize>,
    pub(super) copy_entries: Option<usize>,
    pub(super) shared_mib: Option<usize>,
    pub(super) shared_entries: Option<usize>,
    pub(super) write_back_kib: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Agent {
    pub(super) certificate_lifetime: Option<String>,
    pub(super) stats_period: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Streaming {
    pub(super) listen: Option<String>,
    pub(super) certificate_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) idle_timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Plugins {
    pub(super) trusted_keys: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) concurrent_creates: Option<usize>,
    pub(super) message_mib: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) level: Option<String>,
    pub(super) format: Option<String>,
}

impl File {
    pub(super) fn apply(&mut self, overrides: &Overrides) {
        let Overrides { listen, state_dir, providers_dir, log_level } = overrides.clone();
        self.listen = listen.or(self.listen.take());
        self.state_dir = state_dir.or(self.state_dir.take());
        self.providers_dir = providers_dir.or(self.providers_dir.take());
        self.log.level = log_level.or(self.log.level.take());
    }
}

/// Every table of the file.
pub(super) fn tables() -> Vec<Table> {
    vec![
        Table::of::<File>(""),
        Table::of::<Handler>("handlers.*"),
        Table::of::<Timeouts>("handlers.*.timeouts"),
        Table::of::<Images>("images"),
        Table::of::<Endpoint>("images.mirrors.[]"),
        Table::of::<Registry>("images.registries.*"),
        Table::of::<Endpoint>("images.registries.*.mirrors.[]"),
        Table::of::<Cni>("cni"),
        Table::of::<Mounts>("mounts"),
        Table::of::<Agent>("agent"),
        Table::of::<Streaming>("streaming"),
        Table::of::<Plugins>("plugins"),
        Table::of::<Limits>("limits"),
        Table::of::<Log>("log"),
    ]
}
