//! A small rtnetlink client: interfaces, addresses, routes and neighbours are changed, nothing is listed.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// A socket of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// At most 32, or 128.
    pub length: u8,
}

impl Prefix {
    /// Parses `ADDRESS/PREFIX`.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, length) = text.split_once('/')?;
        let ip: IpAddr = ip.parse().ok()?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let length = length.parse().ok().filter(|length| *length <= most)?;
        Some(Self { ip, length })
    }
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Prefix,
    /// By way of whom, if not directly.
    pub gateway: Option<IpAddr>,
    /// The address to send from, if it is fixed.
    pub source: Option<IpAddr>,
    /// 0 is the kernel's choice.
    pub metric: u32,
    /// The gateway is taken to be on the link.
    pub on_link: bool,
}

impl Netlink {
    /// A socket in the namespace of this thread.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Brings an interface up.
    pub fn link_up(&mut self, interface: u32) -> io::Result<()> {
        self.request(RTM_NEWLINK, 0, &link(interface, IFF_UP))
    }

    /// Takes an interface down.
    pub fn link_down(&mut self, interface: u32) -> io::Result<()> {
        self.request(RTM_NEWLINK, 0, &link(interface, 0))
    }

    /// Gives an interface another name; it has to be down.
    pub fn rename(&mut self, interface: u32, name: &str) -> io::Result<()> {
        let mut body = unchanged(interface);
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        attribute(&mut body, IFLA_IFNAME, &text);
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Sets the most bytes of one packet.
    pub fn set_mtu(&mut self, interface: u32, mtu: u32) -> io::Result<()> {
        let mut body = unchanged(interface);
        attribute(&mut body, IFLA_MTU, &mtu.to_ne_bytes());
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Gives an interface another link address; it has to be down.
    pub fn set_mac(&mut self, interface: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut body = unchanged(interface);
        attribute(&mut body, IFLA_ADDRESS, &mac);
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Moves an interface into another network namespace.
    pub fn move_to(&mut self, interface: u32, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let mut body = unchanged(interface);
        attribute(&mut body, IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Gives an interface an address. Without `plain`, no route comes with it, and it is used at once: nobody is asked whether
    /// it is taken.
    pub fn add_address(&mut self, interface: u32, prefix: Prefix, plain: bool) -> io::Result<()> {
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let mut body = vec![family(prefix.ip), prefix.length, 0, 0];
        body.extend(interface.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &octets(prefix.ip));
        attribute(&mut body, IFA_ADDRESS, &octets(prefix.ip));
        if !plain {
            attribute(&mut body, IFA_FLAGS, &(IFA_F_NODAD | IFA_F_NOPREFIXROUTE).to_ne_bytes());
        }
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    /// Takes an address from an interface; not there is success.
    pub fn delete_address(&mut self, interface: u32, prefix: Prefix) -> io::Result<()> {
        let mut body = vec![family(prefix.ip), prefix.length, 0, 0];
        body.extend(interface.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &octets(prefix.ip));
        gone(self.request(RTM_DELADDR, 0, &body))
    }

    /// Lets nothing more be sent from an address, whoever still has a socket with it.
    pub fn forbid_source(&mut self, ip: IpAddr) -> io::Result<()> {
        self.allow_source(ip)?;
        self.request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, &no_source(ip))
    }

    /// Takes back what [`Netlink::forbid_source`] did, if it did.
    pub fn allow_source(&mut self, ip: IpAddr) -> io::Result<()> {
        gone(self.request(RTM_DELRULE, 0, &no_source(ip)))
    }

    /// Adds a route, or replaces the one to the same destination.
    pub fn add_route(&mut self, interface: u32, route: &Route) -> io::Result<()> {
        let direct = route.gateway.is_none() && route.destination.ip.is_ipv4();
        let scope = if direct { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
        // struct rtmsg: family, prefix lengths, tos, table, protocol, scope, type, flags.
        let (own, length) = (family(route.destination.ip), route.destination.length);
        let mut body = vec![own, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST];
        let flags = if route.on_link { RTNH_F_ONLINK } else { 0 };
        body.extend(flags.to_ne_bytes());
        if length > 0 {
            attribute(&mut body, RTA_DST, &octets(route.destination.ip));
        }
        attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
        match route.gateway {
            Some(gateway) if family(gateway) == own => {
                attribute(&mut body, RTA_GATEWAY, &octets(gateway));
            }
            Some(gateway) => {
                let mut via = u16::from(family(gateway)).to_ne_bytes().to_vec();
                via.extend(octets(gateway));
                attribute(&mut body, RTA_VIA, &via);
            }
            None => {}
        }
        if let Some(source) = route.source {
            attribute(&mut body, RTA_PREFSRC, &octets(source));
        }
        if route.metric > 0 {
            attribute(&mut body, RTA_PRIORITY, &route.metric.to_ne_bytes());
        }
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    /// Notes the link address of somebody who would not answer for it.
    pub fn add_neighbour(&mut self, interface: u32, ip: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        let mut body = neighbour(interface, ip, NUD_PERMANENT, 0);
        attribute(&mut body, NDA_LLADDR, &mac);
        self.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body)
    }

    /// Asks somebody for its link address, which tells it this machine's. Does not wait for an answer.
    pub fn ask_neighbour(&mut self, interface: u32, ip: IpAddr) -> io::Result<()> {
        let body = neighbour(interface, ip, NUD_NONE, NTF_USE);
        self.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body)
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

/// struct ifinfomsg: family, padding, type, index, flags, change mask.
fn link(interface: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0_u8; 4];
    body.extend(interface.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body
}

fn unchanged(interface: u32) -> Vec<u8> {
    let mut body = vec![0_u8; 4];
    body.extend(interface.to_ne_bytes());
    body.extend([0; 8]);
    body
}

/// struct ndmsg: family, padding, index, state, flags, type; and whom it is about.
fn neighbour(interface: u32, ip: IpAddr, state: u16, flags: u8) -> Vec<u8> {
    let mut body = vec![family(ip), 0, 0, 0];
    body.extend(interface.to_ne_bytes());
    body.extend(state.to_ne_bytes());
    body.extend([flags, 0]);
    attribute(&mut body, NDA_DST, &octets(ip));
    body
}

/// A rule by which whatever comes from an address of this machine ends.
fn no_source(ip: IpAddr) -> Vec<u8> {
    let octets = octets(ip);
    // struct fib_rule_hdr: family, lengths of destination and source, tos, table, two reserved, action, flags.
    let mut body = vec![family(ip), 0, octets.len() as u8 * 8, 0, 0, 0, 0, FR_ACT_BLACKHOLE];
    body.extend(0_u32.to_ne_bytes());
    attribute(&mut body, FRA_SRC, &octets);
    attribute(&mut body, FRA_PRIORITY, &BEFORE_OTHERS.to_ne_bytes());
    body
}

fn gone(answer: io::Result<()>) -> io::Result<()> {
    match answer {
        Err(error) if matches!(error.raw_os_error(), Some(ENOENT | EADDRNOTAVAIL)) => Ok(()),
        answer => answer,
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

/// An attribute with what fills it up to four bytes.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

const HEADER_BYTES: usize = 16;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const ENOENT: i32 = 2;
const EADDRNOTAVAIL: i32 = 99;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;
const RTNH_F_ONLINK: u32 = 4;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const NTF_USE: u8 = 0x01;
const NUD_NONE: u16 = 0;
const NUD_PERMANENT: u16 = 0x80;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FR_ACT_BLACKHOLE: u8 = 6;
/// Of a rule: after the one for the machine's own addresses, and before all others.
const BEFORE_OTHERS: u32 = 1;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_kernel_are_errors() {
        let mut answer = vec![0_u8; 20];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-19_i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer).unwrap_err().raw_os_error(), Some(19));
        assert!(acknowledged(&answer[..10]).is_err());
    }

    #[test]
    fn attributes_are_filled_up_to_four_bytes() {
        let mut message = Vec::new();
        attribute(&mut message, 3, b"eth0\0");
        assert_eq!(message, [9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0]);
    }
}
