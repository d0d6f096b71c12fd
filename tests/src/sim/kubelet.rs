//! One pod's kubelet: it survives every crash of the engine, asks again until it has its answer, and knows what it was promised.

mod checkpoints;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use infranetes_core::engine::Engine;
use infranetes_core::error::{EngineError, FailureKind};
use infranetes_core::ids::{ContainerId, SandboxId};
use infranetes_core::spec::{
    ContainerResources, ContainerSpec, Dns, PidMode, PodIdentity, SandboxResources, SandboxSpec,
    SecuritySpec,
};
use infranetes_core::status::{ContainerState, Phase};
use tokio::time::{Instant, sleep, timeout};

use crate::sim::agent::LAST_WORDS;
use crate::sim::files;
use crate::sim::random::Random;
use crate::sim::world::World;

/// Drives one pod from its first wish until nothing of it is left.
pub struct Kubelet {
    world: Arc<World>,
    number: usize,
    random: Random,
}

/// What was promised once a container was said to run.
struct Running {
    sandbox: SandboxId,
    machine: String,
    container: ContainerId,
}

impl Kubelet {
    /// A kubelet for pod `number` of a world.
    pub fn new(world: Arc<World>, number: usize) -> Self {
        let random = Random::new(world.scenario.seed.wrapping_mul(31).wrapping_add(number as u64));
        Self { world, number, random }
    }

    /// The pod's whole life.
    pub async fn live(mut self) {
        sleep(Duration::from_millis(self.random.below(3000))).await;
        self.world.files.write_now(&files::config_of(&self.uid()), b"old");
        self.world.files.write_now(&files::last_words_of(&self.uid()), b"");
        if let Some(sandbox) = self.run().await
            && !self.is_restless()
            && let Some(container) = self.container(&sandbox).await
        {
            self.dwell(&sandbox, container).await;
        }
        self.clean_up().await;
    }

    async fn run(&mut self) -> Option<SandboxId> {
        for _ in 0..RUN_TRIES {
            let spec = self.sandbox_spec();
            if self.is_restless() {
                // Gives up on its first question, and asks again at once: the second joins.
                let patience = Duration::from_millis(self.random.below(4000));
                let engine = self.engine().await;
                let _ = timeout(patience, engine.run_sandbox(spec.clone())).await;
                self.world.seams.note(&format!("kubelet {}: gave up on run", self.number));
            }
            let answer = self
                .call("run", RUN_LIMIT, |engine| {
                    let spec = spec.clone();
                    async move { engine.run_sandbox(spec).await }
                })
                .await;
            match answer {
                Ok(id) => return Some(id),
                Err(error) => {
                    let early = self.is_restless();
                    if early || error.kind() == FailureKind::WrongState {
                        return None;
                    }
                    sleep(Duration::from_millis(500 + self.random.below(5000))).await;
                }
            }
        }
        None
    }

    async fn container(&mut self, sandbox: &SandboxId) -> Option<ContainerId> {
        for _ in 0..CONTAINER_TRIES {
            let volumes = files::mounts_of(&self.uid());
            let spec = ContainerSpec { volumes, ..plain_container() };
            let answer = self
                .call("create container", CALL_LIMIT, |engine| {
                    let (sandbox, spec) = (sandbox.clone(), spec.clone());
                    async move { engine.create_container(&sandbox, spec).await }
                })
                .await;
            let id = match answer {
                Ok(id) => id,
                Err(_) => {
                    sleep(Duration::from_secs(2)).await;
                    continue;
                }
            };
            let answer = self
                .call("start container", CALL_LIMIT, |engine| {
                    let id = id.clone();
                    async move { engine.start_container(&id).await }
                })
                .await;
            match answer {
                Ok(()) => return Some(id),
                Err(_) => sleep(Duration::from_secs(2)).await,
            }
        }
        None
    }

    /// The pod works for a while; whatever happens to the engine meanwhile, it is not disturbed.
    async fn dwell(&mut self, sandbox: &SandboxId, container: ContainerId) {
        let engine = self.engine().await;
        let Some(status) = engine.sandbox(sandbox) else {
            return self.broken("a sandbox that was ready is not known");
        };
        let Some(machine) = status.machine else { return self.ended_alone(sandbox).await };
        let running = Running { sandbox: sandbox.clone(), machine: machine.id.0, container };
        let mut used_ns = 0;
        for _ in 0..1 + self.random.below(4) {
            sleep(Duration::from_millis(self.random.below(20_000))).await;
            self.world.fleet.write_something();
            let container = running.container.clone();
            let _ = self
                .call("exec", CALL_LIMIT, |engine| {
                    let container = container.clone();
                    async move {
                        let args = vec!["true".to_owned()];
                        engine.exec_sync(&container, args, Some(Duration::from_secs(5))).await
                    }
                })
                .await;
            used_ns = self.has_not_gone_back(&running.container, used_ns).await;
            self.changes_limits(&running.container).await;
        }
        self.configuration_follows(&running).await;
        self.is_undisturbed(&running).await;
        self.stop_container(&running).await;
    }

    /// Figures may be missing after a crash, until the machine told again; what is shown never goes back.
    async fn has_not_gone_back(&self, container: &ContainerId, before_ns: u64) -> u64 {
        let counted = self.engine().await.container_stats(container);
        let Some(counted) = counted else { return before_ns };
        let now_ns = counted.stats.cpu.usage_ns;
        if now_ns < before_ns {
            self.broken(&format!("CPU time went back from {before_ns} to {now_ns}"));
        }
        now_ns
    }

    /// Limits that were said to hold are shown, over crashes too.
    async fn changes_limits(&mut self, container: &ContainerId) {
        let cpu_shares = 2 + self.random.below(1000);
        let resources = ContainerResources { cpu_shares, ..ContainerResources::default() };
        let answer = self
            .call("update container", CALL_LIMIT, |engine| {
                let (id, resources) = (container.clone(), resources.clone());
                async move { engine.update_container(&id, resources).await }
            })
            .await;
        if answer.is_err() {
            return;
        }
        sleep(Duration::from_millis(self.random.below(2000))).await;
        let shown = self.engine().await.container(container);
        if shown.is_none_or(|status| status.spec.resources.cpu_shares != cpu_shares) {
            self.broken("limits that were said to hold are not shown");
        }
    }

    /// A change of the pod's configuration reaches its machine: at once on a good day, else once the engine can.
    async fn configuration_follows(&self, running: &Running) {
        self.world.files.write_now(&files::config_of(&self.uid()), b"new");
        let begin = Instant::now();
        while begin.elapsed() < FOLLOW_LIMIT {
            let contents = self.world.fleet.contents(&running.machine);
            let alone = self.world.cloud.machine(&running.machine).is_none();
            if alone || contents.iter().any(|content| content == b"new") {
                let late = begin.elapsed() > Duration::from_secs(2);
                if late && self.world.scenario.is_calm() {
                    self.broken("a change of the configuration came late");
                }
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.broken("a change of the configuration did not come");
    }

    /// What a container wrote is on the node once it is said to have exited.
    async fn last_words_are_there(&self, running: &Running) {
        let engine = self.engine().await;
        let Some(status) = engine.container(&running.container) else { return };
        // Where the machine did not say how it ended, there is a sentence instead.
        let said = status.state == ContainerState::Exited && status.message.is_empty();
        let words = self.world.files.read_now(&files::last_words_of(&self.uid()));
        if said && words != LAST_WORDS {
            self.broken("a container was said to have exited before what it wrote was there");
        }
    }

    async fn is_undisturbed(&self, running: &Running) {
        let engine = self.engine().await;
        if self.world.cloud.machine(&running.machine).is_none() {
            return self.ended_alone(&running.sandbox).await;
        }
        match engine.sandbox(&running.sandbox) {
            None => self.broken("a running sandbox was lost from the record"),
            Some(status) => {
                let machine = status.machine.map(|machine| machine.id.0);
                if machine.as_ref() != Some(&running.machine) && status.phase == Phase::Ready {
                    self.broken("a running sandbox changed its machine");
                }
                if status.phase != Phase::Ready && !self.world.scenario.mortal {
                    self.broken(&format!(
                        "a running sandbox became {:?}: {}",
                        status.phase, status.reason
                    ));
                }
            }
        }
        match engine.container(&running.container) {
            None => self.broken("a running container was lost from the record"),
            Some(status)
                if status.state != ContainerState::Running && !self.world.scenario.mortal =>
            {
                self.broken(&format!("a running container became {:?}", status.state));
            }
            Some(_) => {}
        }
        if self.world.fleet.starts(&running.container) != 1 {
            self.broken("a container was not started exactly once");
        }
    }

    /// Its machine is gone, and nobody asked for that.
    async fn ended_alone(&self, sandbox: &SandboxId) {
        if !self.world.scenario.mortal {
            return self.broken("a running machine was destroyed");
        }
        // Found out in a minute or two, and said.
        for _ in 0..60 {
            let engine = self.engine().await;
            match engine.sandbox(sandbox) {
                Some(status) if status.phase != Phase::Ready => return,
                None => {
                    return self
                        .broken("a sandbox whose machine vanished was lost from the record");
                }
                Some(_) => sleep(Duration::from_secs(5)).await,
            }
        }
        self.broken("a machine vanished, and its sandbox stayed ready for five minutes");
    }

    async fn stop_container(&mut self, running: &Running) {
        let id = &running.container;
        let stopped = self
            .until_done("stop container", |engine, _| {
                let id = id.clone();
                async move { engine.stop_container(&id, Duration::from_secs(4)).await }
            })
            .await;
        if stopped {
            self.last_words_are_there(running).await;
            self.log_is_whole(running).await;
        }
        let removed = self.random.percent(50);
        if removed {
            self.until_done("remove container", |engine, _| {
                let id = id.clone();
                async move { engine.remove_container(&id).await }
            })
            .await;
        }
    }

    /// Every chunk that the container wrote is in its file, once and in order; at the latest a while after it ended.
    async fn log_is_whole(&self, running: &Running) {
        let wanted = self.world.fleet.written(&running.container);
        for _ in 0..60 {
            let file = self.world.logs.read(&self.log_path());
            if file == (1..=wanted).collect::<Vec<_>>() {
                return;
            }
            // A machine that is gone took the rest of its output along.
            if self.world.cloud.machine(&running.machine).is_none() {
                let gap = file.iter().zip(1..).any(|(found, wanted)| *found != wanted);
                if gap {
                    self.broken(&format!("a log has gaps or repetitions: {file:?}"));
                }
                return;
            }
            sleep(Duration::from_secs(5)).await;
        }
        let file = self.world.logs.read(&self.log_path());
        self.broken(&format!("a log is {file:?} and should hold 1 to {wanted}"));
    }

    /// Stops and removes whatever the node shows of the pod, as the kubelet's garbage collection does.
    async fn clean_up(&mut self) {
        let uid = self.sandbox_spec().pod.uid;
        for _ in 0..CLEAN_TRIES {
            let engine = self.engine().await;
            let ours: Vec<SandboxId> = engine
                .sandboxes()
                .into_iter()
                .filter(|status| status.spec.pod.uid == uid)
                .map(|status| status.id)
                .collect();
            if ours.is_empty() {
                return;
            }
            for id in ours {
                if self.random.percent(70) {
                    self.until_done("stop", |engine, _| {
                        let id = id.clone();
                        async move { engine.stop_sandbox(&id).await }
                    })
                    .await;
                }
                self.until_done("remove", |engine, _| {
                    let id = id.clone();
                    async move { engine.remove_sandbox(&id).await }
                })
                .await;
            }
        }
        self.broken("a pod could not be removed");
    }

    /// Asks again until it is done; an end is promised.
    async fn until_done<F>(&mut self, what: &str, ask: impl Fn(Engine, u32) -> F) -> bool
    where
        F: Future<Output = Result<(), EngineError>>,
    {
        for number in 0..DONE_TRIES {
            match self.call(what, CALL_LIMIT, |engine| ask(engine, number)).await {
                Ok(()) => return true,
                Err(error) if error.kind() == FailureKind::NotFound => return true,
                Err(_) => sleep(Duration::from_secs(5)).await,
            }
        }
        self.broken(&format!("{what} was asked {DONE_TRIES} times and never done"));
        false
    }

    /// One question with its answer, over crashes: a call that dies with its engine is asked again.
    async fn call<T, F>(
        &self,
        what: &str,
        limit: Duration,
        ask: impl Fn(Engine) -> F,
    ) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        loop {
            let engine = self.engine().await;
            self.world.seams.note(&format!("kubelet {}: {what}", self.number));
            let answer = tokio::select! {
                biased;
                () = self.world.seams.crash() => continue,
                answer = timeout(limit, ask(engine)) => answer,
            };
            let Ok(answer) = answer else {
                self.broken(&format!("{what} did not answer within {limit:?}"));
                return Err(EngineError::Busy("it did not answer".to_owned()));
            };
            let words = match &answer {
                Ok(_) => "done".to_owned(),
                Err(error) => chain(error),
            };
            self.world.seams.note(&format!("kubelet {}: {what}: {words}", self.number));
            return answer;
        }
    }

    /// The engine of now; waits while the node is down.
    async fn engine(&self) -> Engine {
        loop {
            let engine = self.world.engine.borrow().clone();
            match engine.filter(|_| !self.world.seams.has_crashed()) {
                Some(engine) => return engine,
                None => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn is_restless(&mut self) -> bool {
        self.random.percent(self.world.scenario.restless_percent)
    }

    fn broken(&self, what: &str) {
        self.world.seams.note(&format!("BROKEN: pod {}: {what}", self.number));
        self.world.promises.broken(&format!("pod {}: {what}", self.number));
    }

    fn uid(&self) -> String {
        self.sandbox_spec().pod.uid
    }

    fn log_path(&self) -> PathBuf {
        let pod = self.sandbox_spec();
        pod.log_directory.join(plain_container().log_path)
    }

    fn sandbox_spec(&self) -> SandboxSpec {
        let name = format!("pod-{}", self.number);
        SandboxSpec {
            pod: PodIdentity {
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
                name: name.clone(),
            },
            handler: String::new(),
            hostname: name.clone(),
            dns: Dns::default(),
            labels: Default::default(),
            annotations: Default::default(),
            log_directory: PathBuf::from("/logs").join(name),
            resources: SandboxResources::default(),
            overhead: SandboxResources::default(),
            sysctls: Default::default(),
            pid_mode: PidMode::Container,
            ports: Vec::new(),
            users: None,
        }
    }
}

/// A container that asks for nothing special.
pub fn plain_container() -> ContainerSpec {
    ContainerSpec {
        name: "main".to_owned(),
        attempt: 0,
        image: "busybox".to_owned(),
        user_specified_image: "busybox".to_owned(),
        command: vec!["sleep".to_owned(), "1000".to_owned()],
        args: Vec::new(),
        working_dir: String::new(),
        env: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: "main/0.log".into(),
        tty: false,
        stdin: false,
        stdin_once: false,
        stop_signal: String::new(),
        resources: ContainerResources::default(),
        security: SecuritySpec::default(),
        pid_mode: None,
        mounts: Vec::new(),
        volumes: Vec::new(),
        devices: Vec::new(),
    }
}

fn chain(error: &EngineError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text.replace('\n', " | ")
}

/// What the kubelet allows; an answer that takes longer is a broken promise.
const RUN_LIMIT: Duration = Duration::from_secs(240);
const CALL_LIMIT: Duration = Duration::from_secs(120);
const RUN_TRIES: u32 = 12;
const CONTAINER_TRIES: u32 = 8;
const DONE_TRIES: u32 = 60;
/// Sessions may break again and again meanwhile.
const FOLLOW_LIMIT: Duration = Duration::from_secs(600);
const CLEAN_TRIES: u32 = 20;
