//! The machine's part of the pod network of its node: its interfaces become what those of the pod's namespace on the node are, so
//! that the pod's address is the machine's.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use infranetes_agent_protocol::v1::{Network, NetworkInterface};
use nix::sys::socket::SockaddrStorage;
use tonic::Status;

use crate::netlink::{Netlink, Prefix, Route};

/// What a node said of the network, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    interfaces: Vec<Interface>,
    routes: Vec<(String, Route)>,
    neighbours: Vec<(String, IpAddr, [u8; 6])>,
}

#[derive(Debug, PartialEq, Eq)]
struct Interface {
    mac: [u8; 6],
    name: String,
    mtu: u32,
    addresses: Vec<Prefix>,
}

impl Layout {
    /// Checks what was said.
    pub fn parse(network: &Network) -> Result<Self, Status> {
        let invalid = |what: &str, text: &str| {
            Status::invalid_argument(format!("network: {text:?} is no {what}"))
        };
        if network.interfaces.len() > INTERFACES_MAX || network.routes.len() > ROUTES_MAX {
            return Err(Status::invalid_argument("network: too many interfaces or routes"));
        }
        let prefix =
            |text: &String| Prefix::parse(text).ok_or_else(|| invalid("address/prefix", text));
        let ip = |text: &String| text.parse::<IpAddr>().map_err(|_| invalid("address", text));
        let some = |text: &String| (!text.is_empty()).then(|| ip(text)).transpose();
        let mac = |text: &String| parse_mac(text).ok_or_else(|| invalid("link address", text));
        let interface = |said: &NetworkInterface| {
            if !is_name(&said.name) {
                return Err(invalid("name of an interface", &said.name));
            }
            Ok(Interface {
                mac: mac(&said.mac)?,
                name: said.name.clone(),
                mtu: said.mtu,
                addresses: said.addresses.iter().map(prefix).collect::<Result<_, _>>()?,
            })
        };
        let interfaces = network.interfaces.iter().map(interface).collect::<Result<Vec<_>, _>>()?;
        let known = |name: &String| match interfaces.iter().any(|one| one.name == *name) {
            true => Ok(name.clone()),
            false => Err(invalid("interface of this network", name)),
        };
        let routes = network.routes.iter().map(|said| {
            let route = Route {
                destination: prefix(&said.destination)?,
                gateway: some(&said.gateway)?,
                source: some(&said.source)?,
                metric: said.metric,
                on_link: said.on_link,
            };
            Ok((known(&said.interface)?, route))
        });
        let routes = routes.collect::<Result<_, Status>>()?;
        let neighbours = network
            .neighbours
            .iter()
            .map(|said| Ok((known(&said.interface)?, ip(&said.ip)?, mac(&said.mac)?)));
        let neighbours = neighbours.collect::<Result<_, Status>>()?;
        Ok(Self { interfaces, routes, neighbours })
    }

    /// Makes it so. What is so already stays.
    pub fn apply(&self) -> Result<(), LayoutError> {
        let mut netlink = Netlink::open().map_err(LayoutError::Socket)?;
        let mut indices = Vec::new();
        for interface in &self.interfaces {
            indices.push(index_of(interface.mac).ok_or_else(|| LayoutError::Missing {
                name: interface.name.clone(),
                mac: shown(interface.mac),
            })?);
        }
        self.name_all(&mut netlink, &indices)?;
        for (interface, (index, _)) in self.interfaces.iter().zip(&indices) {
            interface.apply(&mut netlink, *index).map_err(LayoutError::of(&interface.name))?;
        }
        let index = |name: &String| {
            let position = self.interfaces.iter().position(|interface| interface.name == *name);
            position.map_or(0, |position| indices[position].0)
        };
        // Routes to link addresses that are fixed need these first.
        for (name, ip, mac) in &self.neighbours {
            let added = netlink.add_neighbour(index(name), *ip, *mac);
            added.map_err(LayoutError::of(name))?;
        }
        for (name, route) in &self.routes {
            let added = netlink.add_route(index(name), route);
            added.map_err(LayoutError::of(name))?;
        }
        Ok(())
    }

    /// Makes it so on a machine whose interfaces were as another layout says, and that is somebody else from now on: all that it
    /// had there goes before it gets anything new, so that nothing leaves from an address of before. Connections from these break.
    pub fn take_over(&self, before: &Self) -> Result<(), LayoutError> {
        let (then, now) = (before.names(), self.names());
        if then != now {
            return Err(LayoutError::Others { then: then.join(", "), now: now.join(", ") });
        }
        let mut netlink = Netlink::open().map_err(LayoutError::Socket)?;
        let mut past: Vec<IpAddr> = Vec::new();
        let mut indices = Vec::new();
        for was in &before.interfaces {
            let refused = || LayoutError::of(&was.name);
            let (index, name) = index_of(was.mac).ok_or_else(|| LayoutError::Missing {
                name: was.name.clone(),
                mac: shown(was.mac),
            })?;
            past.extend(addresses_of(&name).map_err(refused())?.iter().map(|address| address.ip));
            past.extend(was.addresses.iter().map(|address| address.ip));
            // Routes, neighbours and addresses of version 6 go with the link, those of version 4 do not.
            netlink.link_down(index).map_err(refused())?;
            for address in addresses_of(&name).map_err(refused())? {
                netlink.delete_address(index, address).map_err(refused())?;
            }
            indices.push(index);
        }
        for (interface, index) in self.interfaces.iter().zip(indices) {
            netlink.set_mac(index, interface.mac).map_err(LayoutError::of(&interface.name))?;
        }
        self.forget(&mut netlink, past);
        self.apply()
    }

    /// Sockets keep the address from which they send. Version 4 looks whether the machine still has it, version 6 does not.
    fn forget(&self, netlink: &mut Netlink, past: Vec<IpAddr>) {
        let own: Vec<IpAddr> = self
            .interfaces
            .iter()
            .flat_map(|interface| interface.addresses.iter().map(|address| address.ip))
            .collect();
        for ip in own.iter().filter(|ip| ip.is_ipv6()) {
            // A kernel without such rules has none.
            let _ = netlink.allow_source(*ip);
        }
        for ip in past.into_iter().filter(|ip| ip.is_ipv6() && !own.contains(ip)) {
            if let Err(error) = netlink.forbid_source(ip) {
                tracing::warn!(%ip, %error, "sockets may still send from an address of before");
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        self.interfaces.iter().map(|interface| interface.name.as_str()).collect()
    }

    /// Two steps, because the name of one may be wanted for another.
    fn name_all(
        &self,
        netlink: &mut Netlink,
        indices: &[(u32, String)],
    ) -> Result<(), LayoutError> {
        let wrong: Vec<_> = self
            .interfaces
            .iter()
            .zip(indices)
            .filter(|(interface, (_, name))| interface.name != *name)
            .map(|(interface, (index, _))| (interface, *index))
            .collect();
        for (interface, index) in &wrong {
            let renamed = netlink
                .link_down(*index)
                .and_then(|()| netlink.rename(*index, &format!("pod{index}")));
            renamed.map_err(LayoutError::of(&interface.name))?;
        }
        for (interface, index) in &wrong {
            let renamed = netlink.rename(*index, &interface.name);
            renamed.map_err(LayoutError::of(&interface.name))?;
        }
        Ok(())
    }
}

impl Interface {
    fn apply(&self, netlink: &mut Netlink, index: u32) -> io::Result<()> {
        if self.mtu > 0 {
            netlink.set_mtu(index, self.mtu)?;
        }
        // The node gave the addresses out: asking around whether they are taken would only delay.
        let quick = Path::new("/proc/sys/net/ipv6/conf").join(&self.name).join("accept_dad");
        match fs::write(quick, "0") {
            // Without IPv6 there is nothing to ask.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        netlink.link_up(index)?;
        self.addresses.iter().try_for_each(|address| netlink.add_address(index, *address, false))
    }
}

/// The interface with a link address, and its name.
pub fn index_of(mac: [u8; 6]) -> Option<(u32, String)> {
    let entries = fs::read_dir(INTERFACES).ok()?;
    entries.flatten().find_map(|entry| {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        if parse_mac(read("address")?.trim())? != mac {
            return None;
        }
        let index = read("ifindex")?.trim().parse().ok()?;
        Some((index, entry.file_name().into_string().ok()?))
    })
}

/// All addresses that an interface has.
fn addresses_of(name: &str) -> io::Result<Vec<Prefix>> {
    let all = nix::ifaddrs::getifaddrs()?.filter(|one| one.interface_name == name);
    let prefix = |one: nix::ifaddrs::InterfaceAddress| -> Option<Prefix> {
        let (address, mask) = (one.address?, one.netmask?);
        let v4 = |address: &SockaddrStorage| Some(address.as_sockaddr_in()?.ip());
        let v6 = |address: &SockaddrStorage| Some(address.as_sockaddr_in6()?.ip());
        if let (Some(ip), Some(mask)) = (v4(&address), v4(&mask)) {
            let length = mask.to_bits().count_ones() as u8;
            return Some(Prefix { ip: ip.into(), length });
        }
        let (ip, mask) = (v6(&address)?, v6(&mask)?);
        Some(Prefix { ip: ip.into(), length: mask.to_bits().count_ones() as u8 })
    };
    Ok(all.filter_map(prefix).collect())
}

/// Reads "02:00:00:00:00:01".
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// As the kernel has it.
fn is_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':')
}

/// Why the machine's interfaces are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The kernel cannot be asked.
    #[error("the kernel cannot be asked to change interfaces")]
    Socket(#[source] io::Error),
    /// A machine that was made of a checkpoint has other ones.
    #[error("the machine has the interfaces {then}, and its network now has {now}")]
    Others {
        /// Their names.
        then: String,
        /// What they should be.
        now: String,
    },
    /// It is not there.
    #[error("the machine has no interface {mac} to become {name}")]
    Missing {
        /// What it is to be called.
        name: String,
        /// Its link address.
        mac: String,
    },
    /// The kernel refused.
    #[error("the interface {name} could not be set up")]
    Refused {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

impl LayoutError {
    fn of(name: &str) -> impl FnOnce(io::Error) -> Self {
        let name = name.to_owned();
        move |cause| Self::Refused { name, cause }
    }
}

const INTERFACES: &str = "/sys/class/net";
const INTERFACES_MAX: usize = 64;
const ROUTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use infranetes_agent_protocol::v1;

    use super::*;

    fn network() -> Network {
        Network {
            interfaces: vec![NetworkInterface {
                mac: "02:00:00:00:00:0a".into(),
                name: "eth0".into(),
                mtu: 1450,
                addresses: vec!["10.1.2.3/24".into(), "fd00::3/64".into()],
            }],
            routes: vec![v1::Route {
                destination: "0.0.0.0/0".into(),
                gateway: "10.1.2.1".into(),
                interface: "eth0".into(),
                ..Default::default()
            }],
            neighbours: vec![v1::Neighbour {
                ip: "10.1.2.1".into(),
                mac: "ee:ee:ee:ee:ee:ee".into(),
                interface: "eth0".into(),
            }],
        }
    }

    #[test]
    fn a_network_is_read_in_full() {
        let layout = Layout::parse(&network()).unwrap();
        assert_eq!(layout.interfaces[0].mac, [2, 0, 0, 0, 0, 10]);
        assert_eq!(layout.interfaces[0].addresses.len(), 2);
        let (name, route) = &layout.routes[0];
        assert_eq!((name.as_str(), route.gateway), ("eth0", "10.1.2.1".parse().ok()));
        assert_eq!(layout.neighbours[0].2, [0xee; 6]);
    }

    #[test]
    fn only_a_network_with_the_same_interfaces_is_taken_over() {
        let before = Layout::parse(&network()).unwrap();
        let mut other = network();
        other.routes.clear();
        other.neighbours.clear();
        other.interfaces[0].name = "net1".into();
        let error = Layout::parse(&other).unwrap().take_over(&before).unwrap_err().to_string();
        assert!(error.contains("the interfaces eth0, and its network now has net1"), "{error}");
    }

    #[test]
    fn what_cannot_be_set_up_is_refused() {
        let changes: [fn(&mut Network); 8] = [
            |network| network.interfaces[0].mac = "02:00".into(),
            |network| network.interfaces[0].mac = "02:00:00:00:00:0a:0b".into(),
            |network| network.interfaces[0].name = "../eth0".into(),
            |network| network.interfaces[0].name = "a-name-that-is-too-long".into(),
            |network| network.interfaces[0].addresses[0] = "10.1.2.3".into(),
            |network| network.routes[0].gateway = "nobody".into(),
            |network| network.routes[0].interface = "eth1".into(),
            |network| network.interfaces = vec![network.interfaces[0].clone(); 65],
        ];
        for change in changes {
            let mut network = network();
            change(&mut network);
            let error = Layout::parse(&network).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{network:?}");
        }
    }
}
