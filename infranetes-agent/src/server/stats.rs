//! What the machine and its containers use, told to the node again and again: at once, soon after each start of a container,
//! and at the end of each period.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use infranetes_agent_protocol::v1::{MachineStats, StatsRequest, StatsResponse};
use infranetes_sdk::ErrorKind;
use infranetes_sdk::container::StatsRequest as SdkStatsRequest;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tonic::Status;

use super::containers::{QUERY_TIMEOUT, context, provider};
use super::{ResponseStream, convert};
use crate::machine::Machine;
use crate::times::now_us;

mod proc;

/// Samples without end.
pub(super) fn stats(
    machine: Arc<Machine>,
    request: &StatsRequest,
) -> ResponseStream<StatsResponse> {
    let mut ticks = interval(period(request.period_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let starts = machine.starts.subscribe();
    let sampler = Sampler { machine, ticks, starts, last: None };
    let samples = futures::stream::unfold(sampler, |mut sampler| async {
        let sample = sampler.next().await;
        Some((sample, sampler))
    });
    Box::pin(ending_with_an_error(samples))
}

/// The node begins anew after an error, and nobody asks for more after one.
fn ending_with_an_error(
    samples: impl futures::Stream<Item = Result<StatsResponse, Status>> + Send + 'static,
) -> impl futures::Stream<Item = Result<StatsResponse, Status>> + Send {
    samples.scan(false, |failed, sample| {
        let over = std::mem::replace(failed, sample.is_err());
        std::future::ready((!over).then_some(sample))
    })
}

struct Sampler {
    machine: Arc<Machine>,
    ticks: Interval,
    starts: watch::Receiver<u64>,
    last: Option<Instant>,
}

impl Sampler {
    async fn next(&mut self) -> Result<StatsResponse, Status> {
        tokio::select! {
            _ = self.ticks.tick() => {}
            // A machine that is shutting down has no starts any more.
            Ok(()) = self.starts.changed() => {
                if let Some(last) = self.last {
                    sleep_until(last + GAP).await;
                }
            }
        }
        self.starts.mark_unchanged();
        let sample = sample(&self.machine).await;
        self.last = Some(Instant::now());
        sample
    }
}

/// Counters now. A provider without counters leaves out the containers.
async fn sample(machine: &Machine) -> Result<StatsResponse, Status> {
    let context = context("stats", "all", QUERY_TIMEOUT);
    let stats = match provider(machine).await?.stats(context, SdkStatsRequest::default()).await {
        Ok(response) => response.stats,
        Err(error) if error.kind == ErrorKind::Unsupported => Vec::new(),
        Err(error) => return Err(convert::status(&error)),
    };
    Ok(StatsResponse {
        taken_us: now_us(),
        machine: Some(whole(machine)),
        containers: stats.into_iter().take(CONTAINERS_MAX).map(convert::container_stats).collect(),
    })
}

/// What `/proc` says is the machine's only where the agent is the first process of a kernel of its own; interfaces are the
/// pod's also in a network namespace of its own.
fn whole(machine: &Machine) -> MachineStats {
    let mut stats = MachineStats::default();
    if machine.owned {
        stats.networks = proc::networks();
        stats.default_network = proc::default_network();
    }
    if machine.owned && proc::is_first_process_of_the_kernel() {
        stats.cpu = Some(proc::cpu());
        stats.memory = Some(proc::memory());
        stats.io_pressure = proc::pressure("io");
    }
    stats
}

fn period(millis: u32) -> Duration {
    Duration::from_millis(millis.into()).clamp(PERIOD_MIN, PERIOD_MAX)
}

const PERIOD_MIN: Duration = Duration::from_secs(1);
const PERIOD_MAX: Duration = Duration::from_secs(3600);
/// Starts that follow each other so closely share a sample.
const GAP: Duration = Duration::from_millis(250);
/// What always fits into one message.
const CONTAINERS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_period_is_too_short_or_too_long() {
        for (millis, expected) in [(0, PERIOD_MIN), (10_000, Duration::from_secs(10))] {
            assert_eq!(period(millis), expected);
        }
        assert_eq!(period(u32::MAX), PERIOD_MAX);
    }

    #[tokio::test]
    async fn an_error_is_the_last_word() {
        let words =
            [Ok(StatsResponse::default()), Err(Status::internal("x")), Err(Status::internal("y"))];
        let told: Vec<_> = ending_with_an_error(futures::stream::iter(words)).collect().await;
        assert_eq!(told.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
    }
}
