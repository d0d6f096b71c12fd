//! How a network namespace looks from inside, read by the program `ip` of iproute2.
//!
//! A result says what plugins want to tell; what they did is more (a route to a gateway outside of the pod's prefix, a
//! neighbour that answers nobody). A machine that stands in for the namespace needs all of it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use infranetes_core::network::{Interface, Neighbour, NetworkLayout, Prefix, Route};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::CniError;

/// Reads the namespace that is pinned at `path`.
pub(crate) async fn read(path: &Path) -> Result<NetworkLayout, CniError> {
    let (links, v4, v6, neighbours) = tokio::try_join!(
        ip::<RawLink>(path, &["address", "show"]),
        ip::<RawRoute>(path, &["-4", "route", "show", "table", "main"]),
        ip::<RawRoute>(path, &["-6", "route", "show", "table", "main"]),
        ip::<RawNeighbour>(path, &["neighbour", "show", "nud", "permanent"]),
    )?;
    Ok(layout(links, v4, v6, neighbours))
}

fn layout(
    links: Vec<RawLink>,
    v4: Vec<RawRoute>,
    v6: Vec<RawRoute>,
    neighbours: Vec<RawNeighbour>,
) -> NetworkLayout {
    let interfaces: Vec<Interface> = links.into_iter().filter_map(interface).collect();
    let known = |name: &String| interfaces.iter().any(|interface| interface.name == *name);
    let v4 = v4.into_iter().filter_map(|raw| route(raw, "0.0.0.0/0"));
    let v6 = v6.into_iter().filter_map(|raw| route(raw, "::/0"));
    let mut routes: Vec<Route> = v4.chain(v6).filter(|route| known(&route.interface)).collect();
    // A gateway can be named once there is a route to it.
    routes.sort_by_key(|route| route.gateway.is_some());
    let neighbours = neighbours.into_iter().filter_map(|raw| {
        Some(Neighbour { ip: raw.dst.parse().ok()?, mac: raw.lladdr?, interface: raw.dev })
    });
    let neighbours = neighbours.filter(|neighbour| known(&neighbour.interface)).collect();
    NetworkLayout { interfaces, routes, neighbours }
}

#[derive(Deserialize)]
struct RawLink {
    ifname: String,
    link_type: String,
    #[serde(default)]
    flags: Vec<String>,
    mtu: u32,
    #[serde(default)]
    address: String,
    #[serde(default)]
    addr_info: Vec<RawAddress>,
}

#[derive(Deserialize)]
struct RawAddress {
    local: Option<IpAddr>,
    prefixlen: u8,
    #[serde(default)]
    scope: String,
}

#[derive(Deserialize)]
struct RawRoute {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    dst: String,
    gateway: Option<IpAddr>,
    via: Option<RawVia>,
    dev: Option<String>,
    prefsrc: Option<IpAddr>,
    metric: Option<u32>,
    #[serde(default)]
    flags: Vec<String>,
}

#[derive(Deserialize)]
struct RawVia {
    host: IpAddr,
}

#[derive(Deserialize)]
struct RawNeighbour {
    dst: String,
    dev: String,
    lladdr: Option<String>,
}

/// An Ethernet interface that is up; the kernel's own tunnels, say, are not.
fn interface(raw: RawLink) -> Option<Interface> {
    let up = raw.flags.iter().any(|flag| flag == "UP");
    if raw.link_type != "ether" || !up {
        return None;
    }
    // Every interface makes its own link-local address.
    let addresses = raw.addr_info.into_iter().filter(|address| address.scope != "link");
    let addresses =
        addresses.filter_map(|raw| Some(Prefix { ip: raw.local?, length: raw.prefixlen }));
    Some(Interface {
        name: raw.ifname,
        mac: raw.address,
        mtu: raw.mtu,
        addresses: addresses.collect(),
    })
}

fn route(raw: RawRoute, default: &str) -> Option<Route> {
    if raw.kind.is_some_and(|kind| kind != "unicast") {
        return None;
    }
    let destination = match raw.dst.as_str() {
        "default" => default.parse().ok()?,
        text => match text.parse() {
            Ok(prefix) => prefix,
            Err(_) => {
                let ip: IpAddr = text.parse().ok()?;
                Prefix { ip, length: if ip.is_ipv4() { 32 } else { 128 } }
            }
        },
    };
    if is_link_local_or_multicast(destination.ip) && raw.gateway.is_none() {
        return None;
    }
    Some(Route {
        destination,
        gateway: raw.gateway.or(raw.via.map(|via| via.host)),
        interface: raw.dev?,
        source: raw.prefsrc,
        metric: raw.metric.unwrap_or(0),
        on_link: raw.flags.iter().any(|flag| flag == "onlink"),
    })
}

/// The kernel makes those for every interface that it brings up.
fn is_link_local_or_multicast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast())
}

async fn ip<T: DeserializeOwned>(path: &Path, args: &[&str]) -> Result<Vec<T>, CniError> {
    let failed = |program, problem: String| CniError::Layout { program, problem };
    let mut namespace = std::ffi::OsString::from("--net=");
    namespace.push(path);
    let mut command = Command::new("nsenter");
    command.arg(namespace).args(["ip", "-json"]).args(args).kill_on_drop(true);
    let output = timeout(LIMIT, command.output())
        .await
        .map_err(|_| failed("ip", format!("it did not end within {LIMIT:?}")))?
        .map_err(|error| failed("nsenter", error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed("ip", said.trim().to_owned()));
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed("ip", error.to_string()))
}

const LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: DeserializeOwned>(text: &str) -> Vec<T> {
        serde_json::from_str(text).unwrap()
    }

    /// As a plugin leaves it that routes by way of a gateway outside of the pod's prefix.
    #[test]
    fn a_namespace_is_told_in_an_order_in_which_it_can_be_made() {
        let links = read(
            r#"[{"ifname": "lo", "link_type": "loopback", "mtu": 65536, "flags": ["UP"], "address": "00:00:00:00:00:00",
                 "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8, "scope": "host"}]},
                {"ifname": "erspan0", "link_type": "ether", "mtu": 1450, "flags": [], "address": "00:00:00:00:00:00"},
                {"ifname": "eth0", "link_type": "ether", "mtu": 1450, "flags": ["BROADCAST", "UP"], "address": "ee:00:00:00:00:01",
                 "addr_info": [{"family": "inet", "local": "10.1.2.3", "prefixlen": 32, "scope": "global"},
                               {"family": "inet6", "local": "fd00::3", "prefixlen": 64, "scope": "global"},
                               {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"}]}]"#,
        );
        let v4 = read(
            r#"[{"dst": "default", "gateway": "169.254.1.1", "dev": "eth0", "flags": []},
                {"dst": "169.254.1.1", "dev": "eth0", "scope": "link", "flags": []},
                {"type": "blackhole", "dst": "10.9.0.0/16", "flags": []},
                {"dst": "10.1.0.0/16", "dev": "eth0", "prefsrc": "10.1.2.3", "metric": 5, "flags": ["onlink"]}]"#,
        );
        let v6 = read(
            r#"[{"dst": "fd00::/64", "dev": "eth0", "metric": 256, "flags": []},
                {"dst": "fe80::/64", "dev": "eth0", "metric": 256, "flags": []},
                {"dst": "default", "gateway": "fe80::ee", "dev": "eth0", "metric": 1024, "flags": []}]"#,
        );
        let neighbours = read(
            r#"[{"dst": "169.254.1.1", "dev": "eth0", "lladdr": "ee:ee:ee:ee:ee:ee", "state": ["PERMANENT"]}]"#,
        );
        let layout = layout(links, v4, v6, neighbours);
        assert_eq!(layout.interfaces.len(), 1);
        let addresses: Vec<_> =
            layout.interfaces[0].addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.2.3/32", "fd00::3/64"]);
        let shown = |route: &Route| {
            let way = route.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
            format!("{}{way}", route.destination)
        };
        let routes: Vec<String> = layout.routes.iter().map(shown).collect();
        assert_eq!(
            routes,
            [
                "169.254.1.1/32",
                "10.1.0.0/16",
                "fd00::/64",
                "0.0.0.0/0 via 169.254.1.1",
                "::/0 via fe80::ee"
            ]
        );
        assert!(layout.routes[1].on_link && layout.routes[1].metric == 5);
        assert_eq!(layout.neighbours[0].mac, "ee:ee:ee:ee:ee:ee");
    }
}
