//! The steps between a machine that runs and an agent that serves: enrol, connect, bind, and connect again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::TryFutureExt;
use futures::stream::BoxStream;
use infranetes_sdk::{ErrorKind, RetryAdvice};
use tokio::time::{Instant, sleep, timeout};

use crate::engine::boot::{Ended, Judged, judge, provider_ended, with_console};
use crate::engine::calls::Calls;
use crate::engine::life::{Life, Machine};
use crate::engine::node::{Node, spread};
use crate::engine::retry::Backoff;
use crate::engine::timeouts::{
    AGENT_CALL, AGENT_DIAL, BOTH_SILENT, CERTIFICATE_LOOK, LOOK, ROTATION, VANISHED, poll_pause,
};
use crate::error::{Cause, FailureKind};
use crate::ids::SandboxId;
use crate::session::{
    AgentIdentity, AgentSession, Binding, Bound, Enrolled, SessionError, WatchEvent,
};
use crate::spec::Dns;

/// A session, and who it is with.
pub(crate) struct Opened {
    pub(crate) identity: AgentIdentity,
    pub(crate) session: Arc<dyn AgentSession>,
}

/// A machine that took its sandbox.
pub(crate) struct Taken {
    pub(crate) bound: Bound,
    pub(crate) events: BoxStream<'static, Result<WatchEvent, SessionError>>,
    /// The name that its agent has from now on, if that is another one.
    pub(crate) renamed: Option<String>,
}

/// Enrols the agent of a machine that boots, then connects.
pub(crate) async fn open(
    node: Arc<Node>,
    life: Life,
    calls: Calls,
    machine: Machine,
    resumed: bool,
    limit: Duration,
) -> Result<Opened, Ended> {
    let began = Instant::now();
    let id = machine.id.as_ref().map(|id| id.0.clone()).unwrap_or_default();
    let mut looked = Instant::now();
    // Another process may have enrolled it without living to write that down.
    let mut dialler = Dialler { node: &node, machine: &machine, maybe_enrolled: resumed };
    loop {
        let error = match dialler.dial().await {
            Ok(opened) => {
                // What wakes up out of a checkpoint serves the sandbox that it was, until it is bound.
                let origin = life.origin.as_ref().filter(|_| !life.was_ready);
                return fits(&life.id, origin.map(|origin| origin.sandbox.as_str()), opened);
            }
            Err(error @ SessionError::Version { .. }) => {
                let ended = Ended::because(Cause::from(&error));
                return Err(with_console(&calls, &id, ended).await);
            }
            Err(error) => error,
        };
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            if let Ok(seen) = calls.get(&id).await
                && let Judged::Ended(ended) = judge(&seen)
            {
                return Err(with_console(&calls, &id, ended).await);
            }
        }
        if began.elapsed() >= limit {
            let mut texts = vec![format!("its agent did not enrol within {limit:?}")];
            texts.extend(Cause::from(&error).texts());
            let ended = Ended::because(Cause::from_texts(FailureKind::TimedOut, texts));
            return Err(with_console(&calls, &id, ended).await);
        }
        sleep(poll_pause(began.elapsed())).await;
    }
}

struct Dialler<'a> {
    node: &'a Node,
    machine: &'a Machine,
    maybe_enrolled: bool,
}

impl Dialler<'_> {
    async fn dial(&mut self) -> Result<Opened, SessionError> {
        let connector = &self.node.parts.connector;
        let endpoint = &self.machine.endpoint;
        if let Some(identity) = self.machine.identity.clone() {
            let next = self.machine.next_name.as_ref();
            return connected_as_either(self.node, endpoint, identity, next).await;
        }
        let refused =
            match bounded(AGENT_DIAL, connector.enrol(endpoint, &self.machine.ticket)).await {
                Ok(Enrolled { identity, session }) => {
                    self.maybe_enrolled = true;
                    return match session {
                        Some(session) => Ok(Opened { identity, session }),
                        None => connected(self.node, endpoint, identity).await,
                    };
                }
                Err(error) => error,
            };
        // An answer that was lost on its way, or in a crash, leaves an agent that is enrolled and knows no ticket.
        self.maybe_enrolled |= !matches!(refused, SessionError::NotYet { .. });
        if self.maybe_enrolled {
            let identity = AgentIdentity { agent_name: self.machine.ticket.agent_name.clone() };
            if let Ok(opened) = connected(self.node, endpoint, identity).await {
                return Ok(opened);
            }
        }
        Err(refused)
    }
}

async fn connected(
    node: &Node,
    endpoint: &str,
    identity: AgentIdentity,
) -> Result<Opened, SessionError> {
    let session = bounded(AGENT_DIAL, node.parts.connector.connect(endpoint, &identity)).await?;
    Ok(Opened { identity, session })
}

/// Connects to an agent that may have taken its next name before anybody could write that down.
async fn connected_as_either(
    node: &Node,
    endpoint: &str,
    identity: AgentIdentity,
    next: Option<&String>,
) -> Result<Opened, SessionError> {
    let answer = connected(node, endpoint, identity).await;
    let (Err(SessionError::Untrusted { .. }), Some(agent_name)) = (&answer, next) else {
        return answer;
    };
    connected(node, endpoint, AgentIdentity { agent_name: agent_name.clone() }).await
}

/// An agent that serves another sandbox is not ours, whatever its certificate says; but for what its machine `was` before.
fn fits(sandbox: &SandboxId, was: Option<&str>, opened: Opened) -> Result<Opened, Ended> {
    let serves = &opened.session.hello().sandbox_id;
    if serves.is_empty() || serves == sandbox.as_str() || Some(serves.as_str()) == was {
        return Ok(opened);
    }
    Err(Ended::because(Cause::new(
        FailureKind::Denied,
        format!("the agent that answers serves another sandbox ({serves})"),
    )))
}

/// Tells the agent its sandbox, and begins to watch its containers.
pub(crate) async fn bind(
    life: Life,
    session: Arc<dyn AgentSession>,
    limit: Duration,
) -> Result<Taken, SessionError> {
    let binding = Binding {
        sandbox: life.id.clone(),
        pod: life.spec.pod.clone(),
        hostname: life.spec.hostname.clone(),
        dns: dns(&life),
        sysctls: life.spec.sysctls.clone(),
        network: life.network.attachment().map(|attachment| attachment.layout.clone()),
    };
    let next_name = life.machine.as_ref().and_then(|machine| machine.next_name.clone());
    let once = async {
        let bound = session.bind(&binding).await?;
        let renamed = match next_name {
            Some(name) => renamed(&life, &session, name).await?,
            None => None,
        };
        Ok(Taken { bound, events: watched(session), renamed })
    };
    bounded(limit, once).await
}

/// Gives the agent the name that is written down for it. A pod that was ready goes on without: it is tried again with the next
/// session.
async fn renamed(
    life: &Life,
    session: &Arc<dyn AgentSession>,
    name: String,
) -> Result<Option<String>, SessionError> {
    match session.rename(&name).await {
        Ok(()) => Ok(Some(name)),
        Err(error) if life.was_ready => {
            let error = Cause::from(&error).chain();
            tracing::warn!(sandbox = %life.id, error, "the agent keeps a name that is in a checkpoint");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What the pod says; where it says nothing, what its network does.
fn dns(life: &Life) -> Dns {
    let of_network = life.network.attachment().map(|attachment| attachment.dns.clone());
    match &life.spec.dns {
        silent if *silent == Dns::default() => of_network.unwrap_or_default(),
        said => said.clone(),
    }
}

/// What the agent tells by itself, asked for when it is first waited for: the sandbox is ready without it.
fn watched(session: Arc<dyn AgentSession>) -> BoxStream<'static, Result<WatchEvent, SessionError>> {
    Box::pin(async move { bounded(AGENT_CALL, session.watch()).await }.try_flatten_stream())
}

/// Looks again and again whether the agent's certificate is due for another, for as long as the session lasts.
///
/// A failure changes nothing about the session: the certificate is renewed at its half-life, so many looks are left.
pub(crate) async fn keep_certificate(
    sandbox: SandboxId,
    session: Arc<dyn AgentSession>,
) -> Infallible {
    loop {
        if let Err(error) = bounded(ROTATION, session.rotate_if_due()).await {
            let chain = Cause::from(&error).chain();
            tracing::warn!(sandbox = %sandbox, error = %chain, again_in = ?CERTIFICATE_LOOK, "the agent's certificate could not be renewed");
        }
        sleep(CERTIFICATE_LOOK).await;
    }
}

/// Connects again to a machine that was ready, for as long as the machine may still be.
///
/// It ends with an error only when the machine is lost: its provider says so, or neither agent nor provider has said
/// anything for a long time. A silent agent on a machine that runs is no loss: its containers may do their work.
///
/// A node that lost its network has one of these for each sandbox, so it is kept small: what it does now and then is boxed, and
/// only so many ask their providers at once.
pub(crate) async fn reopen(lost: Lost, calls: Calls, pause: Duration) -> Result<Opened, Ended> {
    sleep(pause).await;
    let mut backoff = Backoff::new(Duration::from_millis(100), spread(&lost.sandbox));
    let mut doubt = Doubt::new();
    loop {
        match Box::pin(lost.connect()).await {
            Ok(opened) => return lost.same(opened),
            Err(error) => lost.note(error),
        }
        if let Some(ended) = lost.look(&calls, &mut doubt).await {
            return Err(ended);
        }
        let pause = backoff.pause(RetryAdvice::ByKind);
        sleep(if doubt.unknown_since.is_some() { pause.min(LOOK) } else { pause }).await;
    }
}

/// A machine that was ready and whose session broke.
pub(crate) struct Lost {
    node: Arc<Node>,
    sandbox: SandboxId,
    machine_id: String,
    endpoint: String,
    identity: AgentIdentity,
    next_name: Option<String>,
    boot_id: String,
}

impl Lost {
    pub(crate) fn new(node: Arc<Node>, sandbox: SandboxId, machine: Machine) -> Self {
        let Machine { id, endpoint, identity, next_name, ticket, boot_id, .. } = machine;
        let identity = identity.unwrap_or(AgentIdentity { agent_name: ticket.agent_name });
        let machine_id = id.map(|id| id.0).unwrap_or_default();
        Self { node, sandbox, machine_id, endpoint, identity, next_name, boot_id }
    }

    async fn connect(&self) -> Result<Opened, SessionError> {
        let (identity, next) = (self.identity.clone(), self.next_name.as_ref());
        connected_as_either(&self.node, &self.endpoint, identity, next).await
    }

    fn note(&self, error: SessionError) {
        let chain = Cause::from(&error).chain();
        self.node.board.note(&self.sandbox, &format!("its agent does not answer: {chain}"));
    }

    /// Looks at the provider; an answer means that the machine is lost.
    async fn look(&self, calls: &Calls, doubt: &mut Doubt) -> Option<Ended> {
        let ended = {
            // Never closed; without a permit there would only be more at once.
            let _permit = self.node.looks.acquire().await;
            Box::pin(doubt.look(calls, &self.machine_id)).await?
        };
        Some(Box::pin(with_console(calls, &self.machine_id, ended)).await)
    }

    fn same(&self, opened: Opened) -> Result<Opened, Ended> {
        if !self.boot_id.is_empty() && opened.session.hello().boot_id != self.boot_id {
            return Err(Ended::because(Cause::new(
                FailureKind::Unavailable,
                "its agent started anew, so its containers are gone",
            )));
        }
        fits(&self.sandbox, None, opened)
    }
}

/// Asks the provider once or a few times whether the machine still is; `Ok` when it runs.
pub(crate) async fn check(calls: Calls, id: String) -> Result<(), Ended> {
    let mut doubt = Doubt::new();
    loop {
        if let Some(ended) = doubt.look(&calls, &id).await {
            return Err(with_console(&calls, &id, ended).await);
        }
        if doubt.unknown_since.is_none() {
            return Ok(());
        }
        sleep(LOOK / 2).await;
    }
}

/// What looking at the provider again and again adds up to.
struct Doubt {
    unknown_since: Option<Instant>,
    silent_since: Instant,
}

impl Doubt {
    fn new() -> Self {
        Self { unknown_since: None, silent_since: Instant::now() }
    }

    /// Looks once; an answer means that the machine is lost.
    async fn look(&mut self, calls: &Calls, id: &str) -> Option<Ended> {
        match calls.get(id).await {
            Ok(seen) => {
                self.unknown_since = None;
                self.silent_since = Instant::now();
                match judge(&seen) {
                    Judged::Ended(ended) => Some(ended),
                    Judged::Runs | Judged::NotYet(_) => None,
                }
            }
            Err(error) if error.kind == ErrorKind::NotFound => {
                self.silent_since = Instant::now();
                let since = *self.unknown_since.get_or_insert_with(Instant::now);
                (since.elapsed() >= VANISHED).then(|| vanished(&error))
            }
            Err(error) => {
                (self.silent_since.elapsed() >= BOTH_SILENT).then(|| provider_ended(&error))
            }
        }
    }
}

fn vanished(error: &infranetes_sdk::ProviderError) -> Ended {
    let mut texts = vec!["the machine vanished".to_owned()];
    texts.extend(Cause::from(error).texts());
    Ended::because(Cause::from_texts(FailureKind::Unavailable, texts))
}

/// A call to an agent with a deadline.
pub(crate) async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    timeout(limit, call).await.unwrap_or(Err(SessionError::TimedOut(limit)))
}

/// Ends the containers, lets their last output arrive, and powers the machine off. Errors are collected, not obeyed:
/// the machine is destroyed afterwards whatever happened here.
pub(crate) async fn quiesce(
    session: Arc<dyn AgentSession>,
    containers: Vec<crate::ids::ContainerId>,
    mut drained: Vec<tokio::sync::watch::Receiver<bool>>,
) -> Vec<String> {
    use crate::engine::timeouts::{QUIESCE, QUIESCE_GRACE, QUIESCE_LOGS};
    let mut errors = Vec::new();
    let work = async {
        let stops = containers.iter().map(|id| {
            bounded(QUIESCE_GRACE + AGENT_CALL / 2, session.stop_container(id, QUIESCE_GRACE))
        });
        for answer in futures::future::join_all(stops).await {
            errors.extend(answer.err().map(|error| Cause::from(&error).chain()));
        }
        let rest = drained.iter_mut().map(|drained| async {
            let _ = drained.wait_for(|drained| *drained).await;
        });
        if timeout(QUIESCE_LOGS, futures::future::join_all(rest)).await.is_err() {
            errors.push(format!("the rest of the logs did not come within {QUIESCE_LOGS:?}"));
        }
        if let Err(error) = bounded(AGENT_CALL / 2, session.shutdown(QUIESCE_GRACE)).await {
            errors.push(Cause::from(&error).chain());
        }
    };
    if timeout(QUIESCE, work).await.is_err() {
        errors.push(format!("the machine did not end its work within {QUIESCE:?}"));
    }
    errors
}
