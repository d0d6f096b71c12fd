//! The task that owns one sandbox: it alone changes the record, runs one step at a time, and answers requests meanwhile.

mod identity;
mod outcomes;
mod requests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::engine::board::{Door, Reply, Request};
use crate::engine::boot::{self, Ended, Located, Submitted};
use crate::engine::calls::Calls;
use crate::engine::config::PhaseTimeouts;
use crate::engine::connect;
use crate::engine::containers::Containers;
use crate::engine::life::{ContainerLife, Life, LogMark, Machine};
use crate::engine::link::{self, Opened, Taken};
use crate::engine::node::{Node, spread};
use crate::engine::plan::{self, Seen, Step};
use crate::engine::retry::Backoff;
use crate::error::{Cause, EngineError};
use crate::ids::SandboxId;
use crate::network::Attachment;
use crate::record::{Change, Table, sandbox};
use crate::session::{AgentSession, SessionError, WatchEvent};
use crate::status::{MachineInfo, SandboxStatus};

/// The task's whole world.
pub(crate) struct SandboxTask {
    node: Arc<Node>,
    life: Life,
    seen: Seen,
    requests: mpsc::Receiver<Box<Request>>,
    link: watch::Sender<Option<Arc<dyn AgentSession>>>,
    events: Option<BoxStream<'static, Result<WatchEvent, SessionError>>>,
    /// Looks after the session for as long as it lasts.
    upkeep: Option<BoxFuture<'static, Infallible>>,
    containers: Containers,
    step: Option<Running>,
    /// Tells a create call that nobody wants its machine any more.
    abandon: watch::Sender<bool>,
    runs: Vec<Reply<SandboxId>>,
    stops: Vec<Reply<()>>,
    removes: Vec<Reply<()>>,
    /// The machine that an earlier process of this node began, by its try.
    resumed: Option<u32>,
    disconnecting: Disconnecting,
    /// Why the last candidate was passed over.
    refusal: Option<Cause>,
    /// What is held is newer than what is durable.
    unsaved: bool,
    link_breaks: u32,
    link_since: Instant,
}

/// What is held between two tries to take the network down.
struct Disconnecting {
    backoff: Backoff,
    /// Before the next try.
    pause: Duration,
    /// Ends the pause.
    knock: Arc<Notify>,
}

impl Disconnecting {
    fn new(id: &SandboxId) -> Self {
        let backoff = Backoff::new(Duration::from_secs(1), spread(id));
        Self { backoff, pause: Duration::ZERO, knock: Arc::default() }
    }
}

struct Running {
    step: Step,
    work: BoxFuture<'static, Outcome>,
}

/// How a step ended.
enum Outcome {
    Connected(Result<Box<Attachment>, Ended>),
    Prepared(Result<Box<Machine>, Ended>),
    Submitted(Submitted),
    Located(Result<Located, Ended>),
    Opened(Result<Opened, Ended>),
    Taken(Result<Taken, SessionError>),
    Checked(Result<(), Ended>),
    Quiesced(Vec<String>),
    Examined,
    Gone,
    Disconnected(Result<(), Cause>),
    Forgotten(Result<(), EngineError>),
}

/// The task's ends of the channels that its door has.
pub(crate) type Room = (mpsc::Receiver<Box<Request>>, watch::Sender<Option<Arc<dyn AgentSession>>>);

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
        let mut containers =
            Containers::new(node.clone(), life.id.clone(), life.spec.users, containers);
        if let Some(origin) = life.origin.as_ref().filter(|origin| !origin.done) {
            containers.expect(origin.containers.iter().cloned().collect());
        }
        Self {
            node,
            seen: Seen::default(),
            requests,
            link,
            events: None,
            upkeep: None,
            containers,
            step: None,
            abandon: watch::Sender::new(false),
            runs: Vec::new(),
            stops: Vec::new(),
            removes: Vec::new(),
            resumed: None,
            disconnecting: Disconnecting::new(&life.id),
            refusal: None,
            unsaved: false,
            link_breaks: 0,
            link_since: Instant::now(),
            life,
        }
    }

    /// Runs a sandbox that is wanted for the first time: nothing happens before the wish is durable.
    ///
    /// Boxed, as what it waits for in [`SandboxTask::turn`]: a future has room of its own for each thing that it may hold, even
    /// twice for its arguments, and there is one of these for each sandbox, nearly all of its time at rest.
    pub(crate) async fn run_new(mut self: Box<Self>) {
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
    pub(crate) async fn run(mut self: Box<Self>) {
        while self.turn().await {}
        self.node.board.remove(&self.life.id);
        for reply in self.removes.drain(..).chain(self.stops.drain(..)) {
            let _ = reply.send(Ok(()));
        }
        self.requests.close();
        let gone = EngineError::SandboxNotFound(self.life.id.clone());
        while let Some(request) = self.requests.recv().await {
            match *request {
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
        let upkeep = async {
            match &mut self.upkeep {
                Some(upkeep) => upkeep.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let unsaved = self.unsaved;
        tokio::select! {
            biased;
            request = self.requests.recv() => match request {
                Some(request) => Box::pin(self.admit(*request)).await,
                // The board holds a way in, so this is the end of the engine.
                None => return false,
            },
            outcome = step => {
                self.step = None;
                if let Outcome::Forgotten(Ok(())) = outcome {
                    return false;
                }
                Box::pin(self.apply(outcome)).await;
            }
            event = event => Box::pin(self.observe(event)).await,
            done = self.containers.next_done() => {
                let session = self.link.borrow().clone();
                Box::pin(self.containers.apply(done, session.as_ref())).await;
            }
            () = sleep(SAVE_AGAIN), if unsaved => self.save_or_later().await,
            never = upkeep => match never {},
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
            (Step::Connect, ..) => Box::pin(async move {
                Outcome::Connected(connect::connect(node, life).await.map(Box::new))
            }),
            (Step::Examine, ..) => Box::pin(async move {
                connect::examine(node, life).await;
                Outcome::Examined
            }),
            (Step::Disconnect, ..) => {
                let (pause, knock) = (self.disconnecting.pause, self.disconnecting.knock.clone());
                Box::pin(async move {
                    Outcome::Disconnected(connect::disconnect(node, life, pause, knock).await)
                })
            }
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
            Step::Reopen => {
                let lost = link::Lost::new(node, life.id, machine);
                Box::pin(link::reopen(lost, calls, pause).map(Outcome::Opened))
            }
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
        let agent = life.agent_name().map(str::to_owned);
        let machine = machine.map(|machine| machine.name.clone());
        self.node.board.post(status, machine, agent);
    }
}

impl Request {
    /// Answers with an error whatever it is.
    pub(crate) fn refuse(self, error: &EngineError) {
        match self {
            Self::Run(reply) => drop(reply.send(Err(error.echo()))),
            Self::Stop(reply)
            | Self::Remove(reply)
            | Self::Container(_, _, reply)
            | Self::UpdateContainer(_, _, reply)
            | Self::Adopt(_, reply)
            | Self::LeaveName(reply)
            | Self::TakeName(reply)
            | Self::Resize(_, _, reply) => {
                drop(reply.send(Err(error.echo())));
            }
            Self::Look(reply) => drop(reply.send(Err(error.echo()))),
            Self::CreateContainer(_, reply) => drop(reply.send(Err(error.echo()))),
            Self::Doubt | Self::Refresh => {}
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

const REQUESTS_MAX: usize = 64;
const SAVE_AGAIN: Duration = Duration::from_secs(5);
