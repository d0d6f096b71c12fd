//! Configuration of an instance.

use std::path::PathBuf;

use serde::Deserialize;

/// The `[config]` table of an instance. Every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where layers, images and writable layers are: an absolute path on a file system that keeps extended attributes.
    /// Default: the instance's state directory.
    pub root: Option<PathBuf>,
    /// Where the state of running containers is; it means nothing after a reboot. At most 90 bytes long.
    pub run: PathBuf,
    /// The OCI runtime: a path, or a name that is looked up in `PATH`. `crun` and `runc` work.
    pub runtime: PathBuf,
    /// The cgroup below which each container gets its own, from the root of the hierarchy on.
    pub cgroup_parent: String,
    /// Output of a container that nobody acknowledged: so much of it is kept in memory, in KiB …
    pub log_memory_kib: u64,
    /// … and so much more in files, in MiB; then the container's writes wait.
    pub log_file_mib: u64,
    /// The most that a layer may unpack to, in MiB.
    pub layer_max_mib: u64,
    /// The program, with its arguments, that holds the pid namespace of pods whose containers share one: it has to reap
    /// and to wait. Empty: such pods are unsupported.
    pub pause: Vec<String>,
    /// How long a container may take from `start` to its first instruction, in seconds.
    pub start_timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: None,
            run: PathBuf::from("/run/infranetes/oci"),
            runtime: PathBuf::from("crun"),
            cgroup_parent: "infranetes".to_owned(),
            // Enough for what a busy node takes to acknowledge a flood, so that files are for times without a node.
            log_memory_kib: 4096,
            log_file_mib: 16,
            layer_max_mib: 64 << 10,
            pause: Vec::new(),
            start_timeout_s: 120,
        }
    }
}
