//! What the end of each step means for the record.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use infranetes_sdk::RetryAdvice;
use infranetes_sdk::pod::Machine as SeenMachine;
use tokio::time::Instant;

use super::{Disconnecting, Outcome, SandboxTask};
use crate::engine::boot::{self, Ended, Located, Submitted};
use crate::engine::collect;
use crate::engine::life::{Failure, Goal, Machine, Network, UserData};
use crate::engine::link::{Opened, Taken};
use crate::engine::plan::Seen;
use crate::error::{Cause, EngineError, FailureKind};
use crate::ids::MachineId;
use crate::network::Attachment;
use crate::session::{SessionError, WatchEvent};
use crate::status::Phase;

impl SandboxTask {
    pub(super) async fn apply(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Connected(result) => self.connected(result).await,
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
                self.hang_up().await;
                self.seen.quiesced = true;
            }
            Outcome::Examined => self.seen.examined = true,
            Outcome::Gone => self.gone().await,
            Outcome::Disconnected(result) => self.disconnected(result).await,
            Outcome::Forgotten(Ok(())) => {}
            Outcome::Forgotten(Err(error)) => {
                tracing::warn!(sandbox = %self.life.id, error = %error, "the record could not be deleted yet");
            }
        }
        self.publish();
    }

    /// What is up is durable at the latest together with the machine that is made in it: see `prepared`.
    async fn connected(&mut self, result: Result<Box<Attachment>, Ended>) {
        self.disconnecting = Disconnecting::new(&self.life.id);
        match result {
            Ok(attachment) => {
                self.life.ips = attachment.ips.iter().map(ToString::to_string).collect();
                self.life.network = Network::Up(attachment);
                self.seen.examined = true;
                self.save_or_later().await;
            }
            Err(ended) => self.ended(Phase::Intended, ended).await,
        }
    }

    /// A network that does not let go is tried again until it does; who waits for a stop hears of it at once, because the
    /// kubelet asks again by itself, and its calls end sooner than some plugins are mended.
    async fn disconnected(&mut self, result: Result<(), Cause>) {
        match result {
            Ok(()) => {
                self.life.network = Network::Down;
                self.life.ips.clear();
                self.save_or_later().await;
            }
            Err(cause) => {
                self.disconnecting.pause = self.disconnecting.backoff.pause(RetryAdvice::ByKind);
                for reply in self.stops.drain(..) {
                    let sandbox = self.life.id.clone();
                    let _ = reply
                        .send(Err(EngineError::NotDisconnected { sandbox, cause: cause.clone() }));
                }
            }
        }
    }

    pub(super) async fn prepared(&mut self, result: Result<Box<Machine>, Ended>) {
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
        self.seen = Seen { examined: self.seen.examined, ..Seen::default() };
        // The intent has to be durable before the provider hears of it.
        if let Err(error) = self.save().await {
            self.life.machine = None;
            let cause = Cause::of(error.kind(), &error);
            self.ended(Phase::Intended, Ended::because(cause)).await;
        }
    }

    pub(super) async fn submitted(&mut self, submitted: Submitted) {
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
    pub(super) fn absorb(&mut self, seen: &SeenMachine) {
        let addresses = seen.addresses.clone().unwrap_or_default();
        if matches!(boot::judge(seen), boot::Judged::Runs) && !addresses.agent.is_empty() {
            self.runs_at(Located { endpoint: addresses.agent, ips: addresses.ips });
        }
    }

    pub(super) fn runs_at(&mut self, located: Located) {
        self.seen.running = true;
        if self.life.network.attachment().is_none() {
            self.life.ips = located.ips;
        }
        if let Some(machine) = &mut self.life.machine {
            machine.endpoint = located.endpoint;
        }
        let now = self.node.now();
        self.life.timeline.booted.get_or_insert(now);
    }

    pub(super) async fn located(&mut self, result: Result<Located, Ended>) {
        match result {
            Ok(located) => self.runs_at(located),
            Err(ended) => self.ended(Phase::Allocated, ended).await,
        }
    }

    pub(super) async fn opened(&mut self, result: Result<Opened, Ended>) {
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
            // With what comes of binding, in a moment: who starts anew before that finds out that it is enrolled.
            self.unsaved = true;
        }
        self.seen.session = true;
        self.seen.bound = false;
        let session = self.life.container_names().translate(opened.session);
        self.link.send_replace(Some(session));
    }

    pub(super) async fn taken(&mut self, result: Result<Taken, SessionError>) {
        let taken = match result {
            Ok(taken) => taken,
            Err(error) => return self.not_taken(error).await,
        };
        self.seen.bound = true;
        if let Some(name) = taken.renamed {
            self.named(name).await;
        }
        self.link_since = Instant::now();
        self.events = Some(taken.events);
        let session = self.link.borrow().clone();
        let node = &self.node;
        let upkeep =
            session.map(|session| collect::upkeep(node.clone(), self.life.id.clone(), session));
        self.upkeep = upkeep.map(|upkeep| Box::pin(upkeep) as _);
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

    pub(super) async fn not_taken(&mut self, error: SessionError) {
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

    pub(super) async fn observe(&mut self, event: Option<Result<WatchEvent, SessionError>>) {
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

    /// Ends the session once its machine is about to power off: the agent waits a moment for that. What it told before is
    /// taken first.
    async fn hang_up(&mut self) {
        for _ in 0..LAST_EVENTS_MAX {
            let told = self.events.as_mut().and_then(|events| events.next().now_or_never());
            match told {
                Some(Some(Ok(event))) => self.observe(Some(Ok(event))).await,
                _ => break,
            }
        }
        self.link_broke();
    }

    pub(super) fn link_broke(&mut self) {
        self.events = None;
        self.upkeep = None;
        self.link.send_replace(None);
        self.seen.session = false;
        self.seen.bound = false;
        self.containers.session_ended();
        let lasted = self.link_since.elapsed() >= LINK_STABLE;
        self.link_breaks = if lasted { 1 } else { self.link_breaks.saturating_add(1) };
    }

    /// The boot failed, or the machine is lost. What exists of the machine is destroyed.
    pub(super) async fn ended(&mut self, phase: Phase, ended: Ended) {
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
        // From here on it is taken down, and whoever starts over begins with what may be left of it.
        if self.life.network.may_be() {
            self.life.network = Network::Unsettled;
        }
        self.save_or_later().await;
        self.publish();
        for reply in self.runs.drain(..) {
            let _ = reply.send(Err(sandbox_failed(&failure)));
        }
    }

    pub(super) async fn gone(&mut self) {
        self.drop_link();
        self.containers.machine_gone("Error", "its sandbox was stopped").await;
        self.life.machine = None;
        self.seen = Seen { examined: self.seen.examined, ..Seen::default() };
        self.save_or_later().await;
    }

    pub(super) fn drop_link(&mut self) {
        if self.seen.session {
            self.link_broke();
        }
        let Seen { submitted, examined, .. } = self.seen;
        self.seen = Seen { submitted, examined, ..Seen::default() };
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

/// A session that lasted this long was a good one.
const LINK_STABLE: Duration = Duration::from_secs(30);
/// The most that is taken of what an agent told before it was left.
const LAST_EVENTS_MAX: usize = 256;
const BIND_BREAKS_MAX: u32 = 3;
