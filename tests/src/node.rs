//! A node on this machine: a directory with configuration and state, and the real daemon as a process over it.
//!
//! The directory outlives the daemon, so that a case can kill and start it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::{Child, Command};

use crate::client::Client;
use crate::wait::until;
use crate::world;

/// The programs under test, built before by `cargo xtask`.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Where `infranetes-cri`, `infranetes-agent` and the plugins lie.
    pub bin: PathBuf,
    /// Where the guest image lies: `vmlinux` and `initramfs`.
    pub guest: PathBuf,
}

impl Programs {
    /// From `INFRANETES_BIN` and `INFRANETES_GUEST`, which `cargo xtask` sets.
    pub fn from_env() -> Result<Programs> {
        let dir = |name: &str| {
            let value = std::env::var_os(name);
            value
                .map(PathBuf::from)
                .with_context(|| format!("{name} is not set: run this by `cargo xtask`"))
        };
        Ok(Programs { bin: dir("INFRANETES_BIN")?, guest: dir("INFRANETES_GUEST")? })
    }

    fn plugin(&self, name: &str) -> PathBuf {
        self.bin.join(format!("libinfranetes_provider_{name}.so"))
    }
}

/// The directory of a node.
pub struct Node {
    dir: tempfile::TempDir,
    programs: Programs,
    provider: String,
    state: PathBuf,
    registry: String,
}

impl Node {
    /// A node with the given handlers' provider ("qemu", "process", "fake") as the default, and a registry on loopback
    /// that is spoken to in plain HTTP.
    pub fn new(programs: &Programs, provider: &str, registry: &str) -> Result<Node> {
        let dir = world::dir("node")?;
        let node = Node {
            state: dir.path().join("state"),
            dir,
            programs: programs.clone(),
            provider: provider.to_owned(),
            registry: registry.to_owned(),
        };
        fs::create_dir_all(node.path("providers.d"))?;
        fs::create_dir_all(node.path("logs"))?;
        node.write_default_config()?;
        node.write_provider(provider, &node.plugin_config(provider)?)?;
        Ok(node)
    }

    fn write_default_config(&self) -> Result<()> {
        let Node { provider, registry, .. } = self;
        self.write_config(&format!(
            "[handlers.{provider}]\nprovider = \"{provider}\"\n\
             [images.registries.\"{registry}\"]\nurl = \"http://{registry}\"\n"
        ))
    }

    /// Boots machines of qemu from another guest image, which lies beside the usual one, from the daemon's next start on.
    pub fn boot_from(&mut self, name: &str) -> Result<()> {
        self.programs.guest.set_file_name(name);
        self.write_provider("qemu", &self.plugin_config("qemu")?)
    }

    /// Uses another place for the daemon's state from the next start on.
    pub fn move_state_to(&mut self, path: &Path) -> Result<()> {
        self.state = path.join("state");
        self.write_default_config()
    }

    /// Replaces what follows the node's own keys in its configuration; the first handler is the default.
    pub fn write_config(&self, rest: &str) -> Result<()> {
        let default = rest.split("[handlers.").nth(1).and_then(|text| text.split(']').next());
        let own = format!(
            "listen = \"unix://{}\"\nstate_dir = \"{}\"\nproviders_dir = \"{}\"\ncluster = \"test\"\nnode = \"{}\"\n\
             default_handler = \"{}\"\n",
            self.socket().display(),
            self.state.display(),
            self.path("providers.d").display(),
            self.name(),
            default.unwrap_or_default(),
        );
        Ok(fs::write(self.config(), own + rest)?)
    }

    /// Writes the file of a provider instance, with the plugin of the same name.
    pub fn write_provider(&self, name: &str, config: &str) -> Result<()> {
        let plugin = self.programs.plugin(name);
        let text = format!("plugin = \"{}\"\n\n[config]\n{config}", plugin.display());
        Ok(fs::write(self.path("providers.d").join(format!("{name}.toml")), text)?)
    }

    /// Configuration of the qemu provider with some keys before the usual ones.
    pub fn qemu_config(&self, first: &str) -> String {
        let guest = self.programs.guest.display();
        format!("{first}kernel = \"{guest}/vmlinux\"\ninitramfs = \"{guest}/initramfs\"\n")
    }

    fn plugin_config(&self, provider: &str) -> Result<String> {
        Ok(match provider {
            "qemu" => self.qemu_config(""),
            "process" => {
                let plugins = self.path("agent-plugins");
                fs::create_dir_all(&plugins)?;
                fs::copy(self.programs.plugin("oci"), plugins.join("oci.so"))?;
                format!(
                    "agent = \"{}\"\nplugins = \"{}\"\n",
                    self.programs.bin.join("infranetes-agent").display(),
                    plugins.display(),
                )
            }
            _ => String::new(),
        })
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(&self) -> Result<Daemon> {
        let mut daemon = self.spawn()?;
        let socket = self.socket();
        let answers = until(START_LIMIT, "the daemon answers", async || {
            Ok(Client::connect(&socket).await.is_ok())
        });
        let ended = tokio::select! {
            answer = answers => { answer?; None }
            ended = daemon.process.wait() => Some(ended?),
        };
        if let Some(status) = ended {
            bail!("the daemon ended with {status}:\n{}", self.log());
        }
        daemon.client = Some(Client::connect(&socket).await?);
        Ok(daemon)
    }

    /// Kills a daemon of this node and starts another over what it left.
    pub async fn spawn_after_kill(&self, daemon: &mut Daemon) -> Result<Daemon> {
        daemon.process.kill().await?;
        self.start().await
    }

    /// Starts the daemon and does not wait.
    pub fn spawn(&self) -> Result<Daemon> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("daemon.log"))?;
        let process = Command::new(self.programs.bin.join("infranetes-cri"))
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("the daemon does not start")?;
        Ok(Daemon { process, client: None })
    }

    /// All that daemons of this node logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.path("cri.sock")
    }

    /// Where pods' logs go.
    pub fn log_directory(&self) -> PathBuf {
        self.path("logs")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.path("config.toml")
    }

    /// A path in the node's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The provider behind the default handler.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The programs under test.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The node's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Files below the node's directory that have these bytes in them.
    pub fn files_with(&self, needle: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                let meta = fs::symlink_metadata(&path)?;
                if meta.is_dir() {
                    dirs.push(path);
                } else if meta.is_file() {
                    let bytes = fs::read(&path)?;
                    if bytes.windows(needle.len()).any(|window| window == needle.as_bytes()) {
                        found.push(path.display().to_string());
                    }
                }
            }
        }
        Ok(found)
    }

    /// A name for ownership tags that no other node of this machine has.
    fn name(&self) -> String {
        let name = self.dir.path().file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
    }
}

/// A running daemon; killed when dropped, which leaves its machines alone.
pub struct Daemon {
    process: Child,
    client: Option<Client>,
}

impl Daemon {
    /// The way to it.
    pub fn client(&self) -> Client {
        self.client.clone().expect("the daemon was started with `start`")
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Asks it to end.
    pub fn terminate(&self) -> Result<()> {
        let pid = self.process.id().context("the daemon has ended by itself")?;
        let asked =
            std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status()?;
        ensure!(asked.success(), "the daemon could not be asked to end");
        Ok(())
    }

    /// Asks it to end, and waits.
    pub async fn stop(mut self) -> Result<()> {
        self.terminate()?;
        let status = tokio::time::timeout(STOP_LIMIT, self.process.wait())
            .await
            .context("the daemon did not end in time")??;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }

    /// Ends it without asking, and leaves its place to another.
    pub async fn kill_now(&mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }

    /// Ends it without asking.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }

    /// Waits for it to end by itself.
    pub async fn wait(&mut self) -> Result<std::process::ExitStatus> {
        Ok(tokio::time::timeout(STOP_LIMIT, self.process.wait()).await??)
    }
}

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(40);
