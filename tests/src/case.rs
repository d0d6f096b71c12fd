//! What every case on the real daemon needs: a registry with an image, a node, a running daemon, and the promise that nothing is
//! left behind.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result};
use infranetes_cri::api::v1 as cri;
use tokio::sync::{Mutex, MutexGuard};

use crate::client::{Client, Pod};
use crate::footprint::{Footprint, nothing_left};
use crate::image::TestImage;
use crate::node::{Daemon, Node, Programs};
use crate::registry::Registry;

/// A world for one case.
pub struct Case {
    /// The registry, with [`Case::image`] in it.
    pub registry: Registry,
    /// The node's directory.
    pub node: Node,
    /// The daemon.
    pub daemon: Daemon,
    /// The image: busybox.
    pub image: String,
}

/// Runs a case in a world of its own, removes what the case left running, and fails if anything stays on the machine.
/// One at a time within a process, because what is on the machine is counted.
pub async fn run(provider: &str, case: impl AsyncFnOnce(&mut Case) -> Result<()>) -> Result<()> {
    let _alone = alone().await;
    let before = Footprint::take(&[]);
    {
        let mut world = Case::new(provider).await?;
        let outcome = case(&mut world).await;
        let outcome = outcome.with_context(|| format!("the daemon's log:\n{}", world.node.log()));
        let removed = world.remove_all().await.context("the pods could not be removed");
        outcome.and(removed)?;
        world.daemon.stop().await?;
    }
    nothing_left(&before, &[]).await
}

/// Makes one test per provider of each of these cases, which are functions of the file.
#[macro_export]
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        $crate::cases!($crate::case::run; process: [$($case),*]);
        $crate::cases!($crate::case::run; qemu: [$($case),*]);
    };
}

/// Makes a test of each of these cases, which are functions of the file, in a module of the provider's name. The first word runs
/// one: a function of that name and the case.
#[macro_export]
macro_rules! cases {
    ($run:path; $provider:ident: [$($case:ident),* $(,)?]) => {
        mod $provider {
            $(#[tokio::test]
            async fn $case() -> anyhow::Result<()> {
                $run(stringify!($provider), super::$case).await
            })*
        }
    };
}

/// Only one holder at a time in this process.
pub async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

impl Case {
    async fn new(provider: &str) -> Result<Case> {
        let registry = Registry::start().await?;
        TestImage::busybox()?.push(&registry.host(), "busybox", "1").await?;
        let image = format!("{}/busybox:1", registry.host());
        let node = Node::new(&Programs::from_env()?, provider, &registry.host())?;
        let daemon = node.start().await?;
        Ok(Case { registry, node, daemon, image })
    }

    /// The way to the daemon.
    pub fn client(&self) -> Client {
        self.daemon.client()
    }

    /// A pod of this node.
    pub fn pod(&self, name: &str) -> Pod {
        Pod {
            name: name.to_owned(),
            handler: String::new(),
            log_directory: self.node.log_directory().join(name).display().to_string(),
        }
    }

    /// Kills the daemon and starts another over the same state.
    pub async fn restart_hard(&mut self) -> Result<()> {
        let successor = self.node.spawn_after_kill(&mut self.daemon).await?;
        self.daemon = successor;
        Ok(())
    }

    /// Lets the daemon speak plain HTTP to these registries; restarts it.
    pub async fn allow_plain_http(&mut self, hosts: &[&str]) -> Result<()> {
        let provider = self.node.provider();
        let mut config = format!("[handlers.{provider}]\nprovider = \"{provider}\"\n");
        for host in hosts {
            config += &format!("[images.registries.\"{host}\"]\nurl = \"http://{host}\"\n");
        }
        self.node.write_config(&config)?;
        self.restart_hard().await
    }

    /// Adds tables to the daemon's usual configuration; restarts the daemon.
    pub async fn configure(&mut self, tables: &str) -> Result<()> {
        let (provider, host) = (self.node.provider(), self.registry.host());
        self.node.write_config(&format!(
            "[handlers.{provider}]\nprovider = \"{provider}\"\n\
             [images.registries.\"{host}\"]\nurl = \"http://{host}\"\n{tables}"
        ))?;
        self.restart_hard().await
    }

    /// Replaces the configuration of a provider instance; restarts the daemon.
    pub async fn reconfigure_provider(&mut self, name: &str, config: &str) -> Result<()> {
        self.node.write_provider(name, config)?;
        self.restart_hard().await
    }

    /// Moves the daemon's state to a file system of a few MiB; restarts the daemon.
    pub async fn put_state_on_a_small_disk(&mut self) -> Result<SmallDisk> {
        let disk = SmallDisk::mount(&self.node.path("small"))?;
        self.node.move_state_to(&disk.path)?;
        self.restart_hard().await?;
        Ok(disk)
    }

    /// An empty directory of the node, as a kubelet makes it for what is secret.
    pub fn directory(&self, name: &str) -> Result<std::path::PathBuf> {
        let path = self.node.path(name);
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
        Ok(path)
    }

    /// A file of the guest image.
    pub fn guest(&self, name: &str) -> std::path::PathBuf {
        self.node.programs().guest.join(name)
    }

    /// What a container wrote, without CRI's frame: (stream, tag, text) of each line.
    pub fn log_lines(&self, pod: &Pod, name: &str) -> Result<Vec<(String, String, String)>> {
        let path = std::path::Path::new(&pod.log_directory).join(format!("{name}.log"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.lines().map(parse_log_line).collect()
    }

    /// Waits until a container's log has a line with this text.
    pub async fn wait_log(&self, pod: &Pod, name: &str, needle: &str) -> Result<()> {
        let what = format!("the log of {name} says {needle:?}");
        crate::wait::until(LOG_LIMIT, &what, async || {
            let lines = self.log_lines(pod, name).unwrap_or_default();
            Ok(lines.iter().any(|(_, _, text)| text.contains(needle)))
        })
        .await
    }

    async fn remove_all(&mut self) -> Result<()> {
        let mut client = self.client();
        let request = cri::ListPodSandboxRequest::default();
        for sandbox in client.runtime.list_pod_sandbox(request).await?.into_inner().items {
            client.remove_pod(&sandbox.id).await?;
        }
        Ok(())
    }
}

/// A file system of a few MiB, unmounted when dropped.
pub struct SmallDisk {
    path: std::path::PathBuf,
}

impl SmallDisk {
    fn mount(path: &std::path::Path) -> Result<SmallDisk> {
        std::fs::create_dir_all(path)?;
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m,mode=700", "infranetes-small"])
            .arg(path)
            .status()?;
        anyhow::ensure!(mount.success(), "tmpfs could not be mounted on {}", path.display());
        Ok(SmallDisk { path: path.to_owned() })
    }

    /// Uses up all room; the file that did it.
    pub fn fill(&self) -> Result<std::path::PathBuf> {
        use std::io::Write;
        let path = self.path.join("filler");
        let mut file = std::fs::File::create(&path)?;
        for size in [64 * 1024, 4096, 1] {
            while file.write_all(&vec![0_u8; size]).is_ok() {}
        }
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still uses it keeps it; the count of what is left tells.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn parse_log_line(line: &str) -> Result<(String, String, String)> {
    let mut parts = line.splitn(4, ' ');
    let time = parts.next().context("a line without a time")?;
    anyhow::ensure!(time.ends_with('Z') && time.len() >= 20, "no RFC 3339 time: {line:?}");
    let stream = parts.next().context("a line without a stream")?.to_owned();
    let tag = parts.next().context("a line without a tag")?.to_owned();
    Ok((stream, tag, parts.next().context("a line without a text")?.to_owned()))
}

/// How long output may take from the container to the node's file.
const LOG_LIMIT: Duration = Duration::from_secs(30);
