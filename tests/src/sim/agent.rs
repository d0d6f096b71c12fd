//! Agents without machines: what an engine meets at the endpoints of the fake cloud. They outlive engines, and die with
//! their machines.

mod checkpoint;
mod connector;
mod duplex;
mod streams;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use infranetes_core::error::FailureKind;
use infranetes_core::ids::ContainerId;
use infranetes_core::session::duplex::{
    ExecStart, PortInputs, PortOutputs, ProgramInputs, ProgramOutputs,
};
use infranetes_core::session::{
    AgentHello, AgentSession, Binding, Bound, ContainerPlan, ExecRequest, ExecResult, LayerSource,
    LogSource, MachineImage, MachineUsage, ObservedState, SessionError, VolumeSource, WatchEvent,
};
use infranetes_core::spec::ContainerResources;
use infranetes_core::stats::StatsSample;
use infranetes_provider_fake::{FakeCloud, MachineView, Phase};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

pub use self::connector::SimConnector;
use self::streams::{Sampler, SimOutput, Watcher};
pub use self::volumes::LAST_WORDS;
use crate::sim::random::Random;
use crate::sim::seam::Seams;
use crate::sim::world::Promises;

/// All agents of a cloud.
#[derive(Debug)]
pub struct Fleet {
    cloud: FakeCloud,
    seams: Seams,
    promises: Arc<Promises>,
    agents: Mutex<BTreeMap<String, Agent>>,
    /// Wakes its waiters in their order, as a `watch` does not: one seed has to be one history.
    changed: Arc<Notify>,
    random: Mutex<Random>,
    /// How often of a hundred a call to an agent breaks the session.
    pub break_percent: u64,
    /// How long an agent's certificate is good for.
    pub certificate_life: Duration,
    /// How many more renewals of certificates fail.
    refuse_renewals: Mutex<u32>,
    /// Agents as they were when their machine was written to a directory.
    written_down: Mutex<BTreeMap<String, Agent>>,
    /// Machines' clocks begin with the fleet.
    born: Instant,
    connections: AtomicU64,
    open_sessions: Arc<AtomicU64>,
}

#[derive(Clone, Debug, Default)]
struct Agent {
    enrolled_as: Option<String>,
    /// When its certificate runs out.
    trusted_until: Option<Instant>,
    sandbox: String,
    containers: BTreeMap<ContainerId, Container>,
    volumes: BTreeMap<String, volumes::Volume>,
    /// A checkpoint is being made, or this was made of one and is not bound yet.
    holding: bool,
    /// Containers that stand still because of that.
    held: BTreeSet<ContainerId>,
    /// Sessions of an older number are cut.
    cut: u64,
}

#[derive(Clone, Debug)]
struct Container {
    state: ObservedState,
    starts: u32,
    written: u64,
    acknowledged: u64,
    exit_code: i32,
    resources: ContainerResources,
    /// Ids of what it has mounted.
    volumes: Vec<String>,
    /// Kept for the count of its starts; nobody sees it any more.
    removed: bool,
}

impl Fleet {
    /// The agents of `cloud`; every chance comes from `seed`.
    pub fn new(
        cloud: FakeCloud,
        seams: Seams,
        promises: Arc<Promises>,
        seed: u64,
        break_percent: u64,
        certificate_life: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            cloud,
            seams,
            promises,
            agents: Mutex::default(),
            changed: Arc::default(),
            random: Mutex::new(Random::new(seed)),
            break_percent,
            certificate_life,
            refuse_renewals: Mutex::default(),
            written_down: Mutex::default(),
            born: Instant::now(),
            connections: AtomicU64::default(),
            open_sessions: Arc::default(),
        })
    }

    /// How often a container was started, over all machines.
    pub fn starts(&self, id: &ContainerId) -> u32 {
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.values().filter_map(|agent| agent.containers.get(id)).map(|one| one.starts).sum()
    }

    /// How many chunks a container wrote.
    pub fn written(&self, id: &ContainerId) -> u64 {
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.values().filter_map(|agent| agent.containers.get(id)).map(|one| one.written).sum()
    }

    /// The contents of all volumes of a machine.
    pub fn contents(&self, machine: &str) -> Vec<Vec<u8>> {
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.get(machine).map(Agent::contents).unwrap_or_default()
    }

    /// Lets every running container write something.
    pub fn write_something(&self) {
        self.each(|agent| {
            let running = |one: &&mut Container| one.state == ObservedState::Running;
            agent.containers.values_mut().filter(running).for_each(|one| one.written += 1);
        });
    }

    /// Lets every running container end.
    pub fn end_all(&self) {
        self.each(|agent| agent.containers.values_mut().for_each(|one| end(one, 1)));
    }

    /// Cuts every session.
    pub fn cut_all(&self) {
        self.each(|agent| agent.cut += 1);
    }

    /// Lets the next `count` renewals of certificates fail.
    pub fn refuse_renewals(&self, count: u32) {
        *self.refuse_renewals.lock().unwrap_or_else(PoisonError::into_inner) = count;
    }

    /// How many renewals are still to fail.
    pub fn renewals_to_refuse(&self) -> u32 {
        *self.refuse_renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sessions were ever opened.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many sessions are open now: somebody holds them, their streams or their calls.
    pub fn open_sessions(&self) -> u64 {
        self.open_sessions.load(Ordering::SeqCst)
    }

    fn each(&self, change: impl Fn(&mut Agent)) {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.values_mut().for_each(change);
        drop(agents);
        self.changed.notify_waiters();
    }

    fn with<T>(&self, machine: &str, look: impl FnOnce(&mut Agent) -> T) -> T {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = look(agents.entry(machine.to_owned()).or_default());
        drop(agents);
        self.changed.notify_waiters();
        answer
    }

    fn machine_at(&self, endpoint: &str) -> Result<MachineView, SessionError> {
        let runs = |one: &MachineView| one.endpoint == endpoint && one.phase == Phase::Running;
        self.cloud.machines().into_iter().find(runs).ok_or_else(|| SessionError::NotYet {
            endpoint: endpoint.to_owned(),
            cause: "connection refused".into(),
        })
    }

    fn draw(&self, limit: u64) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).below(limit)
    }

    async fn travel(&self) {
        sleep(Duration::from_millis(1 + self.draw(20))).await;
    }
}

/// A session to one agent.
#[derive(Clone)]
struct Line {
    fleet: Arc<Fleet>,
    machine: String,
    cut: u64,
    hello: AgentHello,
    open: Arc<Open>,
}

/// Counts a session for as long as anybody has a part of it.
struct Open(Arc<AtomicU64>);

impl Open {
    fn new(count: Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct SimSession(Line);

impl Line {
    /// A call: the way there, the effect, the way back.
    async fn call<T>(
        &self,
        what: &str,
        effect: impl FnOnce(&mut Agent) -> Result<T, SessionError> + Send,
    ) -> Result<T, SessionError> {
        self.fleet.seams.pass(&format!("agent: before {what}")).await;
        self.fleet.travel().await;
        self.alive()?;
        let luck = self.fleet.draw(100);
        if luck < self.fleet.break_percent / 2 {
            return Err(self.break_down());
        }
        let answer = self.fleet.with(&self.machine, effect);
        if luck < self.fleet.break_percent {
            return Err(self.break_down());
        }
        self.fleet.seams.pass(&format!("agent: after {what}")).await;
        answer
    }

    fn alive(&self) -> Result<(), SessionError> {
        let runs =
            self.fleet.cloud.machine(&self.machine).is_some_and(|m| m.phase == Phase::Running);
        if runs && self.fleet.with_silently(&self.machine) == self.cut {
            Ok(())
        } else {
            Err(broken())
        }
    }

    fn break_down(&self) -> SessionError {
        self.fleet.with(&self.machine, |agent| agent.cut += 1);
        broken()
    }
}

impl Fleet {
    fn with_silently(&self, machine: &str) -> u64 {
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.get(machine).map_or(0, |agent| agent.cut)
    }
}

fn broken() -> SessionError {
    SessionError::Broken("connection reset".into())
}

fn refused(kind: FailureKind, message: &str) -> SessionError {
    SessionError::Refused { kind, message: message.to_owned() }
}

fn no_such() -> SessionError {
    refused(FailureKind::NotFound, "there is no such container")
}

fn end(container: &mut Container, exit_code: i32) {
    if container.state == ObservedState::Running {
        container.written += 1;
        container.exit_code = exit_code;
    }
    container.state = ObservedState::Exited;
}

#[async_trait]
impl AgentSession for SimSession {
    fn hello(&self) -> &AgentHello {
        &self.0.hello
    }

    async fn bind(&self, binding: &Binding) -> Result<Bound, SessionError> {
        let id = binding.sandbox.as_str().to_owned();
        self.0
            .call("bind", move |agent| {
                agent.is_bound_to(&id);
                if agent.sandbox.is_empty() || agent.sandbox == id {
                    agent.sandbox = id;
                    Ok(Bound { ips: vec!["10.1.2.3".to_owned()] })
                } else {
                    Err(refused(FailureKind::Conflict, "it serves another sandbox"))
                }
            })
            .await
    }

    async fn rotate_if_due(&self) -> Result<(), SessionError> {
        let fleet = &self.0.fleet;
        let life = fleet.certificate_life;
        let until = {
            let agents = fleet.agents.lock().unwrap_or_else(PoisonError::into_inner);
            agents.get(&self.0.machine).and_then(|agent| agent.trusted_until)
        };
        if until.is_none_or(|until| Instant::now() + life / 2 < until) {
            return Ok(());
        }
        self.0
            .call("rotate", |agent| {
                let mut refuse =
                    fleet.refuse_renewals.lock().unwrap_or_else(PoisonError::into_inner);
                if *refuse > 0 {
                    *refuse -= 1;
                    return Err(refused(FailureKind::Internal, "it cannot write its key"));
                }
                agent.trusted_until = Some(Instant::now() + life);
                Ok(())
            })
            .await
    }

    async fn rename(&self, agent_name: &str) -> Result<(), SessionError> {
        self.take_name(agent_name).await
    }

    async fn begin_checkpoint(&self, containers: &[ContainerId]) -> Result<(), SessionError> {
        self.stand_still(containers).await
    }

    async fn end_checkpoint(&self) -> Result<bool, SessionError> {
        self.go_on().await
    }

    async fn missing_layers(&self, image: &MachineImage) -> Result<Vec<String>, SessionError> {
        let all = image.layers.iter().map(|layer| layer.digest.clone()).collect();
        self.0.call("missing layers", |_| Ok(all)).await
    }

    async fn import_layers(&self, layers: Vec<LayerSource>) -> Result<(), SessionError> {
        drop(layers);
        self.0.call("import layers", |_| Ok(())).await
    }

    async fn create_container(
        &self,
        id: &ContainerId,
        plan: &ContainerPlan,
    ) -> Result<(), SessionError> {
        let id = id.clone();
        let volumes = volumes::ids(plan);
        let promises = self.0.fleet.promises.clone();
        self.0
            .call("create container", move |agent| {
                if !agent.has_all_of(plan) {
                    promises.broken("a container was made before its volumes were there");
                }
                agent.containers.entry(id).or_insert(Container {
                    state: ObservedState::Created,
                    starts: 0,
                    written: 0,
                    acknowledged: 0,
                    exit_code: 0,
                    resources: ContainerResources::default(),
                    volumes,
                    removed: false,
                });
                Ok(())
            })
            .await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), SessionError> {
        self.0
            .call("start container", |agent| {
                let container = agent.containers.get_mut(id).ok_or_else(no_such)?;
                match container.state {
                    ObservedState::Created => {
                        container.state = ObservedState::Running;
                        container.starts += 1;
                        container.written += 3;
                        Ok(())
                    }
                    ObservedState::Running => {
                        agent.held.remove(id);
                        Ok(())
                    }
                    ObservedState::Exited => Err(refused(FailureKind::WrongState, "it exited")),
                }
            })
            .await
    }

    async fn update_container(
        &self,
        id: &ContainerId,
        resources: &ContainerResources,
    ) -> Result<(), SessionError> {
        let resources = resources.clone();
        self.0
            .call("update container", move |agent| {
                let container = agent.containers.get_mut(id).ok_or_else(no_such)?;
                match container.state {
                    ObservedState::Exited => Err(refused(FailureKind::WrongState, "it exited")),
                    _ => {
                        container.resources = resources;
                        Ok(())
                    }
                }
            })
            .await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), SessionError> {
        sleep(grace / 4).await;
        self.0
            .call("stop container", |agent| {
                if let Some(container) = agent.containers.get_mut(id) {
                    end(container, 143);
                }
                Ok(())
            })
            .await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), SessionError> {
        self.0
            .call("remove container", |agent| {
                if let Some(container) = agent.containers.get_mut(id) {
                    end(container, 137);
                    container.removed = true;
                }
                Ok(())
            })
            .await
    }

    async fn exec_sync(&self, _: ExecRequest) -> Result<ExecResult, SessionError> {
        self.0.call("exec", |_| Ok(ExecResult::default())).await
    }

    async fn exec(
        &self,
        _: ExecStart,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, SessionError> {
        self.0.call("exec on streams", |_| Ok(())).await?;
        Ok(duplex::program(self.0.clone(), input))
    }

    async fn attach(
        &self,
        id: &ContainerId,
        input: ProgramInputs,
    ) -> Result<ProgramOutputs, SessionError> {
        self.0
            .call("attach", |agent| match agent.containers.get(id) {
                None => Err(no_such()),
                Some(container) if container.state == ObservedState::Running => Ok(()),
                Some(_) => Err(refused(FailureKind::WrongState, "it does not run")),
            })
            .await?;
        Ok(duplex::program(self.0.clone(), input))
    }

    async fn port_forward(&self, _: u16, input: PortInputs) -> Result<PortOutputs, SessionError> {
        self.0.call("port-forward", |_| Ok(())).await?;
        Ok(duplex::port(self.0.clone(), input))
    }

    async fn logs(&self, id: &ContainerId, after: u64) -> Result<Box<dyn LogSource>, SessionError> {
        let promises = self.0.fleet.promises.clone();
        self.0
            .call("logs", |agent| {
                let container = agent.containers.get(id).ok_or_else(no_such)?;
                if after < container.acknowledged {
                    promises.broken("output was asked for that was said to be durable");
                }
                Ok(())
            })
            .await?;
        Ok(Box::new(SimOutput { line: self.0.clone(), id: id.clone(), sent: after }))
    }

    async fn watch(
        &self,
    ) -> Result<BoxStream<'static, Result<WatchEvent, SessionError>>, SessionError> {
        self.0.call("watch", |_| Ok(())).await?;
        let watcher = Watcher { line: self.0.clone(), told: None, ended: false };
        Ok(Box::pin(futures::stream::unfold(watcher, |mut watcher| async move {
            watcher.next().await.map(|event| (event, watcher))
        })))
    }

    async fn stats(
        &self,
        period: Duration,
    ) -> Result<BoxStream<'static, Result<StatsSample, SessionError>>, SessionError> {
        self.0.call("stats", |_| Ok(())).await?;
        let sampler = Sampler { line: self.0.clone(), period, told: false, ended: false };
        Ok(Box::pin(futures::stream::unfold(sampler, |mut sampler| async move {
            sampler.next().await.map(|sample| (sample, sampler))
        })))
    }

    async fn put_volume(&self, source: VolumeSource) -> Result<(), SessionError> {
        self.put(source).await
    }

    async fn volumes(&self) -> Result<BTreeMap<String, String>, SessionError> {
        self.list().await
    }

    async fn read_volume(&self, id: &str, _: u64) -> Result<Option<Vec<u8>>, SessionError> {
        self.read(id).await
    }

    async fn usage(&self) -> Result<MachineUsage, SessionError> {
        self.0.call("usage", |_| Ok(MachineUsage::default())).await
    }

    async fn shutdown(&self, _: Duration) -> Result<(), SessionError> {
        self.0
            .call("shutdown", |agent| {
                agent.containers.values_mut().for_each(|container| end(container, 137));
                Ok(())
            })
            .await?;
        let (cloud, machine) = (self.0.fleet.cloud.clone(), self.0.machine.clone());
        let open = Arc::downgrade(&self.0.open);
        tokio::spawn(async move {
            let begin = Instant::now();
            while open.strong_count() > 0 && begin.elapsed() < FAREWELL {
                sleep(Duration::from_millis(10)).await;
            }
            cloud.power_off(&machine);
        });
        Ok(())
    }
}

impl Agent {
    fn visible(&self) -> BTreeMap<ContainerId, (ObservedState, i32)> {
        let there = self.containers.iter().filter(|(_, one)| !one.removed);
        there.map(|(id, one)| (id.clone(), (self.shown(id, one.state), one.exit_code))).collect()
    }
}

/// How long an agent waits for its node to hang up before it powers off.
const FAREWELL: Duration = Duration::from_millis(300);
