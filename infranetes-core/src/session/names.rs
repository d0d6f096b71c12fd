//! A session to a machine that calls its containers by other ids than the node does: one that was made of a checkpoint, whose first pod
//! may be there with these ids.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::duplex::{ExecStart, PortInputs, PortOutputs, ProgramInputs, ProgramOutputs};
use super::{
    AgentHello, AgentSession, Binding, Bound, ContainerPlan, ExecRequest, ExecResult, LayerSource,
    LogSource, MachineImage, MachineUsage, SessionError, VolumeChanges, VolumeParts, VolumeScan,
    VolumeSource, WatchEvent,
};
use crate::ids::ContainerId;
use crate::mounts::Limits;
use crate::spec::ContainerResources;
use crate::stats::StatsSample;

/// Ids of containers on both sides. What is not in it has one id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerNames(BTreeMap<ContainerId, ContainerId>);

impl ContainerNames {
    /// By the node's ids, the machine's.
    pub(crate) fn new(names: BTreeMap<ContainerId, ContainerId>) -> Self {
        Self(names)
    }

    pub(crate) fn by_node(&self) -> &BTreeMap<ContainerId, ContainerId> {
        &self.0
    }

    /// What the machine calls it.
    pub(crate) fn machines(&self, id: &ContainerId) -> ContainerId {
        self.0.get(id).unwrap_or(id).clone()
    }

    /// What the node calls it.
    fn nodes(&self, id: ContainerId) -> ContainerId {
        let found = self.0.iter().find(|(_, machines)| **machines == id);
        found.map_or(id, |(nodes, _)| nodes.clone())
    }

    /// A session in which the node's ids count.
    pub(crate) fn translate(&self, session: Arc<dyn AgentSession>) -> Arc<dyn AgentSession> {
        match self.0.is_empty() {
            true => session,
            false => Arc::new(Translated { session, names: self.clone() }),
        }
    }

    fn event(&self, mut event: WatchEvent) -> WatchEvent {
        match &mut event {
            WatchEvent::Snapshot(all) => {
                all.iter_mut().for_each(|one| one.id = self.nodes(one.id.clone()));
            }
            WatchEvent::Changed(one) => one.id = self.nodes(one.id.clone()),
            WatchEvent::Removed(id) => *id = self.nodes(id.clone()),
        }
        event
    }

    fn sample(&self, mut sample: StatsSample) -> StatsSample {
        sample.containers.iter_mut().for_each(|(id, _)| *id = self.nodes(id.clone()));
        sample
    }
}

struct Translated {
    session: Arc<dyn AgentSession>,
    names: ContainerNames,
}

// A default of the trait would keep a call from the agent.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl AgentSession for Translated {
    fn hello(&self) -> &AgentHello {
        self.session.hello()
    }

    async fn bind(&self, binding: &Binding) -> Result<Bound, SessionError> {
        self.session.bind(binding).await
    }

    async fn rotate_if_due(&self) -> Result<(), SessionError> {
        self.session.rotate_if_due().await
    }

    async fn rename(&self, agent_name: &str) -> Result<(), SessionError> {
        self.session.rename(agent_name).await
    }

    async fn missing_layers(&self, image: &MachineImage) -> Result<Vec<String>, SessionError> {
        self.session.missing_layers(image).await
    }

    async fn import_layers(&self, layers: Vec<LayerSource>) -> Result<(), SessionError> {
        self.session.import_layers(layers).await
    }

    async fn create_container(
        &self,
        id: &ContainerId,
        plan: &ContainerPlan,
    ) -> Result<(), SessionError> {
        self.session.create_container(&self.names.machines(id), plan).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), SessionError> {
        self.session.start_container(&self.names.machines(id)).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), SessionError> {
        self.session.stop_container(&self.names.machines(id), grace).await
    }

    async fn update_container(
        &self,
        id: &ContainerId,
        resources: &ContainerResources,
    ) -> Result<(), SessionError> {
        self.session.update_container(&self.names.machines(id), resources).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), SessionError> {
        self.session.remove_container(&self.names.machines(id)).await
    }

    async fn exec_sync(&self, mut request: ExecRequest) -> Result<ExecResult, SessionError> {
        request.container = self.names.machines(&request.container);
        self.session.exec_sync(request).await
    }

    async fn exec(
        &self,
        mut start: ExecStart,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, SessionError> {
        start.container = self.names.machines(&start.container);
        self.session.exec(start, input).await
    }

    async fn attach(
        &self,
        id: &ContainerId,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, SessionError> {
        self.session.attach(&self.names.machines(id), input).await
    }

    async fn port_forward(
        &self,
        port: u16,
        input: PortInputs,
    ) -> Result<PortOutputs, SessionError> {
        self.session.port_forward(port, input).await
    }

    async fn logs(&self, id: &ContainerId, after: u64) -> Result<Box<dyn LogSource>, SessionError> {
        self.session.logs(&self.names.machines(id), after).await
    }

    async fn watch(
        &self,
    ) -> Result<BoxStream<'static, Result<WatchEvent, SessionError>>, SessionError> {
        let names = self.names.clone();
        let events = self.session.watch().await?;
        Ok(events.map(move |event| event.map(|event| names.event(event))).boxed())
    }

    async fn stats(
        &self,
        period: Duration,
    ) -> Result<BoxStream<'static, Result<StatsSample, SessionError>>, SessionError> {
        let names = self.names.clone();
        let samples = self.session.stats(period).await?;
        Ok(samples.map(move |sample| sample.map(|sample| names.sample(sample))).boxed())
    }

    async fn put_volume(&self, source: VolumeSource) -> Result<(), SessionError> {
        self.session.put_volume(source).await
    }

    async fn volumes(&self) -> Result<BTreeMap<String, String>, SessionError> {
        self.session.volumes().await
    }

    async fn read_volume(&self, id: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, SessionError> {
        self.session.read_volume(id, bytes_max).await
    }

    async fn scan_volume(
        &self,
        id: &str,
        known: &[u8],
        limits: Limits,
    ) -> Result<VolumeScan, SessionError> {
        self.session.scan_volume(id, known, limits).await
    }

    async fn read_entries(
        &self,
        id: &str,
        paths: Vec<PathBuf>,
    ) -> Result<VolumeParts, SessionError> {
        self.session.read_entries(id, paths).await
    }

    async fn put_entries(&self, id: &str, changes: VolumeChanges) -> Result<u64, SessionError> {
        self.session.put_entries(id, changes).await
    }

    async fn usage(&self) -> Result<MachineUsage, SessionError> {
        self.session.usage().await
    }

    async fn begin_checkpoint(&self, containers: &[ContainerId]) -> Result<(), SessionError> {
        let ids: Vec<_> = containers.iter().map(|id| self.names.machines(id)).collect();
        self.session.begin_checkpoint(&ids).await
    }

    async fn end_checkpoint(&self) -> Result<bool, SessionError> {
        self.session.end_checkpoint().await
    }

    async fn shutdown(&self, grace: Duration) -> Result<(), SessionError> {
        self.session.shutdown(grace).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{ObservedContainer, ObservedState};

    fn id(byte: u8) -> ContainerId {
        ContainerId::from_random([byte; 32])
    }

    fn observed(id: ContainerId) -> ObservedContainer {
        ObservedContainer {
            id,
            state: ObservedState::Running,
            started_at: None,
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            user: None,
        }
    }

    #[test]
    fn ids_of_the_machine_become_the_nodes_and_others_stay() {
        let names = ContainerNames::new(BTreeMap::from([(id(1), id(9))]));
        assert_eq!((names.machines(&id(1)), names.machines(&id(2))), (id(9), id(2)));
        let told = WatchEvent::Snapshot(vec![observed(id(9)), observed(id(2))]);
        let seen = WatchEvent::Snapshot(vec![observed(id(1)), observed(id(2))]);
        assert_eq!(names.event(told), seen);
        assert_eq!(names.event(WatchEvent::Removed(id(9))), WatchEvent::Removed(id(1)));
        let sample =
            StatsSample { containers: vec![(id(9), Default::default())], ..Default::default() };
        assert_eq!(names.sample(sample).containers[0].0, id(1));
    }
}
