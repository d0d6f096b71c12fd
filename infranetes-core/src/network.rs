//! The pod network of a node, as far as the engine knows it: something that connects a sandbox before its machine is made,
//! and disconnects it after its machine is gone.
//!
//! The engine decides when; it knows neither how nor who does it. [`PodNetwork`] is handed to it. What comes out of a set-up,
//! an [`Attachment`], is durable in the sandbox's record: its namespace goes to the provider with the wish for a machine, and
//! what it says of addresses and routes goes to the machine's agent, for machines that have a network stack of their own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::error::FailureKind;
use crate::ids::SandboxId;
use crate::spec::{Dns, PodIdentity};

/// Connects sandboxes to the pod network of this node.
///
/// All calls may be dropped half-way, as in a crash, and repeated. Calls for one sandbox never overlap.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Makes the sandbox's network namespace and connects it. What an earlier call for the same sandbox left, finished or
    /// not, is removed first. After an error something may be left: [`PodNetwork::tear_down`] removes it.
    async fn set_up(&self, wish: &NetworkWish) -> Result<Attachment, NetworkError>;

    /// Looks whether the sandbox is connected as the set-up said.
    async fn check(&self, sandbox: &SandboxId) -> Result<(), NetworkError>;

    /// Removes everything that a set-up made. Success means that nothing is left; nothing was there is success, too.
    async fn tear_down(&self, sandbox: &SandboxId) -> Result<(), NetworkError>;

    /// Gives back what no sandbox has any more, of what this network made: nothing is taken from those that are `known` to the
    /// record, nor from others that may be connected. Called once after a start; a network that keeps no such things has nothing to do.
    async fn collect(&self, known: &[SandboxId]) -> Result<(), NetworkError> {
        let _ = known;
        Ok(())
    }

    /// Why no sandbox could be connected now; `None` when one could. Called often: it answers at once.
    fn problem(&self) -> Option<String>;

    /// From which ranges pods of this node get their addresses, for a network that wants to be told. It is kept.
    fn use_ranges(&self, ranges: &[Prefix]) -> Result<(), NetworkError>;
}

/// A sandbox that is to be connected.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkWish {
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// Its pod.
    pub pod: PodIdentity,
    /// The pod's DNS settings.
    pub dns: Dns,
    /// Ports of the node that lead to the pod.
    pub ports: Vec<PortMapping>,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A port of the node that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The pod's port.
    pub container_port: u16,
    /// The node's port; never 0.
    pub host_port: u16,
    /// The one address of the node, or all.
    pub host_ip: Option<IpAddr>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A connected sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Path of its network namespace on this node.
    pub namespace: PathBuf,
    /// The pod's addresses, best first.
    pub ips: Vec<IpAddr>,
    /// What the network says about DNS, for pods that say nothing.
    pub dns: Dns,
    /// How the namespace looks from inside.
    pub layout: NetworkLayout,
}

/// Interfaces of a pod, and what leads where: everything that a network stack of its own needs to stand in for the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkLayout {
    /// All interfaces but loopback.
    pub interfaces: Vec<Interface>,
    /// In an order in which they can be added.
    pub routes: Vec<Route>,
    /// Link addresses that nobody would answer for.
    pub neighbours: Vec<Neighbour>,
}

impl NetworkLayout {
    /// What its interfaces are called.
    pub fn names(&self) -> Vec<String> {
        self.interfaces.iter().map(|interface| interface.name.clone()).collect()
    }
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name in the pod.
    pub name: String,
    /// Its link address ("02:00:00:00:00:01").
    pub mac: String,
    /// The most bytes of one packet.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network: at most 32, or 128.
    pub length: u8,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Prefix,
    /// By way of whom; `None` where the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Name of the interface.
    pub interface: String,
    /// The address to send from, where it is not to be chosen.
    pub source: Option<IpAddr>,
    /// Smaller ones win; 0 is the kernel's choice.
    pub metric: u32,
    /// The gateway is taken to be on the link even if no route leads to it.
    pub on_link: bool,
}

/// A link address that is known beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Whose.
    pub ip: IpAddr,
    /// Its link address.
    pub mac: String,
    /// Name of the interface.
    pub interface: String,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

impl std::str::FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let invalid = || PrefixError(text.to_owned());
        let (ip, length) = text.split_once('/').ok_or_else(invalid)?;
        let ip: IpAddr = ip.parse().map_err(|_| invalid())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let length = length.parse().ok().filter(|length| *length <= most).ok_or_else(invalid)?;
        Ok(Self { ip, length })
    }
}

/// A text that is no address with a prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with the length of its prefix, like 10.1.2.3/24")]
pub struct PrefixError(String);

/// Why a sandbox could not be connected, checked or disconnected.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NetworkError {
    /// What kind of failure.
    pub kind: FailureKind,
    /// One sentence.
    pub message: String,
    /// Why.
    #[source]
    pub cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl NetworkError {
    /// A failure without a cause of its own.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), cause: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_and_written() {
        for text in ["10.1.2.3/24", "0.0.0.0/0", "fd00::1/128"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        for text in ["", "10.1.2.3", "10.1.2.3/33", "::/129", "10.1.2.3/-1", "x/8"] {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError(text.to_owned())));
        }
    }
}
