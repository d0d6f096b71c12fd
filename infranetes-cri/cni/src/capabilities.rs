//! What plugins may be told beyond their configuration, if they declare that they understand it
//! (<https://www.cni.dev/docs/conventions/>).

use infranetes_core::network::{NetworkWish, Prefix, Protocol};
use serde_json::{Map, Value, json};

use crate::error::CniError;
use crate::list::NetworkList;

/// All that could be told of a sandbox; what plugins do not declare they never see.
pub(crate) fn of(
    wish: &NetworkWish,
    ranges: &[Prefix],
    list: &NetworkList,
) -> Result<Map<String, Value>, CniError> {
    let mut all = Map::new();
    if !wish.ports.is_empty() {
        let needed =
            format!("a port of the node ({}) cannot lead to the pod", wish.ports[0].host_port);
        require(list, PORTS, needed)?;
        all.insert(PORTS.to_owned(), ports(wish));
    }
    if let Some(bandwidth) = bandwidth(wish)? {
        all.insert("bandwidth".to_owned(), bandwidth);
    }
    let dns = &wish.dns;
    if *dns != Default::default() {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        all.insert("dns".to_owned(), dns);
    }
    if !ranges.is_empty() {
        // One set for each range: a pod gets an address of each.
        let sets = ranges.iter().map(|range| json!([{"subnet": range.to_string()}]));
        all.insert("ipRanges".to_owned(), sets.collect());
    }
    if !wish.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(wish.annotations));
    }
    Ok(all)
}

fn require(list: &NetworkList, capability: &'static str, needed: String) -> Result<(), CniError> {
    match list.declares(capability) {
        true => Ok(()),
        false => Err(CniError::NoCapability { network: list.name.clone(), capability, needed }),
    }
}

fn ports(wish: &NetworkWish) -> Value {
    let ports = wish.ports.iter().map(|port| {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        let mut mapping = json!({
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": protocol,
        });
        if let Some(ip) = port.host_ip {
            mapping["hostIP"] = ip.to_string().into();
        }
        mapping
    });
    ports.collect()
}

/// Bits per second, from the annotations that Kubernetes documents. There is no limit on bursts.
fn bandwidth(wish: &NetworkWish) -> Result<Option<Value>, CniError> {
    let mut limits = Map::new();
    for (annotation, direction) in [
        ("kubernetes.io/ingress-bandwidth", "ingress"),
        ("kubernetes.io/egress-bandwidth", "egress"),
    ] {
        let Some(text) = wish.annotations.get(annotation) else { continue };
        let rate = rate(text).ok_or_else(|| {
            CniError::Wish(format!(
                "the annotation {annotation} is {text:?}, which is no rate from 1k to 1P"
            ))
        })?;
        limits.insert(format!("{direction}Rate"), rate.into());
        limits.insert(format!("{direction}Burst"), BURST.into());
    }
    Ok((!limits.is_empty()).then(|| limits.into()))
}

/// A quantity of Kubernetes without fractions: "10M", "1Gi", "64000".
fn rate(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let rate = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (1000..=1_000_000_000_000_000).contains(&rate).then_some(rate)
}

const PORTS: &str = "portMappings";
const BURST: u32 = u32::MAX - 8;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use infranetes_core::ids::SandboxId;
    use infranetes_core::network::PortMapping;
    use infranetes_core::spec::{Dns, PodIdentity};

    use super::*;

    fn wish() -> NetworkWish {
        let pod = PodIdentity {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u1".into(),
            attempt: 0,
        };
        NetworkWish {
            sandbox: SandboxId::from_random([7; 32]),
            pod,
            dns: Dns::default(),
            ports: Vec::new(),
            annotations: BTreeMap::new(),
        }
    }

    fn list(capabilities: Value) -> NetworkList {
        serde_json::from_value(json!({"name": "n", "version": "1.0.0", "disable_check": false,
            "plugins": [{"type": "p", "capabilities": capabilities}]}))
        .unwrap()
    }

    #[test]
    fn everything_that_is_known_can_be_told() {
        let mut wish = wish();
        assert!(of(&wish, &[], &list(json!({}))).unwrap().is_empty());
        wish.ports = vec![PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: Some("127.0.0.1".parse().unwrap()),
        }];
        wish.dns.servers = vec!["10.0.0.10".into()];
        let rate = ("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned());
        wish.annotations = BTreeMap::from([rate]);
        let ranges = ["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let told = of(&wish, &ranges, &list(json!({"portMappings": true}))).unwrap();
        let port = json!({"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"});
        assert_eq!(told["portMappings"], json!([port]));
        assert_eq!(told["bandwidth"]["egressRate"], 10_000_000);
        assert_eq!(told["dns"]["servers"], json!(["10.0.0.10"]));
        assert_eq!(told["ipRanges"][1], json!([{"subnet": "fd00::/64"}]));
        let error = of(&wish, &[], &list(json!({}))).unwrap_err().to_string();
        assert!(error.contains("\"portMappings\": a port of the node (5353)"), "{error}");
    }

    #[test]
    fn rates_are_quantities() {
        for (text, expected) in [
            ("64000", Some(64_000)),
            ("10M", Some(10_000_000)),
            ("1Gi", Some(1 << 30)),
            ("999", None),
            ("1.5M", None),
            ("M", None),
            ("-1M", None),
            ("99999999999999999999T", None),
        ] {
            assert_eq!(rate(text), expected, "{text}");
        }
    }
}
