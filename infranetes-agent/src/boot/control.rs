//! The way from the node to the agent where the machine is part of the pod network: an interface of its own, in a network
//! namespace of its own, in which the agent alone listens. Pods neither see it nor collide with its address or port.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

use crate::boot::network::{AddressError, appear, without_ipv6};
use crate::interfaces::{index_of, parse_mac};
use crate::netlink::{Netlink, Prefix};

/// Which interface, its address, and where on its network the node's connections come from: `ADDRESS/PREFIX,MAC,CALLER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    address: Prefix,
    mac: [u8; 6],
    caller: IpAddr,
}

impl Control {
    /// Parses the value of `infranetes.control`.
    pub(super) fn parse(text: &str) -> Result<Self, AddressError> {
        let read = || {
            let (address, rest) = text.split_once(',')?;
            let (mac, caller) = rest.split_once(',')?;
            let (address, mac) = (Prefix::parse(address)?, parse_mac(mac)?);
            Some(Self { address, mac, caller: caller.parse().ok()? })
        };
        read().ok_or_else(|| AddressError::Control(text.to_owned()))
    }

    /// Moves the interface into a new network namespace, and gives it its address there.
    pub(super) fn set_up(self, no_ipv6: bool) -> io::Result<OwnedFd> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the interface is not there");
        let (index, name) = index_of(self.mac).ok_or_else(missing)?;
        let mut outside = Netlink::open()?;
        // A thread's namespace ends with the thread, unless something holds it.
        let work = thread::Builder::new().name("control".to_owned()).spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let namespace = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
            outside.move_to(index, namespace.as_fd())?;
            let mut inside = Netlink::open()?;
            let index = if_nametoindex(name.as_str())?;
            inside.link_up(LOOPBACK)?;
            if no_ipv6 {
                without_ipv6(name.as_str())?;
            }
            appear(&mut inside, index, self.address, self.caller)?;
            Ok(namespace)
        })?;
        work.join().map_err(|_| io::Error::other("the thread that moves it died"))?
    }
}

const LOOPBACK: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_and_its_address_are_read() {
        let control = Control::parse("10.0.2.15/24,02:00:00:00:00:01,10.0.2.2").unwrap();
        assert_eq!((control.address.length, control.mac), (24, [2, 0, 0, 0, 0, 1]));
        assert_eq!(control.caller, IpAddr::from([10, 0, 2, 2]));
        for text in [
            "",
            "10.0.2.15/24",
            "10.0.2.15/24,02:00:00:00:00:01",
            "10.0.2.15,02:00:00:00:00:01,10.0.2.2",
            "10.0.2.15/24,eth0,10.0.2.2",
            "10.0.2.15/24,02:00:00:00:00:01,node",
        ] {
            assert_eq!(Control::parse(text), Err(AddressError::Control(text.into())));
        }
    }
}
