//! A real registry on loopback: Debian's `docker-registry`, with storage that goes away with it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use crate::wait::until;
use crate::world;

/// A running registry; ends when dropped.
pub struct Registry {
    address: SocketAddr,
    _process: Child,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// Starts a registry on a free port, open to everybody on this machine.
    pub async fn start() -> Result<Registry> {
        Self::start_with("").await
    }

    /// Starts a registry that asks for a user and a password. `htpasswd` is one line with a bcrypt hash.
    pub async fn start_with_htpasswd(htpasswd: &str) -> Result<Registry> {
        Self::start_with(htpasswd).await
    }

    async fn start_with(htpasswd: &str) -> Result<Registry> {
        let dir = world::dir("registry")?;
        // The port is free now and may be taken before the registry has it: then it ends at once, and another is tried.
        for _ in 0..PORT_TRIES {
            let address = free_address()?;
            let mut process = spawn(dir.path(), address, htpasswd)?;
            let answers = until(START_LIMIT, "the registry answers", async || {
                Ok(tokio::net::TcpStream::connect(address).await.is_ok())
            });
            tokio::select! {
                answer = answers => {
                    answer?;
                    return Ok(Registry { address, _process: process, _dir: dir });
                }
                _ = process.wait() => {}
            }
        }
        bail!(
            "docker-registry ended {PORT_TRIES} times right after its start: see {}/log",
            dir.path().display()
        )
    }

    /// `HOST:PORT`, as it stands in image references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }
}

fn spawn(dir: &Path, address: SocketAddr, htpasswd: &str) -> Result<Child> {
    let auth = if htpasswd.is_empty() {
        String::new()
    } else {
        std::fs::write(dir.join("htpasswd"), htpasswd)?;
        format!("auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}\n", dir.display())
    };
    let config = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {root}/data}}\n  delete: {{enabled: true}}\n\
         http:\n  addr: {address}\n{auth}",
        root = dir.display(),
    );
    let path = dir.join("config.yml");
    std::fs::write(&path, config)?;
    let log = std::fs::File::create(dir.join("log"))?;
    Command::new("docker-registry")
        .arg("serve")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context(
            "docker-registry does not start; `cargo xtask` installs Debian's package of that name",
        )
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

const PORT_TRIES: usize = 5;
const START_LIMIT: Duration = Duration::from_secs(20);
