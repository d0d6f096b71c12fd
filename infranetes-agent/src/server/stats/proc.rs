//! What the kernel says in `/proc` of the machine as a whole. What cannot be read is 0.

use std::fs;

use infranetes_agent_protocol::v1::{CpuStats, MemoryStats, NetworkStats, Pressure, PressureStats};

/// Whether `/proc` counts for this agent's machine alone: it is the first process, and not merely of a namespace.
pub(super) fn is_first_process_of_the_kernel() -> bool {
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    std::process::id() == 1 && namespace.as_os_str() == FIRST_PID_NAMESPACE
}

/// CPU time of all that runs, the kernel's own work included.
pub(super) fn cpu() -> CpuStats {
    let mut cpu = cpu_of(&read("/proc/stat"));
    cpu.pressure = pressure("cpu");
    cpu
}

/// Memory that is not free for use.
pub(super) fn memory() -> MemoryStats {
    let mut memory = memory_of(&read("/proc/meminfo"), &read("/proc/vmstat"));
    memory.pressure = pressure("memory");
    memory
}

/// All interfaces; loopback only where there is no other.
pub(super) fn networks() -> Vec<NetworkStats> {
    networks_of(&read("/proc/self/net/dev"))
}

/// The interface of the default route, IPv4 first; empty without one.
pub(super) fn default_network() -> String {
    default_of(&read("/proc/self/net/route"), &read("/proc/self/net/ipv6_route"))
}

/// `None` where the kernel does not count it.
pub(super) fn pressure(what: &str) -> Option<PressureStats> {
    pressure_of(&fs::read_to_string(format!("/proc/pressure/{what}")).ok()?)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The first line: user, nice, system, idle, waiting, interrupts, soft interrupts, stolen, in ticks.
fn cpu_of(stat: &str) -> CpuStats {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
    let ns = |at: &[usize]| {
        let sum: u64 = at.iter().filter_map(|at| ticks.get(*at)).sum();
        sum.saturating_mul(TICK_NS)
    };
    let (user_ns, system_ns) = (ns(&[0, 1]), ns(&[2, 5, 6]));
    CpuStats { usage_ns: user_ns + system_ns, user_ns, system_ns, ..CpuStats::default() }
}

fn memory_of(meminfo: &str, vmstat: &str) -> MemoryStats {
    let bytes = |name: &str| value(meminfo, name).saturating_mul(1024);
    let (total, free) = (bytes("MemTotal:"), bytes("MemFree:"));
    MemoryStats {
        usage_bytes: total.saturating_sub(free),
        working_set_bytes: total.saturating_sub(bytes("MemAvailable:")),
        rss_bytes: bytes("AnonPages:"),
        cache_bytes: bytes("Cached:"),
        mapped_file_bytes: bytes("Mapped:"),
        kernel_bytes: bytes("Slab:") + bytes("KernelStack:") + bytes("PageTables:"),
        limit_bytes: total,
        swap_usage_bytes: bytes("SwapTotal:").saturating_sub(bytes("SwapFree:")),
        swap_limit_bytes: bytes("SwapTotal:"),
        page_faults: value(vmstat, "pgfault"),
        major_page_faults: value(vmstat, "pgmajfault"),
        oom_kills: value(vmstat, "oom_kill"),
        ..MemoryStats::default()
    }
}

/// The number after a word at the start of a line.
fn value(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().map(str::split_whitespace);
    lines
        .find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?)
        .unwrap_or(0)
}

/// Two lines of headings, then "eth0: BYTES PACKETS ERRORS DROPS …", eight words for each direction.
fn networks_of(dev: &str) -> Vec<NetworkStats> {
    let network = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> =
            counts.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
        let at = |at: usize| counts.get(at).copied().unwrap_or(0);
        Some(NetworkStats {
            name: name.trim().to_owned(),
            received_bytes: at(0),
            received_packets: at(1),
            receive_errors: at(2),
            receive_drops: at(3),
            sent_bytes: at(8),
            sent_packets: at(9),
            send_errors: at(10),
            send_drops: at(11),
        })
    };
    let mut all: Vec<_> = dev.lines().skip(2).filter_map(network).collect();
    // A pod without a network still has traffic with itself.
    if all.len() > 1 {
        all.retain(|network| network.name != "lo");
    }
    all.truncate(NETWORKS_MAX);
    all
}

fn default_of(route: &str, ipv6_route: &str) -> String {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    // Name, destination, gateway, flags, … ; then the mask as the eighth.
    let v4 = route.lines().skip(1).map(words).find_map(|words| {
        let is_default = words.get(1)? == "00000000" && words.get(7)? == "00000000";
        is_default.then(|| words[0].clone())
    });
    // Destination, length of its prefix, … ; the name is the last.
    let v6 = ipv6_route.lines().map(words).find_map(|words| {
        let name = words.last()?;
        let is_default = words.get(1)? == "00" && name != "lo";
        is_default.then(|| name.clone())
    });
    v4.or(v6).unwrap_or_default()
}

fn pressure_of(text: &str) -> Option<PressureStats> {
    let line = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let value =
            |key: &str| rest.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let percent = |key: &str| value(key).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        Some(Pressure {
            total_us: value("total").and_then(|text| text.parse().ok())?,
            avg10: percent("avg10"),
            avg60: percent("avg60"),
            avg300: percent("avg300"),
        })
    };
    Some(PressureStats { some: Some(line("some")?), full: line("full") })
}

/// A hundredth of a second on all of Linux, where programs can see it.
const TICK_NS: u64 = 10_000_000;
const NETWORKS_MAX: usize = 32;
/// The kernel gives the first of its pid namespaces this number, always.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_all_but_idle_waiting_and_stolen() {
        let cpu = cpu_of("cpu  10 1 20 1000 50 2 3 40 0 0\ncpu0 10 1 20 1000 50 2 3 40 0 0\n");
        assert_eq!((cpu.user_ns, cpu.system_ns), (11 * TICK_NS, 25 * TICK_NS));
        assert_eq!(cpu.usage_ns, 36 * TICK_NS);
        assert_eq!(cpu_of("").usage_ns, 0);
    }

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        let meminfo = "MemTotal: 100 kB\nMemFree: 30 kB\nMemAvailable: 60 kB\nCached: 25 kB\n";
        let memory = memory_of(meminfo, "pgfault 7\npgmajfault 2\noom_kill 1\n");
        assert_eq!((memory.usage_bytes, memory.working_set_bytes), (70 * 1024, 40 * 1024));
        assert_eq!((memory.page_faults, memory.major_page_faults, memory.oom_kills), (7, 2, 1));
    }

    #[test]
    fn interfaces_and_the_default_route_are_found() {
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n\
                   eth0: 100 2 3 4 0 0 0 0 200 5 6 7 0 0 0 0\nnet1:1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
        let found = networks_of(dev);
        assert_eq!(found.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["eth0", "net1"]);
        let eth0 = &found[0];
        assert_eq!((eth0.received_bytes, eth0.receive_errors, eth0.receive_drops), (100, 3, 4));
        assert_eq!((eth0.sent_bytes, eth0.send_errors, eth0.send_drops), (200, 6, 7));
        let lonely = networks_of("a\nb\nlo: 9 9\n");
        assert_eq!((lonely.len(), lonely[0].received_bytes), (1, 9));

        let route = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                     net1\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\n\
                     eth0\t00000000\t0200000A\t0003\t0\t0\t0\t00000000\n";
        assert_eq!(default_of(route, ""), "eth0");
        let zeros = "0".repeat(32);
        let v6 = format!(
            "{zeros} 00 {zeros} 00 {zeros} 00000400 1 0 00000003 net1\n{zeros} 00 {zeros} 00 {zeros} ffffffff 1 0 00200200 lo\n"
        );
        assert_eq!(default_of("", &v6), "net1");
        assert_eq!(default_of("", ""), "");
    }

    #[test]
    fn pressure_is_read_as_the_kernel_writes_it() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let found = pressure_of(text).unwrap();
        assert_eq!(found.some.map(|some| (some.avg10, some.total_us)), Some((1.5, 1234)));
        assert_eq!(found.full.map(|full| full.total_us), Some(7));
        assert_eq!(pressure_of(""), None);
    }
}
