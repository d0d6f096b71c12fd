//! Interfaces, addresses and routes, over rtnetlink.
//!
//! Static settings only: they come with the kernel's command line. DHCP is not there yet, and asking for it is refused.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

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

/// The index of the machine's first interface that is not loopback, if there is one.
pub fn first_interface() -> Option<u32> {
    let entries = std::fs::read_dir("/sys/class/net").ok()?;
    let index = |name: std::ffi::OsString| -> Option<u32> {
        let path = std::path::Path::new("/sys/class/net").join(name).join("ifindex");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let indices = entries.flatten().filter_map(|entry| index(entry.file_name()));
    indices.filter(|index| *index != LOOPBACK).min()
}

/// Brings an interface up, and gives it its address and the machine its way out.
pub fn configure(interface: u32, address: &StaticAddress) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.link_up(interface)?;
    netlink.add_address(interface, address)?;
    netlink.add_default_route(interface, address.gateway)
}

/// Brings an interface up with link-local addresses alone.
pub fn link_up(interface: u32) -> io::Result<()> {
    Netlink::open()?.link_up(interface)
}

struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    fn link_up(&mut self, interface: u32) -> io::Result<()> {
        // struct ifinfomsg: family, padding, type, index, flags, change mask.
        let mut body = vec![0_u8; 4];
        body.extend(interface.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        self.request(RTM_NEWLINK, 0, &body)
    }

    fn add_address(&mut self, interface: u32, address: &StaticAddress) -> io::Result<()> {
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let mut body = vec![AF_INET, address.prefix, 0, 0];
        body.extend(interface.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &address.address.octets());
        attribute(&mut body, IFA_ADDRESS, &address.address.octets());
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    fn add_default_route(&mut self, interface: u32, gateway: Ipv4Addr) -> io::Result<()> {
        // struct rtmsg: family, prefix lengths, tos, table, protocol, scope, type, flags.
        let mut body =
            vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST];
        body.extend(0_u32.to_ne_bytes());
        attribute(&mut body, RTA_GATEWAY, &gateway.octets());
        attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    /// Sends one request and waits for its acknowledgement, which the kernel has ready when the send returns.
    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        // struct nlmsghdr: length, type, flags, sequence, port.
        let length = u32::try_from(HEADER_BYTES + body.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
        let mut answer = [0_u8; 1024];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
        acknowledged(&answer[..length])
    }
}

/// Reads NLMSG_ERROR, whose error is 0 for success.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::other("the kernel's answer is no acknowledgement");
    let kind = answer.get(4..6).ok_or_else(malformed)?;
    let code = answer.get(HEADER_BYTES..HEADER_BYTES + 4).ok_or_else(malformed)?;
    if kind != NLMSG_ERROR.to_ne_bytes() {
        return Err(malformed());
    }
    match i32::from_ne_bytes(code.try_into().map_err(|_| malformed())?) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // All values here have four bytes, so that nothing has to be padded.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
}

/// Why there is no static address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an address.
    #[error("infranetes.ip={0:?} is not ADDRESS/PREFIX,GATEWAY[,DNS]")]
    Invalid(String),
    /// Not there yet.
    #[error("this agent has no DHCP client yet: give infranetes.ip=ADDRESS/PREFIX,GATEWAY[,DNS]")]
    Dhcp,
}

const LOOPBACK: u32 = 1;
const HEADER_BYTES: usize = 16;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;

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

    #[test]
    fn refusals_of_the_kernel_are_errors() {
        let mut answer = vec![0_u8; 20];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-19_i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer).unwrap_err().raw_os_error(), Some(19));
        assert!(acknowledged(&answer[..10]).is_err());
    }
}
