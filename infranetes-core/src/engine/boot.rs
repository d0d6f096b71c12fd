//! The steps from a wish to a ready machine. Each is a future that owns what it needs and tells how it ended; the
//! sandbox's task applies that to the record.

use std::sync::Arc;
use std::time::Duration;

use infranetes_sdk::pod::{
    CreateRequest, Machine as Seen, MachineState, PlanRequest, PodCapabilities,
};
use infranetes_sdk::{ErrorKind, ProviderError, RetryAdvice};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::engine::calls::Calls;
use crate::engine::config::HandlerConfig;
use crate::engine::connect;
use crate::engine::life::{Life, Machine, Origin, UserData};
use crate::engine::naming::{machine_name_and_token, sandbox_tags};
use crate::engine::node::{Node, spread};
use crate::engine::retry::{Backoff, Verdict, is_uncertain, may_pass, verdict};
use crate::engine::timeouts::{CREATE_CALLS_MAX, SETTLE, poll_pause};
use crate::error::{Cause, EngineError, FailureKind};
use crate::session::{AgentIdentity, Ticket};
use crate::spec::{SandboxResources, SandboxSpec};

/// Why a boot does not go on.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) cause: Cause,
    /// The console's last lines, or empty.
    pub(crate) console: String,
    /// The provider had no room: another type or zone may do.
    pub(crate) capacity: bool,
}

impl Ended {
    pub(crate) fn because(cause: Cause) -> Self {
        Self { cause, console: String::new(), capacity: false }
    }
}

/// How a create call ended for good.
pub(crate) enum Submitted {
    Named(Box<Seen>),
    /// `uncertain`: a machine may exist all the same.
    Refused {
        ended: Ended,
        uncertain: bool,
    },
}

/// A machine that runs and says where its agent answers.
pub(crate) struct Located {
    pub(crate) endpoint: String,
    pub(crate) ips: Vec<String>,
}

/// Chooses the machine's shape and invites its agent. Touches nothing outside.
pub(crate) async fn prepare(node: Arc<Node>, life: Life) -> Result<Machine, Ended> {
    let refused = |error: EngineError| Ended::because(Cause::of(error.kind(), &error));
    let handler = node.handler(&life.spec.handler).map_err(refused)?;
    let calls = node.calls(&life.spec.handler, &handler.provider).map_err(refused)?;
    if let Some(origin) = &life.origin {
        let next_name = node.parts.connector.another_name();
        let next_name = next_name.map_err(|error| Ended::because(Cause::from(&error)))?;
        let capabilities = calls.describe().await.map_err(|error| provider_ended(&error))?;
        connect::check_provider(&life, &handler.provider, &capabilities)?;
        return restored(&life, origin, &handler.provider, next_name);
    }
    let (capabilities, plan) = planned(&calls, plan_request(&life, handler))
        .await
        .map_err(|error| provider_ended(&error))?;
    let Some(shape) = plan.candidates.into_iter().nth(life.passed_over as usize) else {
        return Err(Ended::because(Cause::new(
            FailureKind::Exhausted,
            "no machine type that fits has capacity now",
        )));
    };
    let invitation = node
        .parts
        .connector
        .invite(&life.id)
        .map_err(|error| Ended::because(Cause::from(&error)))?;
    connect::check_provider(&life, &handler.provider, &capabilities)?;
    let limit = capabilities.user_data_limit_bytes;
    if limit != 0 && invitation.user_data.len() as u64 > limit {
        return Err(Ended::because(Cause::new(
            FailureKind::Unsupported,
            format!(
                "the invitation has {} bytes, and provider {} hands {limit} bytes to a guest",
                invitation.user_data.len(),
                handler.provider
            ),
        )));
    }
    let (name, token) = machine_name_and_token(&life.spec.pod, &life.id, life.tries + 1);
    Ok(Machine {
        provider: handler.provider.clone(),
        token,
        name,
        shape,
        why: plan.why,
        user_data: UserData(invitation.user_data),
        ticket: invitation.ticket,
        id: None,
        endpoint: String::new(),
        identity: None,
        next_name: None,
        boot_id: String::new(),
        kernel_release: String::new(),
        doomed: false,
    })
}

/// A machine that goes on from a checkpoint: of the same type, and its agent has an identity already, but not for long.
fn restored(
    life: &Life,
    origin: &Origin,
    provider: &str,
    next_name: String,
) -> Result<Machine, Ended> {
    if life.passed_over > 0 {
        let sentence = "the machine type of the checkpoint has no capacity now";
        return Err(Ended::because(Cause::new(FailureKind::Exhausted, sentence)));
    }
    let interfaces = life.network.attachment().map(|attachment| attachment.layout.names());
    let interfaces = interfaces.unwrap_or_default();
    if interfaces != origin.interfaces {
        let (then, now) = (origin.interfaces.join(", "), interfaces.join(", "));
        let sentence = format!(
            "the machine of the checkpoint has the interfaces [{then}] in the node's pod network, and the pod has [{now}]"
        );
        return Err(Ended::because(Cause::new(FailureKind::Invalid, sentence)));
    }
    let (name, token) = machine_name_and_token(&life.spec.pod, &life.id, life.tries + 1);
    let agent_name = origin.agent_name.clone();
    Ok(Machine {
        provider: provider.to_owned(),
        token,
        name,
        shape: origin.shape.clone(),
        why: "as in the checkpoint".to_owned(),
        // Nobody reads it: the agent runs already.
        user_data: UserData(b"restored".to_vec()),
        ticket: Ticket { agent_name: agent_name.clone(), token: Vec::new() },
        id: None,
        endpoint: String::new(),
        identity: Some(AgentIdentity { agent_name }),
        next_name: Some(next_name),
        boot_id: String::new(),
        kernel_release: String::new(),
        doomed: false,
    })
}

async fn planned(
    calls: &Calls,
    request: PlanRequest,
) -> Result<(PodCapabilities, infranetes_sdk::pod::PlanResponse), ProviderError> {
    let mut backoff = Backoff::new(Duration::from_millis(500), 0);
    let mut left = PLAN_CALLS_MAX;
    loop {
        left -= 1;
        let answer = match calls.describe().await {
            Ok(capabilities) => calls.plan(request.clone()).await.map(|plan| (capabilities, plan)),
            Err(error) => Err(error),
        };
        match answer {
            Err(error) if left > 0 && may_pass(&error) => sleep(backoff.pause(error.retry)).await,
            answer => return answer,
        }
    }
}

/// How large a pod's machine has to be: thousandths of a CPU, and bytes of memory.
pub(crate) fn size(spec: &SandboxSpec, handler: &HandlerConfig) -> (u64, u64) {
    let said = |wish: u64, default: u64| if wish == 0 { default } else { wish };
    let sum = |of: fn(&SandboxResources) -> u64| {
        said(of(&spec.resources), of(&handler.default_resources))
            .saturating_add(said(of(&spec.overhead), of(&handler.default_overhead)))
    };
    (sum(|resources| resources.cpu_millis), sum(|resources| resources.memory_bytes))
}

fn plan_request(life: &Life, handler: &HandlerConfig) -> PlanRequest {
    let (cpu_millis, memory_bytes) = size(&life.spec, handler);
    let allowed = |(name, _): &(&String, &String)| handler.allowed_annotations.contains(*name);
    let annotations = life.spec.annotations.iter().filter(allowed);
    PlanRequest {
        cpu_millis,
        memory_bytes,
        gpus: 0,
        architecture: String::new(),
        machine_type: handler.machine_type.clone(),
        zones: handler.zones.clone(),
        spot: handler.spot,
        annotations: annotations.map(|(name, value)| (name.clone(), value.clone())).collect(),
    }
}

/// Asks for the machine, always with the same token, until the provider names it or refuses for good.
///
/// It is not dropped half-way: once `abandon` says that nobody wants the machine, it asks no further.
pub(crate) async fn submit(
    node: Arc<Node>,
    life: Life,
    machine: Machine,
    resumed: bool,
    mut abandon: watch::Receiver<bool>,
) -> Submitted {
    // What an earlier process asked for may exist.
    let mut uncertain = resumed;
    let calls = match node.calls(&life.spec.handler, &machine.provider) {
        Ok(calls) => calls,
        Err(error) => {
            let ended = Ended::because(Cause::of(error.kind(), &error));
            return Submitted::Refused { ended, uncertain: true };
        }
    };
    let request = create_request(&node, &life, &machine);
    let mut backoff = Backoff::new(Duration::from_secs(1), spread(&life.id));
    let mut left = CREATE_CALLS_MAX;
    loop {
        let answer = {
            let permit = tokio::select! {
                biased;
                permit = node.creates.acquire() => permit,
                _ = abandon.wait_for(|abandoned| *abandoned) => {
                    let cause = Cause::new(FailureKind::WrongState, "it is not wanted any more");
                    return Submitted::Refused { ended: Ended::because(cause), uncertain };
                }
            };
            let _permit = permit;
            calls.create(request.clone()).await
        };
        left -= 1;
        let error = match answer {
            Ok(seen) => return Submitted::Named(Box::new(seen)),
            Err(error) => error,
        };
        uncertain |= is_uncertain(&error);
        tracing::debug!(sandbox = %life.id, provider = %calls.name, error = %error.chain(), "a create call failed");
        node.board.note(&life.id, &format!("creating its machine: {}", error.chain()));
        match verdict(&error) {
            Verdict::Again if left > 0 && !*abandon.borrow() => {
                let pause = sleep(backoff.pause(error.retry));
                tokio::select! {
                    biased;
                    _ = abandon.wait_for(|abandoned| *abandoned) => {}
                    () = pause => {}
                }
            }
            Verdict::Look => match look(&node, &calls, &life, &machine).await {
                Some(seen) => return Submitted::Named(Box::new(seen)),
                None => return refused(&error, uncertain),
            },
            _ => return refused(&error, uncertain),
        }
    }
}

fn refused(error: &ProviderError, uncertain: bool) -> Submitted {
    Submitted::Refused { ended: provider_ended(error), uncertain }
}

/// Adopts the machine of this name that exists already.
async fn look(node: &Node, calls: &Calls, life: &Life, machine: &Machine) -> Option<Seen> {
    let machines = calls.list(&sandbox_tags(&node.config, &life.id)).await.ok()?;
    machines.into_iter().find(|seen| seen.name == machine.name)
}

/// Waits until the machine runs and says where its agent answers.
pub(crate) async fn await_running(
    node: Arc<Node>,
    life: Life,
    calls: Calls,
    id: String,
    limit: Duration,
) -> Result<Located, Ended> {
    let began = Instant::now();
    let mut last = String::from("the provider did not say");
    loop {
        match calls.get(&id).await {
            Ok(seen) => match judge(&seen) {
                Judged::Runs => {
                    if let Some(located) = locate(&calls, &seen).await {
                        return Ok(located);
                    }
                    last =
                        "it runs, but its provider does not say where its agent answers".to_owned();
                }
                Judged::NotYet(state) => last = state.to_owned(),
                Judged::Ended(ended) => return Err(with_console(&calls, &id, ended).await),
            },
            Err(error) if error.kind == ErrorKind::NotFound && began.elapsed() < SETTLE => {}
            Err(error) if error.kind == ErrorKind::NotFound => return Err(provider_ended(&error)),
            Err(error) if may_pass(&error) => last = error.chain(),
            Err(error) => return Err(with_console(&calls, &id, provider_ended(&error)).await),
        }
        if began.elapsed() >= limit {
            let sentence = format!("the machine did not run within {limit:?} ({last})");
            let ended = Ended::because(Cause::new(FailureKind::TimedOut, sentence));
            return Err(with_console(&calls, &id, ended).await);
        }
        node.board.note(&life.id, &format!("its machine boots: {last}"));
        sleep(poll_pause(began.elapsed())).await;
    }
}

async fn locate(calls: &Calls, seen: &Seen) -> Option<Located> {
    let told = seen.addresses.clone().filter(|addresses| !addresses.agent.is_empty());
    let addresses = match told {
        Some(addresses) => addresses,
        None => calls.addresses(&seen.id).await.ok().filter(|found| !found.agent.is_empty())?,
    };
    Some(Located { endpoint: addresses.agent, ips: addresses.ips })
}

/// What a provider's view of a machine means for one that should run.
pub(crate) enum Judged {
    Runs,
    NotYet(&'static str),
    Ended(Ended),
}

/// Reads the provider's view.
pub(crate) fn judge(seen: &Seen) -> Judged {
    let ended = |sentence: &str| {
        let failure = seen.failure.clone().map(ProviderError::from);
        let capacity = failure.as_ref().is_some_and(|error| error.kind == ErrorKind::Capacity);
        let mut texts = vec![sentence.to_owned()];
        let mut kind = FailureKind::Unavailable;
        if let Some(error) = &failure {
            let cause = Cause::from(error);
            kind = cause.kind;
            texts.extend(cause.texts());
        }
        let cause = Cause::from_texts(kind, texts);
        Judged::Ended(Ended { cause, console: String::new(), capacity })
    };
    match seen.state() {
        MachineState::Running => Judged::Runs,
        MachineState::Creating => Judged::NotYet("its provider still makes it"),
        MachineState::Unspecified => Judged::NotYet("its provider does not say how it is"),
        MachineState::Failed => ended("the provider could not make the machine run"),
        MachineState::Stopping | MachineState::Stopped => ended("the machine powered off"),
        MachineState::Destroying => ended("the machine is being destroyed"),
    }
}

pub(crate) async fn with_console(calls: &Calls, id: &str, mut ended: Ended) -> Ended {
    ended.console = calls.console_tail(id).await;
    ended
}

pub(crate) fn provider_ended(error: &ProviderError) -> Ended {
    let capacity = error.kind == ErrorKind::Capacity;
    Ended { cause: Cause::from(error), console: String::new(), capacity }
}

/// Destroys the machine; goes on until the provider says that it is gone.
pub(crate) async fn destroy(node: Arc<Node>, life: Life, calls: Calls, id: String) {
    let mut backoff = Backoff::new(Duration::from_secs(1), spread(&life.id));
    while let Err(error) = calls.destroy(&id).await {
        tracing::warn!(sandbox = %life.id, machine = %id, error = %error.chain(), "the machine could not be destroyed yet");
        node.board
            .note(&life.id, &format!("its machine could not be destroyed yet: {}", error.chain()));
        sleep(backoff.pause(error.retry)).await;
    }
}

/// Finds what a create call made whose answer never came, and destroys it. A machine may take time to show, so nothing
/// counts as "not there" before it was looked for through the whole settling time.
pub(crate) async fn settle(node: Arc<Node>, life: Life, calls: Calls, machine: Machine) {
    let mut until = Instant::now() + SETTLE;
    let mut backoff = Backoff::new(Duration::from_secs(1), spread(&life.id));
    while Instant::now() < until {
        let pause = match destroy_unnamed(&node, &life, &calls, &machine).await {
            Ok(0) => backoff.pause(RetryAdvice::ByKind),
            Ok(_) => {
                until = Instant::now() + SETTLE / 2;
                backoff.reset();
                backoff.pause(RetryAdvice::ByKind)
            }
            Err(error) => {
                until = Instant::now() + SETTLE;
                let note = format!("what was begun is looked for: {}", error.chain());
                node.board.note(&life.id, &note);
                backoff.pause(error.retry)
            }
        };
        sleep(pause.min(SETTLE / 3)).await;
    }
}

/// Destroys every machine with the name of this one, and says how many there were.
async fn destroy_unnamed(
    node: &Node,
    life: &Life,
    calls: &Calls,
    machine: &Machine,
) -> Result<usize, ProviderError> {
    let found: Vec<String> = if calls.describe().await?.tags {
        let machines = calls.list(&sandbox_tags(&node.config, &life.id)).await?;
        machines.into_iter().filter(|seen| seen.name == machine.name).map(|seen| seen.id).collect()
    } else {
        // Nothing can be listed by owner here; the same token names the machine, if need be a fresh one.
        match calls.create(create_request(node, life, machine)).await {
            Ok(seen) => vec![seen.id],
            Err(error) if is_uncertain(&error) => return Err(error),
            Err(_) => Vec::new(),
        }
    };
    for id in &found {
        calls.destroy(id).await?;
    }
    Ok(found.len())
}

fn create_request(node: &Node, life: &Life, machine: &Machine) -> CreateRequest {
    CreateRequest {
        token: machine.token.clone(),
        name: machine.name.clone(),
        machine_type: Some(machine.shape.clone()),
        image: String::new(),
        user_data: machine.user_data.0.clone(),
        tags: sandbox_tags(&node.config, &life.id),
        network: connect::message(life),
        disks: Vec::new(),
        checkpoint: checkpoint(life),
    }
}

/// The provider's directory of the checkpoint that it goes on from.
fn checkpoint(life: &Life) -> String {
    let directory = life.origin.as_ref().map(|origin| origin.machine.to_string_lossy());
    directory.unwrap_or_default().into_owned()
}

const PLAN_CALLS_MAX: u32 = 3;
