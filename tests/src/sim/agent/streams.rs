//! What an agent tells by itself: how its containers are, and their output.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use infranetes_core::ids::ContainerId;
use infranetes_core::session::{
    LogChunk, LogSource, LogStream, ObservedContainer, ObservedState, SessionError, WatchEvent,
};
use infranetes_core::stats::{ContainerStats, CpuStats, StatsSample};

use super::{Agent, Line, no_such};

pub(super) struct Watcher {
    pub(super) line: Line,
    pub(super) told: Option<BTreeMap<ContainerId, (ObservedState, i32)>>,
    pub(super) ended: bool,
}

impl Watcher {
    pub(super) async fn next(&mut self) -> Option<Result<WatchEvent, SessionError>> {
        if self.ended {
            return None;
        }
        loop {
            let changed = self.line.fleet.changed.clone();
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            if let Err(error) = self.line.alive() {
                self.ended = true;
                return Some(Err(error));
            }
            let now = {
                let agents = self.line.fleet.agents.lock().unwrap_or_else(PoisonError::into_inner);
                agents.get(&self.line.machine).map(Agent::visible).unwrap_or_default()
            };
            let Some(told) = &mut self.told else {
                let all = now.iter().map(observed).collect();
                self.told = Some(now);
                return Some(Ok(WatchEvent::Snapshot(all)));
            };
            if let Some(entry) = now.iter().find(|(id, state)| told.get(*id) != Some(*state)) {
                told.insert(entry.0.clone(), *entry.1);
                return Some(Ok(WatchEvent::Changed(observed(entry))));
            }
            if let Some(gone) = told.keys().find(|id| !now.contains_key(*id)).cloned() {
                told.remove(&gone);
                return Some(Ok(WatchEvent::Removed(gone)));
            }
            // A machine that vanishes does not say goodbye.
            let _ = tokio::time::timeout(Duration::from_secs(10), changed).await;
        }
    }
}

/// What containers use: CPU time grows while they run. Sometimes it says nothing of them, as an agent in trouble does.
pub(super) struct Sampler {
    pub(super) line: Line,
    pub(super) period: Duration,
    pub(super) told: bool,
    pub(super) ended: bool,
}

impl Sampler {
    pub(super) async fn next(&mut self) -> Option<Result<StatsSample, SessionError>> {
        if self.ended {
            return None;
        }
        if std::mem::replace(&mut self.told, true) {
            tokio::time::sleep(self.period).await;
        }
        if let Err(error) = self.line.alive() {
            self.ended = true;
            return Some(Err(error));
        }
        let silent = self.line.fleet.draw(10) == 0;
        let agents = self.line.fleet.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let containers = agents.get(&self.line.machine).map(|agent| &agent.containers);
        let running = containers
            .into_iter()
            .flatten()
            .filter(|(_, one)| one.state == ObservedState::Running && !one.removed);
        let taken = self.line.fleet.born.elapsed();
        let usage_ns = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        let usage_ns = if silent { 0 } else { usage_ns };
        let stats = ContainerStats {
            cpu: CpuStats { usage_ns, ..CpuStats::default() },
            ..ContainerStats::default()
        };
        let containers = running.map(|(id, _)| (id.clone(), stats.clone())).collect();
        Some(Ok(StatsSample { taken, containers, ..StatsSample::default() }))
    }
}

fn observed((id, (state, exit_code)): (&ContainerId, &(ObservedState, i32))) -> ObservedContainer {
    let started = *state != ObservedState::Created;
    let ended = *state == ObservedState::Exited;
    ObservedContainer {
        id: id.clone(),
        state: *state,
        started_at: started.then_some(SystemTime::UNIX_EPOCH),
        finished_at: ended.then_some(SystemTime::UNIX_EPOCH),
        exit_code: *exit_code,
        reason: if ended { "Error".to_owned() } else { String::new() },
        message: String::new(),
        user: None,
    }
}

pub(super) struct SimOutput {
    pub(super) line: Line,
    pub(super) id: ContainerId,
    pub(super) sent: u64,
}

#[async_trait]
impl LogSource for SimOutput {
    async fn next(&mut self) -> Result<Option<LogChunk>, SessionError> {
        loop {
            let changed = self.line.fleet.changed.clone();
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            self.line.alive()?;
            let seen = {
                let agents = self.line.fleet.agents.lock().unwrap_or_else(PoisonError::into_inner);
                let agent = agents.get(&self.line.machine);
                agent.and_then(|agent| agent.containers.get(&self.id)).cloned()
            };
            let Some(container) = seen else { return Err(no_such()) };
            if self.sent < container.written {
                self.sent += 1;
                return Ok(Some(LogChunk {
                    sequence: self.sent,
                    stream: LogStream::Stdout,
                    timestamp: SystemTime::UNIX_EPOCH,
                    data: b"line\n".to_vec(),
                }));
            }
            if container.state == ObservedState::Exited {
                return Ok(None);
            }
            let _ = tokio::time::timeout(Duration::from_secs(10), changed).await;
        }
    }

    async fn acknowledge(&mut self, sequence: u64) -> Result<(), SessionError> {
        let id = self.id.clone();
        self.line
            .call("acknowledge", move |agent| {
                if let Some(container) = agent.containers.get_mut(&id) {
                    container.acknowledged = container.acknowledged.max(sequence);
                }
                Ok(())
            })
            .await
    }
}
