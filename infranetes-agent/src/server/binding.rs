//! Binding: the machine learns which sandbox it serves, and looks like that pod's host from then on.

use std::fmt::Write as _;
use std::path::PathBuf;

use infranetes_agent_protocol::v1::{BindRequest, BindResponse, Dns, HostsEntry, Network};
use tonic::Status;

use super::checkpoint;
use crate::interfaces::Layout;
use crate::lines::chain;
use crate::machine::{HOSTNAME, HOSTS, Interfaces, LOCAL_HOSTS, Machine, RESOLV_CONF};

/// Binds the machine. The same request again does the same again; another sandbox is refused.
pub(super) async fn bind(machine: &Machine, request: BindRequest) -> Result<BindResponse, Status> {
    let mut bound = machine.binding.lock().await;
    let before = bound.as_ref().map(|bound| bound.sandbox_id.clone());
    let restored = checkpoint::bind(machine, before.as_deref(), &request.sandbox_id).await;
    let past = bound.take_if(|_| restored);
    let taken = take(machine, &mut bound, request, past.as_ref());
    if taken.is_err() && restored {
        // It is nobody's then.
        *bound = past;
    }
    taken
}

/// Binds a machine that nobody else can bind meanwhile: it serves no sessions yet.
pub(crate) fn bind_first(machine: &Machine, request: BindRequest) -> Result<BindResponse, Status> {
    let mut bound = machine
        .binding
        .try_lock()
        .map_err(|_| Status::aborted("the machine is being bound already"))?;
    take(machine, &mut bound, request, None)
}

/// `past` is what the machine was bound to before it was made of a checkpoint.
fn take(
    machine: &Machine,
    bound: &mut Option<BindRequest>,
    request: BindRequest,
    past: Option<&BindRequest>,
) -> Result<BindResponse, Status> {
    check(&request)?;
    if let Some(other) = bound.as_ref().filter(|other| other.sandbox_id != request.sandbox_id) {
        return Err(Status::already_exists(format!(
            "this machine serves sandbox {}",
            other.sandbox_id
        )));
    }
    if let Some(network) =
        request.network.as_ref().filter(|_| machine.interfaces == Interfaces::Apart)
    {
        // What containers may have changed since is theirs.
        let before = bound.as_ref().and_then(|before| before.network.as_ref());
        if before != Some(network) {
            lay_out(network, past.and_then(|past| past.network.as_ref()))?;
        }
    }
    let ips = match &machine.interfaces {
        Interfaces::Given(ips) => ips.iter().map(ToString::to_string).collect(),
        Interfaces::Found | Interfaces::Apart => addresses(),
    };
    apply(machine, &request, &ips, past.is_some())?;
    if bound.is_none() {
        tracing::info!(
            sandbox = %request.sandbox_id,
            pod = %format_args!("{}/{}", request.pod_namespace, request.pod_name),
            "bound"
        );
    }
    *bound = Some(request);
    Ok(BindResponse { ips })
}

fn lay_out(network: &Network, past: Option<&Network>) -> Result<(), Status> {
    let layout = Layout::parse(network)?;
    let laid = match past {
        Some(past) => layout.take_over(&Layout::parse(past)?),
        None => layout.apply(),
    };
    laid.map_err(|error| Status::internal(chain(&error)))
}

fn apply(
    machine: &Machine,
    request: &BindRequest,
    ips: &[String],
    restored: bool,
) -> Result<(), Status> {
    let write = |name: &str, text: String| {
        std::fs::write(machine.etc.path(name), text)
            .map_err(|error| Status::internal(format!("the file {name} was not written: {error}")))
    };
    match request.dns.as_ref().filter(|dns| says_something(dns)) {
        Some(dns) => write(RESOLV_CONF, resolv_conf(dns))?,
        // What the pod of before said is nothing to this one.
        None if restored => {
            write(RESOLV_CONF, std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())?;
        }
        None => (),
    }
    let hostname = if request.hostname.is_empty() {
        nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
    } else {
        if machine.owned {
            nix::unistd::sethostname(&request.hostname)
                .map_err(|error| Status::internal(format!("the hostname was not set: {error}")))?;
        }
        request.hostname.clone()
    };
    write(HOSTNAME, format!("{hostname}\n"))?;
    write(HOSTS, hosts(&hostname, ips, &request.hosts))?;
    for (name, value) in &request.sysctls {
        set_sysctl(machine, name, value)?;
    }
    Ok(())
}

fn check(request: &BindRequest) -> Result<(), Status> {
    let invalid = |what: &str| Err(Status::invalid_argument(format!("{what} is not valid")));
    if request.sandbox_id.is_empty() || !is_word(&request.sandbox_id) {
        return invalid("sandbox_id");
    }
    if request.hostname.len() > HOSTNAME_BYTES_MAX || !is_word(&request.hostname) {
        return invalid("hostname");
    }
    let dns = request.dns.iter().flat_map(|dns| [&dns.servers, &dns.searches, &dns.options]);
    if !dns.flatten().all(|word| is_word(word)) {
        return invalid("dns");
    }
    if let Some(network) = &request.network {
        Layout::parse(network)?;
    }
    let hosts = request.hosts.iter();
    if !hosts.flat_map(|host| host.names.iter().chain([&host.ip])).all(|word| is_word(word)) {
        return invalid("hosts");
    }
    Ok(())
}

/// Text that stays one word in a file of words and lines.
fn is_word(text: &str) -> bool {
    text.len() <= WORD_BYTES_MAX && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

fn says_something(dns: &Dns) -> bool {
    !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty())
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

fn hosts(hostname: &str, ips: &[String], entries: &[HostsEntry]) -> String {
    let mut text = LOCAL_HOSTS.to_owned();
    let own = ips.first().map_or("127.0.1.1", String::as_str);
    if !hostname.is_empty() {
        let _ = writeln!(text, "{own} {hostname}");
    }
    for entry in entries {
        let _ = writeln!(text, "{} {}", entry.ip, entry.names.join(" "));
    }
    text
}

fn set_sysctl(machine: &Machine, name: &str, value: &str) -> Result<(), Status> {
    let path = sysctl_path(name)
        .ok_or_else(|| Status::invalid_argument(format!("{name:?} is no kernel parameter")))?;
    if !machine.owned {
        return Err(Status::unimplemented(format!(
            "kernel parameter {name} cannot be set: this agent shares its machine"
        )));
    }
    std::fs::write(path, value).map_err(|error| {
        Status::invalid_argument(format!("kernel parameter {name} was not set: {error}"))
    })
}

/// "net.core.somaxconn" or "net/core/somaxconn" (for names with dots in them) below /proc/sys.
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let name = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let plain = |part: &str| {
        !part.is_empty()
            && part != ".."
            && part != "."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    };
    (name.contains('/') && name.split('/').all(plain))
        .then(|| PathBuf::from("/proc/sys").join(name))
}

/// Addresses of the machine, loopback and link-local ones left out, IPv4 first.
fn addresses() -> Vec<String> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut ips: Vec<std::net::IpAddr> = interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| std::net::IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| std::net::IpAddr::V6(v6.ip())))
        })
        .filter(|ip| !ip.is_loopback() && !is_link_local(ip))
        .collect();
    ips.sort_by_key(std::net::IpAddr::is_ipv6);
    ips.dedup();
    ips.iter().take(ADDRESSES_MAX).map(ToString::to_string).collect()
}

fn is_link_local(ip: &std::net::IpAddr) -> bool {
    match ip {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The kernel's limit.
const HOSTNAME_BYTES_MAX: usize = 64;
const WORD_BYTES_MAX: usize = 255;
const ADDRESSES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_parameters_cannot_leave_their_directory() {
        let path = |name| sysctl_path(name).map(|path| path.display().to_string());
        assert_eq!(path("net.core.somaxconn").as_deref(), Some("/proc/sys/net/core/somaxconn"));
        assert_eq!(
            path("net/ipv4/conf/eth0.1/rp_filter").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.1/rp_filter")
        );
        for bad in ["", "kernel", "/etc/passwd", "../x", "net/../../x", "net//x", "a.b\n", "a..b"] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn files_below_etc_say_what_was_bound() {
        let dns = Dns {
            servers: vec!["10.0.0.10".into(), "10.0.0.11".into()],
            searches: vec!["a.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a.svc svc\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n"
        );
        let entry = HostsEntry { ip: "1.2.3.4".into(), names: vec!["db".into(), "db.x".into()] };
        assert_eq!(
            hosts("web", &["10.1.2.3".into()], &[entry]),
            format!("{LOCAL_HOSTS}10.1.2.3 web\n1.2.3.4 db db.x\n")
        );
    }

    #[test]
    fn words_that_would_become_lines_are_refused() {
        let ok = BindRequest { sandbox_id: "s1".into(), ..Default::default() };
        assert!(check(&ok).is_ok());
        let bad: [fn(&mut BindRequest); 5] = [
            |request| request.sandbox_id.clear(),
            |request| request.hostname = "a b".into(),
            |request| request.hostname = "a".repeat(65),
            |request| {
                request.dns =
                    Some(Dns { servers: vec!["1.1.1.1\noptions x".into()], ..Dns::default() });
            },
            |request| request.hosts = vec![HostsEntry { ip: "\n".into(), names: Vec::new() }],
        ];
        for change in bad {
            let mut request = ok.clone();
            change(&mut request);
            assert_eq!(check(&request).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
