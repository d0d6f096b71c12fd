//! Debian's containerd in a directory of its own, with a bridge for its pods.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};

use crate::client::Client;
use crate::image::TestImage;
use crate::wait::until;

/// A running containerd.
pub(super) struct Containerd {
    process: Child,
    dir: tempfile::TempDir,
}

impl Containerd {
    /// Starts it and waits until it answers.
    pub(super) async fn start(registry: &str) -> Result<Containerd> {
        let pause = serde_json::json!({ "Env": ["PATH=/bin"], "Cmd": ["sleep", "1000000"] });
        TestImage::busybox()?.with_config(pause).push(registry, "pause", "1").await?;
        let dir = tempfile::Builder::new().prefix("infranetes-containerd-").tempdir()?;
        let path = dir.path().display().to_string();
        fs::create_dir_all(dir.path().join("cni"))?;
        fs::create_dir_all(dir.path().join("logs"))?;
        fs::write(dir.path().join("cni/10-bench.conflist"), NETWORK.replace("{dir}", &path))?;
        let config = CONFIG.replace("{dir}", &path).replace("{registry}", registry);
        fs::write(dir.path().join("config.toml"), config)?;
        let log = fs::File::create(dir.path().join("log"))?;
        let process = Command::new("containerd")
            .arg("--config")
            .arg(dir.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("containerd does not start; install Debian's package of that name")?;
        let containerd = Containerd { process, dir };
        let started = until(START_LIMIT, "containerd answers", async || {
            Ok(containerd.client().await.is_ok())
        });
        started.await.with_context(|| containerd.log())?;
        Ok(containerd)
    }

    pub(super) async fn client(&self) -> Result<Client> {
        Client::connect(&self.dir.path().join("sock")).await
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// Its directory, which all that it starts has on its command line.
    pub(super) fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(super) fn pid(&self) -> Result<u32> {
        self.process.id().context("containerd ended by itself")
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it; its pods have been removed.
    pub(super) async fn stop(mut self) -> Result<()> {
        let pid = self.pid()?.to_string();
        Command::new("kill").args(["-TERM", &pid]).status().await?;
        tokio::time::timeout(START_LIMIT, self.process.wait()).await??;
        Ok(())
    }
}

/// Lowering the OOM score needs a capability that a test may lack.
const CONFIG: &str = r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{dir}/sock"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "{registry}/pause:1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{dir}/cni"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."{registry}"]
endpoint = ["http://{registry}"]
"#;
const NETWORK: &str = r#"{ "cniVersion": "0.4.0", "name": "bench", "plugins": [{
  "type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": false,
  "ipam": { "type": "host-local", "dataDir": "{dir}/addresses", "ranges": [[{ "subnet": "10.88.0.0/16" }]] }
}] }
"#;
const START_LIMIT: Duration = Duration::from_secs(30);
