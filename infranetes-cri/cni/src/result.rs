//! What a chain of plugins says that it made.

use std::net::IpAddr;

use infranetes_core::network::Prefix;
use infranetes_core::spec::Dns;
use serde::Deserialize;
use serde_json::Value;

/// A result, as far as the pod is concerned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Made {
    /// The pod's addresses, best first.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) dns: Dns,
}

/// Versions 0.3.0 to 1.1.0 agree on these fields.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    interfaces: Vec<RawInterface>,
    ips: Vec<RawIp>,
    dns: RawDns,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawInterface {
    name: String,
    sandbox: String,
}

#[derive(Deserialize)]
struct RawIp {
    address: String,
    interface: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawDns {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

/// Reads what a plugin answered to ADD: an object of the version that was spoken.
pub(crate) fn parse(output: &[u8], version: &str) -> Result<Value, String> {
    if output.iter().all(u8::is_ascii_whitespace) {
        return Err("nothing".to_owned());
    }
    let mut value: Value = serde_json::from_slice(output).map_err(|error| error.to_string())?;
    let Some(object) = value.as_object_mut() else { return Err("no object".to_owned()) };
    // Older plugins leave it out, and the next one in the chain wants it.
    object.entry("cniVersion").or_insert_with(|| version.into());
    read(&value)?;
    Ok(value)
}

/// What a result means for the pod whose first interface is called `interface`.
pub(crate) fn made(result: &Value, interface: &str) -> Result<Made, String> {
    let raw = read(result)?;
    let mut of_first = Vec::new();
    let mut of_others = Vec::new();
    for ip in &raw.ips {
        let address = ip.address.parse::<Prefix>().map_err(|error| error.to_string())?.ip;
        match ip.interface.map(|index| raw.interfaces.get(index)) {
            None => of_first.push(address),
            Some(None) => return Err("an address of an interface that it does not have".to_owned()),
            // The other end of the pod's interface, say, or a bridge.
            Some(Some(outside)) if outside.sandbox.is_empty() => {}
            Some(Some(inside)) if inside.name == interface => of_first.push(address),
            Some(Some(_)) => of_others.push(address),
        }
    }
    // As other runtimes have it: the pod's address is one of version 4 if there is one.
    if let Some(first) = of_first.iter().position(IpAddr::is_ipv4) {
        of_first[..=first].rotate_right(1);
    }
    of_first.extend(of_others);
    if of_first.len() > ADDRESSES_MAX {
        return Err(format!("{} addresses", of_first.len()));
    }
    let dns = Dns {
        servers: words(raw.dns.nameservers, |word| word.parse::<IpAddr>().is_ok()),
        searches: words(raw.dns.search, |_| true),
        options: words(raw.dns.options, |_| true),
    };
    Ok(Made { ips: of_first, dns })
}

fn read(result: &Value) -> Result<Raw, String> {
    Raw::deserialize(result).map_err(|error| error.to_string())
}

/// Each becomes a word of /etc/resolv.conf; what cannot be one is left out.
fn words(words: Vec<String>, fits: impl Fn(&str) -> bool) -> Vec<String> {
    let is_word = |word: &String| {
        (1..=253).contains(&word.len())
            && !word.contains(|c: char| c.is_whitespace() || c.is_control())
            && fits(word)
    };
    words.into_iter().filter(is_word).take(WORDS_MAX).collect()
}

const ADDRESSES_MAX: usize = 64;
const WORDS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_addresses_inside_count_and_the_best_is_first() {
        let result = json!({
            "interfaces": [
                {"name": "cni0", "mac": "aa"},
                {"name": "net1", "sandbox": "/run/ns"},
                {"name": "eth0", "sandbox": "/run/ns"},
            ],
            "ips": [
                {"address": "192.168.0.1/24", "interface": 0},
                {"address": "10.9.0.2/24", "interface": 1},
                {"address": "fd00::2/64", "interface": 2},
                {"version": "4", "address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 2},
                {"address": "10.1.0.3/16", "interface": 2},
            ],
            "dns": {"nameservers": ["10.0.0.10", "x"], "search": ["a.b", "two words"]},
        });
        let made = made(&result, "eth0").unwrap();
        let ips: Vec<String> = made.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.1.0.2", "fd00::2", "10.1.0.3", "10.9.0.2"]);
        assert_eq!(made.dns.servers, ["10.0.0.10"]);
        assert_eq!(made.dns.searches, ["a.b"]);
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for output in ["", "\n", "done", "[]", "{\"ips\": 3}", "{\"ips\": [{}]}"] {
            assert!(parse(output.as_bytes(), "1.0.0").is_err(), "{output:?}");
        }
        for ips in [
            json!([{"address": "10.0.0.1"}]),
            json!([{"address": "10.0.0.1/24", "interface": 4}]),
            json!(vec![json!({"address": "10.0.0.1/24"}); 65]),
        ] {
            assert!(made(&json!({"ips": ips}), "eth0").is_err());
        }
        assert_eq!(parse(b"{}", "0.4.0").unwrap(), json!({"cniVersion": "0.4.0"}));
    }
}
