//! The machine's own network, from the kernel's command line.
//!
//! Static settings only. DHCP is not there yet, and asking for it is refused.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use nix::net::if_::if_nametoindex;

use crate::netlink::{Netlink, Prefix, Route};

/// The machine's address, as the command line gives it: `ADDRESS/PREFIX,GATEWAY[,DNS…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticAddress {
    /// Its own.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// Where everything else goes.
    pub gateway: Ipv4Addr,
    /// Name servers.
    pub dns: Vec<IpAddr>,
}

impl StaticAddress {
    /// Parses the value of `infranetes.ip`.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text == "dhcp" {
            return Err(AddressError::Dhcp);
        }
        let invalid = || AddressError::Invalid(text.to_owned());
        let mut parts = text.split(',');
        let (address, prefix) =
            parts.next().and_then(|own| own.split_once('/')).ok_or_else(invalid)?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(invalid)?;
        let gateway = parts.next().ok_or_else(invalid)?;
        Ok(Self {
            address: address.parse().map_err(|_| invalid())?,
            prefix,
            gateway: gateway.parse().map_err(|_| invalid())?,
            dns: parts.map(str::parse).collect::<Result<_, _>>().map_err(|_| invalid())?,
        })
    }

    /// What the machine's own resolver and containers without DNS settings use.
    pub fn resolv_conf(&self) -> String {
        self.dns.iter().map(|server| format!("nameserver {server}\n")).collect()
    }
}

/// Brings loopback up.
pub fn loopback_up() -> io::Result<()> {
    Netlink::open()?.link_up(LOOPBACK)
}

/// The index and the name of the machine's first interface that is not loopback, if there is one.
pub fn first_interface() -> Option<(u32, String)> {
    // Nearly always; looking through them all takes an emulated CPU a while.
    if let Ok(index) = if_nametoindex("eth0") {
        return Some((index, "eth0".to_owned()));
    }
    let entries = std::fs::read_dir("/sys/class/net").ok()?;
    let index = |name: &str| -> Option<u32> {
        let path = std::path::Path::new("/sys/class/net").join(name).join("ifindex");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let found = names.filter_map(|name| Some((index(&name)?, name)));
    found.filter(|(index, _)| *index != LOOPBACK).min()
}

/// Leaves an interface of the calling thread's network namespace without IPv6. Where nobody answers to it, its addresses, questions
/// and announcements are code that a machine runs at each boot to no avail.
pub(super) fn without_ipv6(name: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

/// Gives an interface its address, brings it up, and gives the machine its way out.
pub fn configure(interface: u32, address: &StaticAddress) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let own = Prefix { ip: address.address.into(), length: address.prefix };
    appear(&mut netlink, interface, own, address.gateway.into())?;
    let default = Route {
        destination: Prefix { ip: Ipv4Addr::UNSPECIFIED.into(), length: 0 },
        gateway: Some(address.gateway.into()),
        source: None,
        metric: 0,
        on_link: false,
    };
    netlink.add_route(interface, &default)
}

/// Brings an interface up with an address, and asks for the link address of whoever dials it. Who dialled before the interface was
/// there waits for an answer to that question of its own, and asks again only after a while (QEMU's user-mode network: 200 ms):
/// our question answers it.
pub(super) fn appear(
    netlink: &mut Netlink,
    interface: u32,
    own: Prefix,
    caller: IpAddr,
) -> io::Result<()> {
    // In this order: of an interface that has an address but is not up, Linux drops the answer to a question that came early, and
    // then, knowing who asked, sees no need for a question of its own.
    netlink.link_up(interface)?;
    netlink.add_address(interface, own, true)?;
    // Nobody there answers: whoever dials finds this machine by itself.
    let _ = netlink.ask_neighbour(interface, caller);
    Ok(())
}

/// Brings an interface up with link-local addresses alone.
pub fn link_up(interface: u32) -> io::Result<()> {
    Netlink::open()?.link_up(interface)
}

/// Why there is no static address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an address.
    #[error("infranetes.ip={0:?} is not ADDRESS/PREFIX,GATEWAY[,DNS]")]
    Invalid(String),
    /// Not a control interface.
    #[error("infranetes.control={0:?} is not ADDRESS/PREFIX,MAC,CALLER")]
    Control(String),
    /// Not there yet.
    #[error("this agent has no DHCP client yet: give infranetes.ip=ADDRESS/PREFIX,GATEWAY[,DNS]")]
    Dhcp,
}

const LOOPBACK: u32 = 1;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_command_line_is_read() {
        let address = StaticAddress::parse("10.0.2.15/24,10.0.2.2,10.0.2.3").unwrap();
        assert_eq!((address.prefix, address.gateway), (24, Ipv4Addr::new(10, 0, 2, 2)));
        assert_eq!(address.resolv_conf(), "nameserver 10.0.2.3\n");
        assert_eq!(StaticAddress::parse("10.0.2.15/24,10.0.2.2").unwrap().resolv_conf(), "");
        for text in [
            "",
            "10.0.2.15",
            "10.0.2.15/33,10.0.2.2",
            "10.0.2.15/24",
            "a/24,b",
            "1.1.1.1/8,1.1.1.2,x",
        ] {
            assert_eq!(StaticAddress::parse(text), Err(AddressError::Invalid(text.into())));
        }
        assert_eq!(StaticAddress::parse("dhcp"), Err(AddressError::Dhcp));
    }
}
