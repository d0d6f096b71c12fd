//! CPU and memory: of a pod, which sizes its machine, and of a container, which limits it.

use std::collections::BTreeMap;

use infranetes_core::spec::{ContainerResources, SandboxResources};

use super::{Refusal, check};
use crate::api::v1;

type Result<T> = std::result::Result<T, Refusal>;

/// What a pod asks for, or what its RuntimeClass adds. The limit decides where there is one, else the request; memory has
/// a limit only, because the kubelet sends no requests for it.
pub(super) fn of_sandbox(
    field: &str,
    resources: Option<v1::LinuxContainerResources>,
) -> Result<SandboxResources> {
    let Some(resources) = resources else { return Ok(SandboxResources::default()) };
    let checked = of_container(field, resources)?;
    let by_limit = u64::try_from(checked.cpu_quota_us)
        .ok()
        .filter(|quota| *quota > 0 && checked.cpu_period_us > 0)
        .map(|quota| (quota * 1000).div_ceil(checked.cpu_period_us));
    // The least that a cgroup can have stands for "nothing was asked for".
    let by_request = Some(checked.cpu_shares)
        .filter(|shares| *shares > LEAST_SHARES)
        .map(|shares| (shares * 1000).div_ceil(SHARES_OF_A_CPU));
    Ok(SandboxResources {
        cpu_millis: by_limit.or(by_request).unwrap_or_default(),
        memory_bytes: u64::try_from(checked.memory_limit_bytes).unwrap_or_default(),
    })
}

/// What a container may use.
pub(super) fn of_container(
    field: &str,
    resources: v1::LinuxContainerResources,
) -> Result<ContainerResources> {
    let at = |name: &str| format!("{field}.{name}");
    check::few(&at("hugepage_limits"), &resources.hugepage_limits, MAX_ENTRIES)?;
    let hugepages = resources.hugepage_limits.into_iter();
    Ok(ContainerResources {
        cpu_shares: unsigned(&at("cpu_shares"), resources.cpu_shares, 0..=MAX_SHARES)?,
        cpu_quota_us: check::number(&at("cpu_quota"), resources.cpu_quota, -1..=MAX_QUOTA_US)?,
        cpu_period_us: unsigned(&at("cpu_period"), resources.cpu_period, 0..=MAX_PERIOD_US)?,
        cpuset_cpus: cpuset(&at("cpuset_cpus"), resources.cpuset_cpus)?,
        cpuset_mems: cpuset(&at("cpuset_mems"), resources.cpuset_mems)?,
        memory_limit_bytes: memory(&at("memory_limit_in_bytes"), resources.memory_limit_in_bytes)?,
        memory_swap_limit_bytes: memory(
            &at("memory_swap_limit_in_bytes"),
            resources.memory_swap_limit_in_bytes,
        )?,
        oom_score_adj: check::number(&at("oom_score_adj"), resources.oom_score_adj, -1000..=1000)?,
        pids_limit: 0,
        unified: unified(&at("unified"), resources.unified)?,
        hugepage_limits: hugepages.map(|limit| (limit.page_size, limit.limit)).collect(),
    })
}

/// What a container may use from now on; 0 and empty keep what is, and -1 takes a limit of memory away.
pub fn changed_resources(
    resources: Option<v1::LinuxContainerResources>,
) -> Result<ContainerResources> {
    let resources = check::required("linux", resources)?;
    let endless = |bytes: i64| bytes == -1;
    let memory = endless(resources.memory_limit_in_bytes);
    let swap = endless(resources.memory_swap_limit_in_bytes);
    let mut changed = of_container("linux", resources)?;
    if memory {
        changed.memory_limit_bytes = -1;
    }
    if swap {
        changed.memory_swap_limit_bytes = -1;
    }
    Ok(changed)
}

/// What a pod asks for from now on, and what its machine needs on top; what is not said stays.
pub fn changed_size(
    resources: Option<v1::LinuxContainerResources>,
    overhead: Option<v1::LinuxContainerResources>,
) -> Result<(Option<SandboxResources>, Option<SandboxResources>)> {
    let size = |field: &str, value: Option<v1::LinuxContainerResources>| {
        value.map(|value| of_sandbox(field, Some(value))).transpose()
    };
    Ok((size("resources", resources)?, size("overhead", overhead)?))
}

/// The limits of a container, as they were given.
pub(super) fn to_cri(resources: &ContainerResources) -> v1::LinuxContainerResources {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let hugepages = resources.hugepage_limits.iter();
    v1::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period_us),
        cpu_quota: resources.cpu_quota_us,
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: hugepages
            .map(|(page_size, limit)| v1::HugepageLimit {
                page_size: page_size.clone(),
                limit: *limit,
            })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
    }
}

fn unsigned(field: &str, value: i64, range: std::ops::RangeInclusive<i64>) -> Result<u64> {
    check::number(field, value, range).map(i64::unsigned_abs)
}

/// -1 is a way to say "no limit".
fn memory(field: &str, value: i64) -> Result<i64> {
    check::number(field, value, -1..=MAX_MEMORY).map(|bytes| bytes.max(0))
}

fn cpuset(field: &str, value: String) -> Result<String> {
    if value.len() > 4096 || !value.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
    {
        return Err(Refusal::invalid(field, "has to be a list like \"0-2,4\""));
    }
    Ok(value)
}

fn unified(field: &str, values: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    let file_name = |key: &String| !key.is_empty() && !key.contains('/') && !key.starts_with('.');
    if let Some(key) = values.keys().find(|key| !file_name(key)) {
        return Err(Refusal::invalid(field, format!("{key:?} is no file of a cgroup")));
    }
    check::map(field, values)
}

const SHARES_OF_A_CPU: u64 = 1024;
const LEAST_SHARES: u64 = 2;
const MAX_SHARES: i64 = 262_144 * 4;
const MAX_PERIOD_US: i64 = 1_000_000;
/// 1024 CPUs for the longest period.
const MAX_QUOTA_US: i64 = 1024 * MAX_PERIOD_US;
const MAX_MEMORY: i64 = 64 << 40;
const MAX_ENTRIES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_as_large_as_the_pod_asks_for() {
        let of = |shares, quota, period, memory| v1::LinuxContainerResources {
            cpu_shares: shares,
            cpu_quota: quota,
            cpu_period: period,
            memory_limit_in_bytes: memory,
            ..Default::default()
        };
        let cases = [
            ("nothing said", of(0, 0, 0, 0), (0, 0)),
            ("the least of shares is nothing", of(2, 0, 100_000, 0), (0, 0)),
            ("requests alone", of(512, 0, 100_000, 0), (500, 0)),
            ("limits beat requests", of(512, 150_000, 100_000, 1 << 30), (1500, 1 << 30)),
            ("no limit", of(1024, -1, 100_000, -1), (1000, 0)),
            ("rounded up", of(3, 0, 0, 0), (3, 0)),
            ("quota without period", of(1024, 50_000, 0, 0), (1000, 0)),
        ];
        for (name, resources, (cpu_millis, memory_bytes)) in cases {
            let size = of_sandbox("r", Some(resources)).unwrap();
            assert_eq!(size, SandboxResources { cpu_millis, memory_bytes }, "{name}");
        }
        assert_eq!(of_sandbox("r", None), Ok(SandboxResources::default()));
    }

    #[test]
    fn what_a_container_was_given_comes_back_unchanged() {
        let given = v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: 999,
            cpuset_cpus: "0-2,4".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 1 }],
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            memory_swap_limit_in_bytes: 64 << 20,
        };
        assert_eq!(to_cri(&of_container("r", given.clone()).unwrap()), given);
    }
}
