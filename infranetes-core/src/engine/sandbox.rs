//! The task that owns one sandbox: it alone changes the record, runs one step at a time, and answers requests meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use infranetes_sdk::pod::Machine as SeenMachine;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::engine::admission::{Admission, Denial, SandboxWish, admit, standing};
use crate::engine::board::{Door, Reply, Request};
use crate::engine::boot::{self, Ended, Located, Submitted};
use crate::engine::calls::Calls;
use crate::engine::config::PhaseTimeouts;
use crate::engine::containers::Containers;
use crate::engine::life::{ContainerLife, Failure, Goal, Life, LogMark, Machine, UserData};
use crate::engine::link::{self, Opened, Taken};
use crate::engine::node::Node;
use crate::engine::plan::{self, Seen, Step};
use crate::error::{Cause, EngineError, FailureKind};
use crate::ids::{MachineId, SandboxId};
use crate::record::{Change, Table, sandbox};
use crate::session::{AgentSession, SessionError, WatchEvent};
use crate::status::{MachineInfo, Phase, SandboxStatus, Timeline};

/// The task's whole world.
pub(crate) struct SandboxTask {
    node: Arc<Node>,
    life: Life,
    seen: Seen,
    requests: mpsc::Receiver<Request>,
    link: watch::Sender<Option<Arc<dyn AgentSession>>>,
    events: Option<BoxStream<'static, Result<WatchEvent, SessionError>>>,
    containers: Containers,
    step: Option<Running>,
    /// Tells a create call that nobody wants its machine any more.
    abandon: watch::Sender<bool>,
    runs: Vec<Reply<SandboxId>>,
    stops: Vec<Reply<()>>,
    removes: Vec<Reply<()>>,
    /// The machine that an earlier process of this node began, by its try.
    resumed: Option<u32>,
    /// Why the last candidate was passed over.
    refusal: Option<Cause>,
    /// What is held is newer than what is durable.
    unsaved: bool,
    link_breaks: u32,
    link_since: Instant,
}

struct Running {
    step: Step,
    work: BoxFuture<'static, Outcome>,
}

/// How a step ended.
enum Outcome {
    Prepared(Result<Box<Machine>, Ended>),
    Submitted(Submitted),
    Located(Result<Located, Ended>),
    Opened(Result<Opened, Ended>),
    Taken(Result<Taken, SessionError>),
    Checked(Result<(), Ended>),
    Quiesced(Vec<String>),
    Gone,
    Forgotten(Result<(), EngineError>),
}

/// The task's ends of the channels that its door has.
pub(crate) type Room = (mpsc::Receiver<Request>, watch::Sender<Option<Arc<dyn AgentSession>>>);

/// Makes the channels of a task, and its way in.
pub(crate) fn door() -> (Door, Room) {
    let (sender, requests) = mpsc::channel(REQUESTS_MAX);
    let (link, receiver) = watch::channel(None);
    (Door { requests: sender, link: receiver }, (requests, link))
}

impl SandboxTask {
    pub(crate) fn new(
        node: Arc<Node>,
        life: Life,
        containers: Vec<(ContainerLife, LogMark)>,
        (requests, link): Room,
    ) -> Self {
        let containers = Containers::new(node.clone(), life.id.clone(), containers);
        Self {
            node,
            seen: Seen::default(),
            requests,
            link,
            events: None,
            containers,
            step: None,
            abandon: watch::Sender::new(false),
            runs: Vec::new(),
            stops: Vec::new(),
            removes: Vec::new(),
            resumed: None,
            refusal: None,
            unsaved: false,
            link_breaks: 0,
            link_since: Instant::now(),
            life,
        }
    }

    /// Runs a sandbox that is wanted for the first time: nothing happens before the wish is durable.
    pub(crate) async fn run_new(mut self) {
        if let Err(error) = self.save().await {
            self.node.board.remove(&self.life.id);
            self.requests.close();
            while let Some(request) = self.requests.recv().await {
                request.refuse(&error);
            }
            return;
        }
        self.publish();
        self.run().await;
    }

    /// Takes up a sandbox of the record.
    pub(crate) fn resume(&mut self) {
        self.resumed = Some(self.life.tries);
        self.publish();
        self.containers.publish_all();
    }

    /// Runs until the sandbox is forgotten.
    pub(crate) async fn run(mut self) {
        while self.turn().await {}
        self.node.board.remove(&self.life.id);
        for reply in self.removes.drain(..).chain(self.stops.drain(..)) {
            let _ = reply.send(Ok(()));
        }
        self.requests.close();
        let gone = EngineError::SandboxNotFound(self.life.id.clone());
        while let Some(request) = self.requests.recv().await {
            match request {
                Request::Stop(reply) | Request::Remove(reply) => {
                    let _ = reply.send(Ok(()));
                }
                other => other.refuse(&gone),
            }
        }
    }

    /// Waits for one thing and deals with it; false when the sandbox is forgotten.
    async fn turn(&mut self) -> bool {
        self.plan();
        self.settle_waiters();
        let step = async {
            match &mut self.step {
                Some(running) => running.work.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let event = async {
            match &mut self.events {
                Some(events) => events.next().await,
                None => std::future::pending().await,
            }
        };
        let unsaved = self.unsaved;
        tokio::select! {
            biased;
            request = self.requests.recv() => match request {
                Some(request) => self.admit(request).await,
                // The board holds a way in, so this is the end of the engine.
                None => return false,
            },
            outcome = step => {
                self.step = None;
                if let Outcome::Forgotten(Ok(())) = outcome {
                    return false;
                }
                self.apply(outcome).await;
            }
            event = event => self.observe(event).await,
            done = self.containers.next_done() => {
                let session = self.link.borrow().clone();
                self.containers.apply(done, session.as_ref()).await;
            }
            () = sleep(SAVE_AGAIN), if unsaved => self.save_or_later().await,
        }
        true
    }

    /// Begins the step that is planned, unless it runs already.
    fn plan(&mut self) {
        let wanted = plan::next(&self.life, &self.seen);
        if let Some(running) = &self.step {
            if running.step == wanted {
                return;
            }
            // A create call that is dropped half-way may still make a machine: it is told, and waited for.
            if running.step == Step::Submit {
                self.abandon.send_replace(true);
                return;
            }
        }
        self.step = self.begin(wanted).map(|work| Running { step: wanted, work });
    }

    fn begin(&mut self, step: Step) -> Option<BoxFuture<'static, Outcome>> {
        let node = self.node.clone();
        let life = self.life.clone();
        let resumed = self.resumed == Some(life.tries);
        let session = self.link.borrow().clone();
        let machine = self.life.machine.clone();
        let id = machine.as_ref().and_then(|machine| machine.id.clone()).map(|id| id.0);
        let limits = self.limits();
        Some(match (step, machine, id, session) {
            (Step::Prepare, ..) => {
                Box::pin(
                    async move { Outcome::Prepared(boot::prepare(node, life).await.map(Box::new)) },
                )
            }
            (Step::Submit, Some(machine), ..) => {
                self.abandon.send_replace(false);
                self.seen.submitted = true;
                self.publish();
                let abandon = self.abandon.subscribe();
                Box::pin(async move {
                    Outcome::Submitted(boot::submit(node, life, machine, resumed, abandon).await)
                })
            }
            (Step::Bind, _, _, Some(session)) => {
                Box::pin(
                    async move { Outcome::Taken(link::bind(life, session, limits.bind).await) },
                )
            }
            (Step::Quiesce, _, _, Some(session)) => {
                let containers = self.containers.alive();
                let drains = self.containers.drains();
                Box::pin(async move {
                    Outcome::Quiesced(link::quiesce(session, containers, drains).await)
                })
            }
            (Step::Forget, ..) => Box::pin(self.forget()),
            (Step::Rest, ..) => return None,
            (step, Some(machine), id, _) => {
                let calls = match node.calls(&life.spec.handler, &machine.provider) {
                    Ok(calls) => calls,
                    Err(error) => return Some(Box::pin(without_provider(node, life, step, error))),
                };
                self.with_provider(step, life, calls, machine, id.unwrap_or_default())
            }
            // The plan names these steps only with a machine, and with a session where one is needed.
            _ => return None,
        })
    }

    fn with_provider(
        &self,
        step: Step,
        life: Life,
        calls: Calls,
        machine: Machine,
        id: String,
    ) -> BoxFuture<'static, Outcome> {
        let node = self.node.clone();
        let limits = self.limits();
        let resumed = self.resumed == Some(life.tries);
        let pause = self.reopen_pause();
        match step {
            Step::AwaitRunning => Box::pin(async move {
                Outcome::Located(boot::await_running(node, life, calls, id, limits.boot).await)
            }),
            Step::Open => Box::pin(async move {
                Outcome::Opened(link::open(node, life, calls, machine, resumed, limits.enrol).await)
            }),
            Step::Reopen => Box::pin(async move {
                Outcome::Opened(link::reopen(node, life, calls, machine, pause).await)
            }),
            Step::Check => Box::pin(async move { Outcome::Checked(link::check(calls, id).await) }),
            Step::Settle => Box::pin(async move {
                boot::settle(node, life, calls, machine).await;
                Outcome::Gone
            }),
            _ => Box::pin(async move {
                boot::destroy(node, life, calls, id).await;
                Outcome::Gone
            }),
        }
    }

    fn limits(&self) -> PhaseTimeouts {
        let handler = self.node.config.handlers.get(&self.life.spec.handler);
        handler.map_or_else(PhaseTimeouts::default, |handler| handler.timeouts)
    }

    /// A session that breaks again and again is opened more and more slowly.
    fn reopen_pause(&self) -> Duration {
        match self.link_breaks {
            0 | 1 => Duration::ZERO,
            breaks => Duration::from_millis(100) * 2u32.pow(breaks.min(8)),
        }
    }

    // ---- requests

    async fn admit(&mut self, request: Request) {
        match request {
            Request::Run(reply) => self.admit_run(reply).await,
            Request::Stop(reply) => self.admit_end(SandboxWish::Stop, reply).await,
            Request::Remove(reply) => self.admit_end(SandboxWish::Remove, reply).await,
            Request::CreateContainer(spec, reply) => {
                match admit(standing(&self.life), SandboxWish::Host) {
                    Admission::Deny(denial) => {
                        let _ = reply.send(Err(self.denied(denial)));
                    }
                    _ => {
                        let session = self.link.borrow().clone();
                        self.containers.create(&self.life, session.as_ref(), *spec, reply);
                    }
                }
            }
            Request::Container(id, request, reply) => {
                let session = self.link.borrow().clone();
                let machine_is = self.life.machine.as_ref().is_some_and(|machine| !machine.doomed);
                self.containers.ask(&id, request, session.as_ref(), machine_is, reply);
            }
            // While its session is away it looks anyway.
            Request::Doubt => self.seen.doubted = self.life.was_ready && self.seen.bound,
        }
    }

    async fn admit_run(&mut self, reply: Reply<SandboxId>) {
        match admit(standing(&self.life), SandboxWish::Run) {
            Admission::AlreadyDone => {
                let _ = reply.send(Ok(self.life.id.clone()));
            }
            Admission::Deny(denial) => {
                let _ = reply.send(Err(self.denied(denial)));
            }
            Admission::Join => wait_with(&mut self.runs, reply, &self.life.id),
            Admission::Accept => {
                self.life.failure = None;
                self.life.passed_over = 0;
                self.life.timeline =
                    Timeline { wanted: Some(self.node.now()), ..Timeline::default() };
                self.refusal = None;
                if let Err(error) = self.save().await {
                    self.life.failure = Some(Failure {
                        phase: Phase::Intended,
                        cause: Cause::of(error.kind(), &error),
                        console: String::new(),
                    });
                    let _ = reply.send(Err(error));
                    return;
                }
                self.publish();
                wait_with(&mut self.runs, reply, &self.life.id);
            }
        }
    }

    async fn admit_end(&mut self, wish: SandboxWish, reply: Reply<()>) {
        let waiters = if wish == SandboxWish::Stop { &mut self.stops } else { &mut self.removes };
        match admit(standing(&self.life), wish) {
            Admission::AlreadyDone => {
                let _ = reply.send(Ok(()));
                return;
            }
            Admission::Deny(denial) => {
                let _ = reply.send(Err(self.denied(denial)));
                return;
            }
            Admission::Join => return wait_with(waiters, reply, &self.life.id),
            Admission::Accept => {}
        }
        let before = self.life.goal;
        self.life.goal = if wish == SandboxWish::Stop { Goal::Stop } else { Goal::Remove };
        match self.save().await {
            Ok(()) => {}
            // A stop is done even where it cannot be written down: after a crash it is asked again.
            Err(_) if wish == SandboxWish::Stop => self.unsaved = true,
            Err(error) => {
                self.life.goal = before;
                let _ = reply.send(Err(error));
                return;
            }
        }
        let waiters = if wish == SandboxWish::Stop { &mut self.stops } else { &mut self.removes };
        wait_with(waiters, reply, &self.life.id);
        if wish == SandboxWish::Remove {
            self.node.board.release_key(&self.life.id);
        }
        self.containers.abandon_coming();
        let ending = EngineError::WrongState {
            subject: format!("sandbox {}", self.life.id),
            state: "ending".to_owned(),
            needed: "it was stopped before it was ready".to_owned(),
        };
        for reply in self.runs.drain(..) {
            let _ = reply.send(Err(ending.echo()));
        }
        self.publish();
    }

    fn denied(&self, denial: Denial) -> EngineError {
        let needed = match denial {
            Denial::NotReady => "it is not ready yet",
            Denial::MachineLost => "it has no machine any more; it can be stopped and removed",
            Denial::StoppedForGood => "it was stopped and does not start again",
            Denial::BeingRemoved => "it is being removed",
            Denial::NotRunning | Denial::HasExited | Denial::BeingStarted => "not now",
        };
        EngineError::WrongState {
            subject: format!("sandbox {}", self.life.id),
            state: format!("{:?}", plan::phase(&self.life, &self.seen)).to_lowercase(),
            needed: needed.to_owned(),
        }
    }

    /// Answers those whose wish is fulfilled.
    fn settle_waiters(&mut self) {
        if self.life.machine.is_none() && self.life.goal != Goal::Run {
            for reply in self.stops.drain(..) {
                let _ = reply.send(Ok(()));
            }
        }
        self.runs.retain(|reply| !reply.is_closed());
        self.stops.retain(|reply| !reply.is_closed());
        self.removes.retain(|reply| !reply.is_closed());
    }

    // ---- outcomes

    async fn apply(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Prepared(result) => self.prepared(result).await,
            Outcome::Submitted(submitted) => self.submitted(submitted).await,
            Outcome::Located(result) => self.located(result).await,
            Outcome::Opened(result) => self.opened(result).await,
            Outcome::Taken(result) => self.taken(result).await,
            Outcome::Checked(Ok(())) => self.seen.doubted = false,
            Outcome::Checked(Err(ended)) => self.ended(Phase::Ready, ended).await,
            Outcome::Quiesced(errors) => {
                if !errors.is_empty() {
                    tracing::info!(sandbox = %self.life.id, errors = ?errors, "the machine did not end its work cleanly; it is destroyed all the same");
                }
                self.seen.quiesced = true;
            }
            Outcome::Gone => self.gone().await,
            Outcome::Forgotten(Ok(())) => {}
            Outcome::Forgotten(Err(error)) => {
                tracing::warn!(sandbox = %self.life.id, error = %error, "the record could not be deleted yet");
            }
        }
        self.publish();
    }

    async fn prepared(&mut self, result: Result<Box<Machine>, Ended>) {
        let machine = match result {
            Ok(machine) => machine,
            Err(mut ended) => {
                if self.life.passed_over > 0
                    && let Some(refusal) = self.refusal.take()
                {
                    ended.cause = refusal;
                }
                return self.ended(Phase::Intended, ended).await;
            }
        };
        self.life.tries += 1;
        self.life.machine = Some(*machine);
        self.seen = Seen::default();
        // The intent has to be durable before the provider hears of it.
        if let Err(error) = self.save().await {
            self.life.machine = None;
            let cause = Cause::of(error.kind(), &error);
            self.ended(Phase::Intended, Ended::because(cause)).await;
        }
    }

    async fn submitted(&mut self, submitted: Submitted) {
        match submitted {
            Submitted::Named(seen) => {
                self.life.timeline.allocated = Some(self.node.now());
                if let Some(machine) = &mut self.life.machine {
                    machine.id = Some(MachineId(seen.id.clone()));
                    machine.user_data = UserData::default();
                }
                self.absorb(&seen);
                self.save_or_later().await;
            }
            Submitted::Refused { ended, uncertain } => {
                if let Some(machine) = &mut self.life.machine {
                    machine.doomed = true;
                }
                if !uncertain {
                    self.life.machine = None;
                }
                self.ended(Phase::Submitted, ended).await;
            }
        }
    }

    /// Takes over what the provider said with its answer, so that a machine that runs at once costs no further call.
    fn absorb(&mut self, seen: &SeenMachine) {
        let addresses = seen.addresses.clone().unwrap_or_default();
        if matches!(boot::judge(seen), boot::Judged::Runs) && !addresses.agent.is_empty() {
            self.runs_at(Located { endpoint: addresses.agent, ips: addresses.ips });
        }
    }

    fn runs_at(&mut self, located: Located) {
        self.seen.running = true;
        self.life.ips = located.ips;
        if let Some(machine) = &mut self.life.machine {
            machine.endpoint = located.endpoint;
        }
        let now = self.node.now();
        self.life.timeline.booted.get_or_insert(now);
    }

    async fn located(&mut self, result: Result<Located, Ended>) {
        match result {
            Ok(located) => self.runs_at(located),
            Err(ended) => self.ended(Phase::Allocated, ended).await,
        }
    }

    async fn opened(&mut self, result: Result<Opened, Ended>) {
        let opened = match result {
            Ok(opened) => opened,
            Err(ended) => {
                let phase = if self.life.was_ready { Phase::Ready } else { Phase::Booted };
                return self.ended(phase, ended).await;
            }
        };
        let hello = opened.session.hello().clone();
        let now = self.node.now();
        if let Some(machine) = &mut self.life.machine {
            machine.identity = Some(opened.identity);
            machine.boot_id = hello.boot_id;
            machine.kernel_release = hello.kernel_release;
        }
        if !self.life.was_ready {
            let kernel_started = now.checked_sub(hello.now);
            self.life.timeline.kernel_started = kernel_started;
            self.life.timeline.agent_started =
                kernel_started.and_then(|started| started.checked_add(hello.agent_started));
            self.life.timeline.enrolled = Some(now);
            self.save_or_later().await;
        }
        self.seen.session = true;
        self.seen.bound = false;
        self.link.send_replace(Some(opened.session));
    }

    async fn taken(&mut self, result: Result<Taken, SessionError>) {
        let taken = match result {
            Ok(taken) => taken,
            Err(error) => return self.not_taken(error).await,
        };
        self.seen.bound = true;
        self.link_since = Instant::now();
        self.events = Some(taken.events);
        if self.life.ips.is_empty() {
            self.life.ips = taken.bound.ips;
        }
        if !self.life.was_ready {
            self.life.was_ready = true;
            let now = self.node.now();
            self.life.timeline.bound = Some(now);
            self.life.timeline.ready = Some(now);
            self.save_or_later().await;
            self.publish();
        }
        for reply in self.runs.drain(..) {
            let _ = reply.send(Ok(self.life.id.clone()));
        }
    }

    async fn not_taken(&mut self, error: SessionError) {
        let broke = matches!(
            error.kind(),
            FailureKind::Unavailable | FailureKind::TimedOut | FailureKind::Internal
        );
        self.link_broke();
        if broke && (self.life.was_ready || self.link_breaks < BIND_BREAKS_MAX) {
            return;
        }
        let phase = if self.life.was_ready { Phase::Ready } else { Phase::Bound };
        self.ended(phase, Ended::because(Cause::from(&error))).await;
    }

    async fn observe(&mut self, event: Option<Result<WatchEvent, SessionError>>) {
        match event {
            Some(Ok(event)) => {
                let session = self.link.borrow().clone();
                if let Some(session) = session {
                    self.containers.observe(event, &session).await;
                }
            }
            Some(Err(error)) => {
                tracing::info!(sandbox = %self.life.id, error = %Cause::from(&error).chain(), "the session to the agent broke; it is opened again");
                self.link_broke();
            }
            None => self.link_broke(),
        }
        self.publish();
    }

    fn link_broke(&mut self) {
        self.events = None;
        self.link.send_replace(None);
        self.seen.session = false;
        self.seen.bound = false;
        self.containers.session_ended();
        let lasted = self.link_since.elapsed() >= LINK_STABLE;
        self.link_breaks = if lasted { 1 } else { self.link_breaks.saturating_add(1) };
    }

    /// The boot failed, or the machine is lost. What exists of the machine is destroyed.
    async fn ended(&mut self, phase: Phase, ended: Ended) {
        self.drop_link();
        if let Some(machine) = &mut self.life.machine {
            machine.doomed = true;
        }
        if ended.capacity
            && !self.life.was_ready
            && self.life.goal == Goal::Run
            && phase != Phase::Intended
        {
            self.life.passed_over += 1;
            self.refusal = Some(ended.cause);
            return self.save_or_later().await;
        }
        tracing::warn!(sandbox = %self.life.id, phase = ?phase, error = %ended.cause.chain(), "the sandbox failed");
        let failure = Failure { phase, cause: ended.cause, console: ended.console };
        if self.life.was_ready {
            let message = failure.cause.chain();
            self.containers.machine_gone("MachineLost", &message).await;
        }
        self.life.failure = Some(failure.clone());
        self.save_or_later().await;
        self.publish();
        for reply in self.runs.drain(..) {
            let _ = reply.send(Err(sandbox_failed(&failure)));
        }
    }

    async fn gone(&mut self) {
        self.drop_link();
        self.containers.machine_gone("Error", "its sandbox was stopped").await;
        self.life.machine = None;
        self.seen = Seen::default();
        self.save_or_later().await;
    }

    fn drop_link(&mut self) {
        if self.seen.session {
            self.link_broke();
        }
        self.seen = Seen { submitted: self.seen.submitted, ..Seen::default() };
    }

    fn forget(&self) -> impl Future<Output = Outcome> + Send + 'static + use<> {
        let node = self.node.clone();
        let mut changes = self.containers.deletions();
        changes.push(Change::Delete {
            table: Table::Sandboxes,
            key: self.life.id.as_str().to_owned(),
        });
        async move {
            let answer = node.commit(changes).await;
            if answer.is_err() {
                sleep(SAVE_AGAIN).await;
            }
            Outcome::Forgotten(answer)
        }
    }

    // ---- record and board

    async fn save(&mut self) -> Result<(), EngineError> {
        self.node.commit(vec![Change::Put(sandbox::encode(&self.life))]).await?;
        self.unsaved = false;
        Ok(())
    }

    /// For what the world tells again after a crash: the record may lag behind.
    async fn save_or_later(&mut self) {
        if let Err(error) = self.save().await {
            tracing::warn!(sandbox = %self.life.id, error = %error, "the record lags behind");
            self.unsaved = true;
        }
    }

    fn publish(&self) {
        let life = &self.life;
        let machine = life.machine.as_ref();
        let info = |machine: &Machine| {
            Some(MachineInfo {
                id: machine.id.clone()?,
                provider: machine.provider.clone(),
                machine_type: machine.shape.name.clone(),
                why: machine.why.clone(),
                kernel_release: machine.kernel_release.clone(),
            })
        };
        let status = SandboxStatus {
            id: life.id.clone(),
            spec: life.spec.clone(),
            phase: plan::phase(life, &self.seen),
            created_at: life.created_at,
            ips: life.ips.clone(),
            machine: machine.and_then(info),
            reason: life.failure.as_ref().map_or_else(String::new, |failure| failure.cause.chain()),
            timeline: life.timeline,
        };
        self.node.board.post(status, machine.map(|machine| machine.name.clone()));
    }
}

impl Request {
    /// Answers with an error whatever it is.
    pub(crate) fn refuse(self, error: &EngineError) {
        match self {
            Self::Run(reply) => drop(reply.send(Err(error.echo()))),
            Self::Stop(reply) | Self::Remove(reply) | Self::Container(_, _, reply) => {
                drop(reply.send(Err(error.echo())));
            }
            Self::CreateContainer(_, reply) => drop(reply.send(Err(error.echo()))),
            Self::Doubt => {}
        }
    }
}

/// Its provider is not there (a configuration that changed, a plugin that did not load): it is looked for again by the
/// next start of the engine; until then the machine is left as it is.
async fn without_provider(node: Arc<Node>, life: Life, step: Step, error: EngineError) -> Outcome {
    tracing::warn!(sandbox = %life.id, step = ?step, error = %error, "the machine's provider is not available");
    node.board.note(&life.id, &error.to_string());
    match step {
        Step::AwaitRunning | Step::Open => {
            let ended = Ended::because(Cause::of(error.kind(), &error));
            Outcome::Located(Err(ended))
        }
        _ => std::future::pending().await,
    }
}

fn sandbox_failed(failure: &Failure) -> EngineError {
    EngineError::SandboxFailed {
        phase: failure.phase,
        next: "what was made of its machine is destroyed, and asking again starts over".to_owned(),
        console: failure.console.clone(),
        cause: failure.cause.clone(),
    }
}

fn wait_with<T>(waiters: &mut Vec<Reply<T>>, reply: Reply<T>, id: &SandboxId) {
    if waiters.len() < WAITERS_MAX {
        waiters.push(reply);
    } else {
        let busy = EngineError::Busy(format!("{WAITERS_MAX} calls wait for sandbox {id} already"));
        let _ = reply.send(Err(busy));
    }
}

const REQUESTS_MAX: usize = 64;
const WAITERS_MAX: usize = 64;
const SAVE_AGAIN: Duration = Duration::from_secs(5);
/// A session that lasted this long was a good one.
const LINK_STABLE: Duration = Duration::from_secs(30);
const BIND_BREAKS_MAX: u32 = 3;
