//! What the agent and its containers use.

use infranetes_agent_protocol::v1::UsageResponse;
use infranetes_sdk::ErrorKind;
use infranetes_sdk::container::StatsRequest;
use tonic::Status;

use super::containers::{QUERY_TIMEOUT, context, provider};
use super::convert;
use crate::machine::Machine;

/// Counters now. A provider without counters leaves out the containers.
pub(super) async fn usage(machine: &Machine) -> Result<UsageResponse, Status> {
    let context = context("stats", "all", QUERY_TIMEOUT);
    let stats = match provider(machine).await?.stats(context, StatsRequest::default()).await {
        Ok(response) => response.stats,
        Err(error) if error.kind == ErrorKind::Unsupported => Vec::new(),
        Err(error) => return Err(convert::status(&error)),
    };
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Ok(UsageResponse {
        agent_rss_bytes: kib_of(
            &std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
            "VmRSS:",
        ),
        memory_total_bytes: kib_of(&memory, "MemTotal:"),
        memory_available_bytes: kib_of(&memory, "MemAvailable:"),
        containers: stats.into_iter().take(CONTAINERS_MAX).map(convert::container_usage).collect(),
    })
}

/// A line "NAME   123 kB", in bytes; 0 where there is none.
fn kib_of(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// What fits well into one message.
const CONTAINERS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_bytes() {
        assert_eq!(kib_of("MemTotal:  2048 kB\nMemFree: 1 kB\n", "MemTotal:"), 2 * 1024 * 1024);
        assert_eq!(kib_of("", "MemTotal:"), 0);
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(kib_of(&own, "VmRSS:") > 100_000);
    }
}
