//! The last figures of machines and containers. They are held until the sandbox or container is forgotten, also after its end,
//! and not over a restart: then the first sample of the machine fills them again.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use super::{Board, Inner};
use crate::ids::{ContainerId, SandboxId};
use crate::stats::{ContainerStats, Counted, CpuStats, MachineStats, StatsSample};
use crate::status::{ContainerState, ContainerStatus};

/// All figures of the node. Its lock is taken after the board's, never before.
#[derive(Default)]
pub(super) struct Counters {
    held: RwLock<Held>,
}

#[derive(Default)]
struct Held {
    machines: BTreeMap<SandboxId, Count<MachineStats>>,
    containers: BTreeMap<ContainerId, Count<ContainerStats>>,
    removed_cpu_ns: BTreeMap<SandboxId, u64>,
}

impl Board {
    /// Takes a sample over. Only containers of this sandbox that have not ended count, whatever the machine names.
    pub(crate) fn count(&self, sandbox: &SandboxId, sample: StatsSample, now: SystemTime) {
        let inner = self.read();
        if !inner.sandboxes.contains_key(sandbox) {
            return;
        }
        let StatsSample { taken, machine, containers } = sample;
        let mut held = self.counters.held.write().unwrap_or_else(PoisonError::into_inner);
        Count::enter(&mut held.machines, sandbox, taken, machine, now);
        for (id, stats) in containers {
            let counts = |one: &ContainerStatus| {
                one.sandbox == *sandbox && one.state != ContainerState::Exited
            };
            // An agent in trouble says 0; what ran has used some.
            if stats.cpu.usage_ns > 0 && inner.containers.get(&id).is_some_and(counts) {
                Count::enter(&mut held.containers, &id, taken, stats, now);
            }
        }
    }

    /// The last figures of a sandbox's machine.
    pub(crate) fn machine_stats(&self, id: &SandboxId) -> Option<Arc<Counted<MachineStats>>> {
        let held = self.counters.held.read().unwrap_or_else(PoisonError::into_inner);
        held.machines.get(id).map(|count| count.last.clone())
    }

    /// CPU time of a sandbox's containers that were removed.
    pub(crate) fn removed_cpu_ns(&self, id: &SandboxId) -> u64 {
        let held = self.counters.held.read().unwrap_or_else(PoisonError::into_inner);
        held.removed_cpu_ns.get(id).copied().unwrap_or(0)
    }

    /// The last figures of a container.
    pub(crate) fn container_stats(&self, id: &ContainerId) -> Option<Arc<Counted<ContainerStats>>> {
        let held = self.counters.held.read().unwrap_or_else(PoisonError::into_inner);
        held.containers.get(id).map(|count| count.last.clone())
    }
}

impl Counters {
    /// A container that never ran has used nothing: nobody has to be asked for that.
    pub(super) fn begin(&self, container: &ContainerStatus) {
        if container.state != ContainerState::Created {
            return;
        }
        let nothing = Counted {
            at: container.created_at,
            stats: ContainerStats::default(),
            nano_cores: None,
        };
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.containers
            .entry(container.id.clone())
            .or_insert_with(|| Count { last: Arc::new(nothing), mark: None });
    }

    /// What it used goes on counting for its sandbox.
    pub(super) fn forget_container(&self, id: &ContainerId, sandbox: &SandboxId) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.containers.remove(id) {
            *held.removed_cpu_ns.entry(sandbox.clone()).or_default() +=
                count.last.stats.cpu.usage_ns;
        }
    }

    /// Keeps what the board still has.
    pub(super) fn forget_sandbox(&self, id: &SandboxId, inner: &Inner) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.machines.remove(id);
        held.removed_cpu_ns.remove(id);
        held.containers.retain(|id, _| inner.containers.contains_key(id));
    }
}

struct Count<T> {
    last: Arc<Counted<T>>,
    /// From where the rate is measured: the machine's clock, and CPU time then.
    mark: Option<(Duration, u64)>,
}

/// Figures with CPU time among them.
trait HasCpu {
    fn cpu(&self) -> Option<&CpuStats>;
    fn cpu_mut(&mut self) -> Option<&mut CpuStats>;
}

impl HasCpu for MachineStats {
    fn cpu(&self) -> Option<&CpuStats> {
        self.cpu.as_ref()
    }

    fn cpu_mut(&mut self) -> Option<&mut CpuStats> {
        self.cpu.as_mut()
    }
}

impl HasCpu for ContainerStats {
    fn cpu(&self) -> Option<&CpuStats> {
        Some(&self.cpu)
    }

    fn cpu_mut(&mut self) -> Option<&mut CpuStats> {
        Some(&mut self.cpu)
    }
}

impl<T: HasCpu> Count<T> {
    fn enter<K: Ord + Clone>(
        counts: &mut BTreeMap<K, Self>,
        key: &K,
        taken: Duration,
        mut stats: T,
        now: SystemTime,
    ) {
        let before = counts.get(key);
        let mut mark = before.and_then(|count| count.mark);
        let mut nano_cores = before.and_then(|count| count.last.nano_cores);
        if let Some(cpu) = stats.cpu_mut() {
            if let Some(known) = before.and_then(|count| count.last.stats.cpu()) {
                hold(cpu, known);
            }
            let elapsed = mark.map(|(since, _)| taken.checked_sub(since));
            match (mark, elapsed) {
                (Some((_, used)), Some(Some(elapsed))) if elapsed >= RATE_SPAN_MIN => {
                    nano_cores = Some(rate(cpu.usage_ns.saturating_sub(used), elapsed));
                    mark = Some((taken, cpu.usage_ns));
                }
                // Too close to say anything.
                (Some(_), Some(Some(_))) => {}
                // The first one, or a machine's clock that went back.
                _ => mark = Some((taken, cpu.usage_ns)),
            }
        }
        let last = Arc::new(Counted { at: now, stats, nano_cores });
        counts.insert(key.clone(), Self { last, mark });
    }
}

/// CPU time does not go back.
fn hold(cpu: &mut CpuStats, known: &CpuStats) {
    cpu.usage_ns = cpu.usage_ns.max(known.usage_ns);
    cpu.user_ns = cpu.user_ns.max(known.user_ns);
    cpu.system_ns = cpu.system_ns.max(known.system_ns);
}

fn rate(used_ns: u64, elapsed: Duration) -> u64 {
    let nanos = u128::from(used_ns) * 1_000_000_000 / elapsed.as_nanos().max(1);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// Over less than this, a rate is noise.
const RATE_SPAN_MIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: &[(u64, u64)]) -> (u64, Option<u64>) {
        let mut counts = BTreeMap::new();
        for (millis, usage_ns) in samples {
            let stats = ContainerStats {
                cpu: CpuStats { usage_ns: *usage_ns, ..CpuStats::default() },
                ..ContainerStats::default()
            };
            let taken = Duration::from_millis(*millis);
            Count::enter(&mut counts, &"c", taken, stats, SystemTime::UNIX_EPOCH);
        }
        let last = &counts["c"].last;
        (last.stats.cpu.usage_ns, last.nano_cores)
    }

    #[test]
    fn a_rate_needs_two_samples_that_are_apart_and_time_never_goes_back() {
        let second = 1_000_000_000;
        let cases = [
            (&[(0, 5)][..], (5, None)),
            (&[(0, 0), (2000, second)], (second, Some(second / 2))),
            (&[(0, 0), (10, 7)], (7, None)),
            (&[(0, 0), (10, 7), (1000, second)], (second, Some(second))),
            (&[(0, 0), (1000, second), (1100, 2 * second)], (2 * second, Some(second))),
            (&[(0, 9), (1000, 4)], (9, Some(0))),
            // A clock that went back begins anew.
            (&[(5000, 1), (1000, 2), (2000, second + 2)], (second + 2, Some(second))),
        ];
        for (samples, expected) in cases {
            assert_eq!(after(samples), expected, "{samples:?}");
        }
    }
}
