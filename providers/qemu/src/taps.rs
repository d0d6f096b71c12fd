//! The machine's way into a network namespace of the node: for each interface that is there, a tap beside it, and a redirection of
//! every frame from one to the other and back. So the machine has the interface's place on its link, whatever made the
//! interface, and its addresses, whoever gave them.
//!
//! A machine that wakes up out of a checkpoint has the link addresses of another one, and says so at once: until it has its own, and
//! from any other ever after, nothing of it goes further than its tap.
//!
//! A tap lives as long as the QEMU that has it open, and its redirections go with it. The program `tc` of iproute2 makes them: one
//! small batch for each start, no long-lived socket, and the words that an administrator would use to look at them. Of
//! the kernel they need sch_ingress, cls_u32 and act_mirred, which distributions have as modules.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Deserialize;
use tappers::Interface;
use tappers::linux::Tap as Device;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::QemuError;

/// An open tap, and the interface whose place the machine takes.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) fd: OwnedFd,
    pub(crate) mac: String,
    /// What the interface is called there.
    pub(crate) name: String,
}

/// Which frames of a machine go on from its taps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frames {
    /// All of them.
    All,
    /// Those that come from the link address of the interface.
    Own,
}

/// Opens a tap for each interface of the namespace, in the order in which they were made.
pub(crate) async fn open(namespace: &Path, frames: Frames) -> Result<Vec<Tap>, QemuError> {
    let links = links(namespace).await?;
    if links.is_empty() {
        return Err(failed(namespace, "it has no Ethernet interface that is up"));
    }
    let names: Vec<String> = links.iter().map(Link::tap).collect();
    let path = namespace.to_owned();
    let opened = tokio::task::spawn_blocking(move || open_all(&path, &names)).await;
    let opened = opened.map_err(|_| QemuError::Broken)?;
    let fds = opened.map_err(|source| QemuError::Tap { path: namespace.to_owned(), source })?;
    connect(namespace, &links, frames).await?;
    let tap = |(link, fd): (Link, OwnedFd)| Tap { fd, mac: link.address, name: link.ifname };
    Ok(links.into_iter().zip(fds).map(tap).collect())
}

#[derive(Debug, Deserialize)]
struct Link {
    ifindex: u32,
    ifname: String,
    link_type: String,
    #[serde(default)]
    flags: Vec<String>,
    mtu: u32,
    #[serde(default)]
    address: String,
    #[serde(default)]
    linkinfo: LinkInfo,
}

#[derive(Debug, Default, Deserialize)]
struct LinkInfo {
    #[serde(default)]
    info_kind: String,
}

impl Link {
    /// What a pod uses: Ethernet, up, and none of ours.
    fn is_the_pods(&self) -> bool {
        self.link_type == "ether"
            && self.flags.iter().any(|flag| flag == "UP")
            && self.linkinfo.info_kind != "tun"
    }

    /// The name of its tap.
    fn tap(&self) -> String {
        format!("machine{}", self.ifindex)
    }
}

async fn links(namespace: &Path) -> Result<Vec<Link>, QemuError> {
    let output = within(namespace, &["ip", "-json", "-details", "link", "show"], "").await?;
    if !output.status.success() {
        return Err(failed(namespace, String::from_utf8_lossy(&output.stderr).trim()));
    }
    let links: Result<Vec<Link>, _> = serde_json::from_slice(&output.stdout);
    let mut links = links.map_err(|error| failed(namespace, &error.to_string()))?;
    links.retain(Link::is_the_pods);
    links.sort_by_key(|link| link.ifindex);
    Ok(links)
}

/// A thread of its own changes its namespace, and ends there.
fn open_all(namespace: &Path, names: &[String]) -> io::Result<Vec<OwnedFd>> {
    let namespace = File::open(namespace)?;
    std::thread::scope(|scope| {
        let work = scope.spawn(|| -> io::Result<Vec<OwnedFd>> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let open = |name: &String| {
                Device::new_named(Interface::new(name)?)?.as_fd().try_clone_to_owned()
            };
            names.iter().map(open).collect()
        });
        work.join().map_err(|_| io::Error::other("the thread that opens taps died"))?
    })
}

async fn connect(namespace: &Path, links: &[Link], frames: Frames) -> Result<(), QemuError> {
    for link in links {
        // What an earlier machine of the namespace left; mostly there is none.
        let _ =
            within(namespace, &["tc", "qdisc", "del", "dev", &link.ifname, "ingress"], "").await;
    }
    let addresses: String = links
        .iter()
        .map(|link| {
            // The namespace itself has no business on it: what is not redirected ends there.
            let silent = "addrgenmode none arp off";
            format!("link set dev {} {silent} mtu {} up\n", link.tap(), link.mtu)
        })
        .collect();
    let filters: String = links
        .iter()
        .map(|link| {
            let tap = link.tap();
            let into = redirect(&link.ifname, &tap, ANY);
            let from = match frames {
                Frames::All => redirect(&tap, &link.ifname, ANY),
                Frames::Own => {
                    let own = format!("match ether src {}", link.address);
                    redirect(&tap, &link.ifname, &own)
                }
            };
            into + &from
        })
        .collect();
    for (program, batch) in [("ip", addresses), ("tc", filters)] {
        let output = within(namespace, &[program, "-batch", "-"], &batch).await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            return Err(failed(namespace, &format!("{program}: {said}")));
        }
    }
    Ok(())
}

/// What comes in at one and matches goes out at the other; the namespace does nothing with the rest.
fn redirect(from: &str, to: &str, what: &str) -> String {
    format!(
        "qdisc add dev {from} handle ffff: ingress\n\
         filter add dev {from} parent ffff: protocol all prio 1 u32 {what} action mirred egress redirect dev {to}\n"
    )
}

async fn within(namespace: &Path, command: &[&str], input: &str) -> Result<Output, QemuError> {
    let spawned = |source| QemuError::Tap { path: namespace.to_owned(), source };
    let mut net = std::ffi::OsString::from("--net=");
    net.push(namespace);
    let mut child = Command::new("nsenter")
        .arg(net)
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawned)?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    match timeout(LIMIT, work).await {
        Ok(output) => output.map_err(spawned),
        Err(_) => Err(failed(namespace, &format!("{} did not end within {LIMIT:?}", command[0]))),
    }
}

fn failed(namespace: &Path, problem: &str) -> QemuError {
    QemuError::Namespace { path: PathBuf::from(namespace), problem: problem.to_owned() }
}

/// Every frame.
const ANY: &str = "match u8 0 0";
const LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interfaces_of_the_pod_are_taken() {
        let text = r#"[
            {"ifindex": 1, "ifname": "lo", "link_type": "loopback", "flags": ["UP"], "mtu": 65536, "address": "00:00:00:00:00:00"},
            {"ifindex": 2, "ifname": "eth0", "link_type": "ether", "flags": ["UP"], "mtu": 1450, "address": "ee:00:00:00:00:01",
             "linkinfo": {"info_kind": "veth"}},
            {"ifindex": 3, "ifname": "gretap0", "link_type": "ether", "flags": [], "mtu": 1462, "address": "00:00:00:00:00:00"},
            {"ifindex": 4, "ifname": "machine2", "link_type": "ether", "flags": ["UP"], "mtu": 1450, "address": "ee:00:00:00:00:02",
             "linkinfo": {"info_kind": "tun"}},
            {"ifindex": 5, "ifname": "tunl0", "link_type": "ipip", "flags": ["UP"], "mtu": 1480}]"#;
        let links: Vec<Link> = serde_json::from_str(text).expect("links");
        let taken: Vec<String> =
            links.iter().filter(|link| link.is_the_pods()).map(Link::tap).collect();
        assert_eq!(taken, ["machine2"]);
    }
}
