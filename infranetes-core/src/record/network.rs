//! The part of a sandbox's record that is about its network.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::engine::life::Network;
use crate::network::{
    Attachment, Interface, Neighbour, NetworkLayout, PortMapping, Prefix, PrefixError, Protocol,
    Route,
};
use crate::spec::Dns;

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NetworkField {
    #[default]
    Own,
    Down,
    Unsettled,
    Up(Box<AttachmentField>),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct AttachmentField {
    namespace: String,
    ips: Vec<IpAddr>,
    dns_servers: Vec<String>,
    dns_searches: Vec<String>,
    dns_options: Vec<String>,
    interfaces: Vec<InterfaceField>,
    routes: Vec<RouteField>,
    neighbours: Vec<NeighbourField>,
}

#[derive(Serialize, Deserialize)]
struct InterfaceField {
    name: String,
    mac: String,
    mtu: u32,
    addresses: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct RouteField {
    destination: String,
    gateway: Option<IpAddr>,
    interface: String,
    source: Option<IpAddr>,
    metric: u32,
    on_link: bool,
}

#[derive(Serialize, Deserialize)]
struct NeighbourField {
    ip: IpAddr,
    mac: String,
    interface: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PortField {
    protocol: ProtocolField,
    container_port: u16,
    host_port: u16,
    host_ip: Option<IpAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ProtocolField {
    Tcp,
    Udp,
    Sctp,
}

impl NetworkField {
    /// Machines that bring their own network have no such field, as those of older builds.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Self::Own)
    }
}

impl From<&Network> for NetworkField {
    fn from(network: &Network) -> Self {
        match network {
            Network::Own => Self::Own,
            Network::Down => Self::Down,
            Network::Unsettled => Self::Unsettled,
            Network::Up(attachment) => Self::Up(Box::new(attachment_field(attachment))),
        }
    }
}

impl TryFrom<NetworkField> for Network {
    type Error = PrefixError;

    fn try_from(field: NetworkField) -> Result<Self, PrefixError> {
        Ok(match field {
            NetworkField::Own => Self::Own,
            NetworkField::Down => Self::Down,
            NetworkField::Unsettled => Self::Unsettled,
            NetworkField::Up(field) => Self::Up(Box::new(attachment(*field)?)),
        })
    }
}

fn attachment_field(attachment: &Attachment) -> AttachmentField {
    let layout = &attachment.layout;
    let interfaces = layout.interfaces.iter().map(|interface| InterfaceField {
        name: interface.name.clone(),
        mac: interface.mac.clone(),
        mtu: interface.mtu,
        addresses: interface.addresses.iter().map(ToString::to_string).collect(),
    });
    let routes = layout.routes.iter().map(|route| RouteField {
        destination: route.destination.to_string(),
        gateway: route.gateway,
        interface: route.interface.clone(),
        source: route.source,
        metric: route.metric,
        on_link: route.on_link,
    });
    let neighbours = layout.neighbours.iter().map(|neighbour| NeighbourField {
        ip: neighbour.ip,
        mac: neighbour.mac.clone(),
        interface: neighbour.interface.clone(),
    });
    AttachmentField {
        namespace: attachment.namespace.to_string_lossy().into_owned(),
        ips: attachment.ips.clone(),
        dns_servers: attachment.dns.servers.clone(),
        dns_searches: attachment.dns.searches.clone(),
        dns_options: attachment.dns.options.clone(),
        interfaces: interfaces.collect(),
        routes: routes.collect(),
        neighbours: neighbours.collect(),
    }
}

fn attachment(field: AttachmentField) -> Result<Attachment, PrefixError> {
    let interface = |field: InterfaceField| {
        let addresses = field.addresses.iter().map(|text| text.parse::<Prefix>());
        let addresses = addresses.collect::<Result<_, _>>()?;
        Ok(Interface { name: field.name, mac: field.mac, mtu: field.mtu, addresses })
    };
    let route = |field: RouteField| {
        Ok(Route {
            destination: field.destination.parse()?,
            gateway: field.gateway,
            interface: field.interface,
            source: field.source,
            metric: field.metric,
            on_link: field.on_link,
        })
    };
    let neighbour = |field: NeighbourField| Neighbour {
        ip: field.ip,
        mac: field.mac,
        interface: field.interface,
    };
    Ok(Attachment {
        namespace: field.namespace.into(),
        ips: field.ips,
        dns: Dns {
            servers: field.dns_servers,
            searches: field.dns_searches,
            options: field.dns_options,
        },
        layout: NetworkLayout {
            interfaces: field.interfaces.into_iter().map(interface).collect::<Result<_, _>>()?,
            routes: field.routes.into_iter().map(route).collect::<Result<_, _>>()?,
            neighbours: field.neighbours.into_iter().map(neighbour).collect(),
        },
    })
}

impl From<&PortMapping> for PortField {
    fn from(port: &PortMapping) -> Self {
        Self {
            protocol: match port.protocol {
                Protocol::Tcp => ProtocolField::Tcp,
                Protocol::Udp => ProtocolField::Udp,
                Protocol::Sctp => ProtocolField::Sctp,
            },
            container_port: port.container_port,
            host_port: port.host_port,
            host_ip: port.host_ip,
        }
    }
}

impl From<PortField> for PortMapping {
    fn from(field: PortField) -> Self {
        Self {
            protocol: match field.protocol {
                ProtocolField::Tcp => Protocol::Tcp,
                ProtocolField::Udp => Protocol::Udp,
                ProtocolField::Sctp => Protocol::Sctp,
            },
            container_port: field.container_port,
            host_port: field.host_port,
            host_ip: field.host_ip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_comes_back_as_it_was_written() {
        let up = Network::Up(Box::new(Attachment {
            namespace: "/run/netns/x".into(),
            ips: vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
            dns: Dns { servers: vec!["10.0.0.10".into()], ..Dns::default() },
            layout: NetworkLayout {
                interfaces: vec![Interface {
                    name: "eth0".into(),
                    mac: "02:00:00:00:00:01".into(),
                    mtu: 1450,
                    addresses: vec!["10.1.2.3/24".parse().unwrap(), "fd00::3/64".parse().unwrap()],
                }],
                routes: vec![Route {
                    destination: "0.0.0.0/0".parse().unwrap(),
                    gateway: Some("10.1.2.1".parse().unwrap()),
                    interface: "eth0".into(),
                    source: Some("10.1.2.3".parse().unwrap()),
                    metric: 7,
                    on_link: true,
                }],
                neighbours: vec![Neighbour {
                    ip: "10.1.2.1".parse().unwrap(),
                    mac: "02:00:00:00:00:02".into(),
                    interface: "eth0".into(),
                }],
            },
        }));
        for network in [Network::Own, Network::Down, Network::Unsettled, up] {
            let text = serde_json::to_string(&NetworkField::from(&network)).unwrap();
            let field: NetworkField = serde_json::from_str(&text).unwrap();
            assert_eq!(Network::try_from(field), Ok(network), "{text}");
        }
    }

    #[test]
    fn a_port_comes_back_as_it_was_written() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let host_ip = Some("127.0.0.1".parse().unwrap());
            let port = PortMapping { protocol, container_port: 80, host_port: 8080, host_ip };
            let text = serde_json::to_string(&PortField::from(&port)).unwrap();
            let field: PortField = serde_json::from_str(&text).unwrap();
            assert_eq!(PortMapping::from(field), port, "{text}");
        }
    }
}
