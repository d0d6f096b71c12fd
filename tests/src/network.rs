//! A network of its own for a test of pod networks: bridges, firewall rules and ports never touch this machine's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::case::{self, Case};
use crate::client::{Client, Pod, container};
use crate::wait::until;

/// Moves this thread into a new network namespace with loopback alone. What it starts from here on is in it, too: processes,
/// sockets, threads. It ends with the last of them.
pub fn enter_own_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace takes root")?;
    run("ip", &["link", "set", "lo", "up"]).map(drop)
}

/// Runs a case on a node whose handler uses CNI, in a network of its own.
pub async fn on_a_cni_node(
    provider: &str,
    case: impl AsyncFnOnce(&mut Case, &Cni) -> Result<()>,
) -> Result<()> {
    enter_own_namespace()?;
    case::run(provider, async |world| {
        let cni = Cni::new(&world.node.path(""))?;
        let registry = world.registry.host();
        world.node.write_config(&format!(
            "[handlers.{provider}]\nprovider = \"{provider}\"\nnetwork = \"cni\"\n{}\
             [images.registries.\"{registry}\"]\nurl = \"http://{registry}\"\n",
            cni.config()
        ))?;
        world.restart_hard().await?;
        case(world, &cni).await?;
        remove_pods(&mut world.client()).await?;
        let left = cni.left()?;
        ensure!(left.is_empty(), "left behind: {left:#?}");
        Ok(())
    })
    .await
}

/// Removes all pods of the node.
pub async fn remove_pods(client: &mut Client) -> Result<()> {
    let request = cri::ListPodSandboxRequest::default();
    for sandbox in client.runtime.list_pod_sandbox(request).await?.into_inner().items {
        client.remove_pod(&sandbox.id).await?;
    }
    Ok(())
}

/// The node's CNI: configurations, plugins, and what they remember, below one directory.
pub struct Cni {
    dir: PathBuf,
}

impl Cni {
    /// With Debian's plugins, and no configuration yet.
    pub fn new(dir: &Path) -> Result<Cni> {
        let cni = Cni { dir: dir.join("cni") };
        fs::create_dir_all(cni.conf_dir())?;
        fs::create_dir_all(cni.dir.join("bin"))?;
        ensure!(
            Path::new(PLUGINS).join("bridge").exists(),
            "there are no CNI plugins in {PLUGINS}: cargo xtask setup"
        );
        Ok(cni)
    }

    /// The daemon's keys.
    pub fn config(&self) -> String {
        format!(
            "[cni]\nconf_dir = \"{}\"\nbin_dirs = [\"{}\", \"{PLUGINS}\"]\nnamespace_dir = \"{}\"\n",
            self.conf_dir().display(),
            self.dir.join("bin").display(),
            self.namespaces().display(),
        )
    }

    /// A bridge with addresses of both versions that the node masquerades, and ports of the node by portmap.
    pub fn write_bridge(&self) -> Result<()> {
        self.write_chain(&[self.bridge(), portmap()])
    }

    /// The bridge's part of a chain.
    pub fn bridge(&self) -> Value {
        json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1420,
            "ipam": {
                "type": "host-local",
                "dataDir": self.leases(),
                "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
            "dns": {"nameservers": ["10.88.0.1"], "search": ["of.the.network"]},
        })
    }

    /// The first configuration, out of these plugins.
    pub fn write_chain(&self, plugins: &[Value]) -> Result<()> {
        self.write_list("1.0.0", plugins)
    }

    /// The first configuration, of a version of the specification.
    pub fn write_list(&self, version: &str, plugins: &[Value]) -> Result<()> {
        let list = json!({"cniVersion": version, "name": "pods", "plugins": plugins});
        Ok(fs::write(self.conf_dir().join("10-pods.conflist"), list.to_string())?)
    }

    /// Takes the configuration away.
    pub fn remove_configuration(&self) -> Result<()> {
        Ok(fs::remove_file(self.conf_dir().join("10-pods.conflist"))?)
    }

    /// A plugin out of a shell script.
    pub fn write_plugin(&self, name: &str, script: &str) -> Result<()> {
        let path = self.dir.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
    }

    /// Takes a plugin of ours away.
    pub fn remove_plugin(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.dir.join("bin").join(name))?)
    }

    /// A file that scripts may write.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What is left of pods: addresses that are taken, namespaces, interfaces of the node, rules of its firewall.
    pub fn left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for dir in [self.leases().join("pods"), self.namespaces()] {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name != "lock" && !name.starts_with("last_reserved_ip") {
                    left.push(entry.path().display().to_string());
                }
            }
        }
        let links = run("ip", &["-o", "link", "show", "type", "veth"])?;
        left.extend(links.lines().map(str::to_owned));
        let rules = run("iptables-save", &["-t", "nat"])?;
        left.extend(rules.lines().filter(|rule| rule.contains("-j DNAT")).map(str::to_owned));
        Ok(left)
    }

    /// Where namespaces are pinned.
    pub fn namespaces(&self) -> PathBuf {
        self.dir.join("netns")
    }

    fn conf_dir(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    fn leases(&self) -> PathBuf {
        self.dir.join("leases")
    }
}

/// The plugin that makes ports of the node lead to pods.
pub fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true})
}

/// The pod's addresses, the best first.
pub async fn ips(client: &mut Client, sandbox: &str) -> Result<Vec<String>> {
    let status = client.sandbox(sandbox).await?.status.context("no status")?;
    let network = status.network.context("no network")?;
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    Ok(std::iter::once(network.ip).chain(more).collect())
}

/// A container that serves a word at port 80.
pub async fn serve(case: &Case, pod: &Pod, sandbox: &str, word: &str) -> Result<String> {
    let script = format!(
        "mkdir -p /tmp/www; echo {word} > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www"
    );
    let config = container("web", &case.image, &["sh", "-c", &script]);
    Ok(case.client().run_container(sandbox, pod, config).await?)
}

/// Asks from the node until the answer comes.
pub async fn fetched(address: &str, word: &str) -> Result<()> {
    until(FETCH_LIMIT, &format!("{address} answers {word:?}"), async || {
        let answer = tokio::time::timeout(ANSWER_LIMIT, get(address)).await;
        Ok(matches!(answer, Ok(Ok(answer)) if answer.contains(word)))
    })
    .await
}

/// From this thread's network, as a program of the node would.
async fn get(address: &str) -> Result<String> {
    let port =
        if address.rsplit(']').next().is_some_and(|rest| rest.contains(':')) { "" } else { ":80" };
    let mut stream = TcpStream::connect(format!("{address}{port}")).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Runs a program in this thread's network; what it printed.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How long a pod may take to be reached, or what is left of it to go.
pub const FETCH_LIMIT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";
