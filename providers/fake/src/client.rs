//! The cloud's API: one call with its delays and faults, and what each method does to the truth.

use std::collections::BTreeMap;
use std::time::Duration;

use infranetes_sdk::pod::{CreateRequest, MachineType};
use infranetes_sdk::{CallContext, ProviderError, Secret};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::cloud::{CallRecord, FakeCloud, LeftoverView, MachineView, Phase};
use crate::error::CloudError;
use crate::script::{
    Behaviour, FaultAction, Method, Outcome, QuotaLimits, Script, Span, Throttle, Tokens,
};
use crate::state::{Bucket, Change, Console, Record, State};
use crate::volumes::check_exists;

/// What the cloud decided about one call before it does anything.
struct Verdict {
    before: Duration,
    after: Duration,
    fault: Option<FaultAction>,
    throttled: Option<Duration>,
}

/// A connection to a cloud, with the script that it follows.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) cloud: FakeCloud,
    pub(crate) script: std::sync::Arc<Script>,
}

impl Client {
    /// Makes one call: counts it, waits the first half of its delay, lets `effect` happen, waits the second half.
    pub(crate) async fn call<T>(
        &self,
        ctx: &CallContext,
        method: Method,
        subject: &str,
        effect: impl FnOnce(&mut State, Instant) -> Result<T, CloudError>,
    ) -> Result<T, ProviderError> {
        let call = self.call_without_deadline(method, subject, effect);
        let answer = match ctx.deadline {
            Some(deadline) => {
                timeout_at(deadline, call).await.unwrap_or(Err(CloudError::Deadline { method }))
            }
            None => call.await,
        };
        Ok(answer?)
    }

    async fn call_without_deadline<T>(
        &self,
        method: Method,
        subject: &str,
        effect: impl FnOnce(&mut State, Instant) -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        let verdict = self.decide(method);
        pause(verdict.before).await;
        if matches!(verdict.fault, Some(FaultAction::Hang)) {
            return std::future::pending().await;
        }
        let answer = self.take_effect(method, subject, &verdict, effect);
        pause(verdict.after).await;
        match verdict.fault {
            Some(FaultAction::HangAfterEffect) => std::future::pending().await,
            Some(FaultAction::LoseAnswer) => Err(CloudError::LostAnswer { method }),
            Some(FaultAction::Fail(_) | FaultAction::Hang) | None => answer,
        }
    }

    fn decide(&self, method: Method) -> Verdict {
        let now = Instant::now();
        self.cloud.at(now, |state| {
            let number = state.calls.entry(method).or_default();
            *number += 1;
            let number = *number;
            let delay = state.draw(self.script.delay_of(method));
            Verdict {
                before: delay / 2,
                after: delay - delay / 2,
                fault: state.take_injected(method).or_else(|| self.fault(state, method, number)),
                throttled: self.script.throttle.and_then(|limit| throttle(state, limit, now)),
            }
        })
    }

    fn fault(&self, state: &mut State, method: Method, number: u64) -> Option<FaultAction> {
        let rules = self.script.faults.iter().filter(|rule| rule.method == method);
        for rule in rules {
            if state.matches(rule.when, number) {
                return Some(rule.action.clone());
            }
        }
        None
    }

    fn take_effect<T>(
        &self,
        method: Method,
        subject: &str,
        verdict: &Verdict,
        effect: impl FnOnce(&mut State, Instant) -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        let now = Instant::now();
        self.cloud.at(now, |state| {
            let answer = match (verdict.throttled, &verdict.fault) {
                (Some(retry_after), _) => Err(CloudError::Throttled { retry_after }),
                (None, Some(FaultAction::Fail(failure))) => {
                    Err(CloudError::Scripted(failure.clone()))
                }
                (None, _) => effect(state, now),
            };
            let at_ms = state.since_epoch_ms(now);
            let refused = answer.as_ref().err().map(CloudError::kind);
            state.note_call(CallRecord { at_ms, method, subject: subject.to_owned(), refused });
            answer
        })
    }

    /// Makes the machine of a request, or finds the one that an earlier call made.
    pub(crate) fn create(
        &self,
        state: &mut State,
        now: Instant,
        request: &CreateRequest,
        machine_type: MachineType,
    ) -> Result<MachineView, CloudError> {
        if let Some(there) = self.made_before(state, now, request) {
            return same_shape(&there, request, &machine_type).map(|()| there);
        }
        if self.script.sold_out.contains(&machine_type.name) {
            return Err(CloudError::SoldOut { machine_type: machine_type.name });
        }
        check_quota(&self.script.quota, state, &machine_type)?;
        for disk in &request.disks {
            check_exists(state, &disk.volume_id)?;
            check_not_attached(state, &disk.volume_id, "")?;
        }
        Ok(self.add_machine(state, now, request, machine_type))
    }

    fn made_before(
        &self,
        state: &State,
        now: Instant,
        request: &CreateRequest,
    ) -> Option<MachineView> {
        let mut existing = state.machines.values().filter(|record| record.exists());
        let found = match self.script.tokens {
            Tokens::Native => existing.find(|record| record.view.token == request.token),
            Tokens::ListFirst => existing
                .filter(|record| record.visible_at <= now)
                .find(|record| record.view.name == request.name),
            Tokens::Ignored => None,
        };
        found.map(|record| record.view.clone())
    }

    fn add_machine(
        &self,
        state: &mut State,
        now: Instant,
        request: &CreateRequest,
        machine_type: MachineType,
    ) -> MachineView {
        state.created += 1;
        *state.created_by_name.entry(request.name.clone()).or_default() += 1;
        let number = state.created;
        let id = format!("fake-{number:08}");
        let ip =
            format!("10.{}.{}.{}", 64 + (number >> 16) % 64, (number >> 8) % 256, number % 256);
        let view = MachineView {
            endpoint: fill(&self.script.endpoint, &id, &request.name, &ip, number),
            id: id.clone(),
            number,
            token: request.token.clone(),
            name: request.name.clone(),
            phase: Phase::Creating,
            failure: None,
            tags: request.tags.clone().into_iter().collect(),
            machine_type,
            user_data: Secret::new(request.user_data.clone()),
            image: request.image.clone(),
            attached: request.disks.iter().map(|disk| disk.volume_id.clone()).collect(),
            boots: 0,
            ip,
            created_unix_ms: state.unix_ms(now),
        };
        let behaviour = self.script.machines;
        let visible_at = now + state.draw(behaviour.hidden);
        state.machines.insert(id.clone(), record(view.clone(), visible_at, behaviour));
        state.print(&id, format!("{} is accepted\n", request.name).as_bytes());
        self.play(state, now, &id, number);
        view
    }

    /// Decides what becomes of a new machine.
    fn play(&self, state: &mut State, now: Instant, id: &str, number: u64) {
        let outcome = self.outcome(state, number);
        let boots = !matches!(outcome, Some(Outcome::NeverRuns | Outcome::Fails { .. }));
        if boots {
            let at = now + state.draw(self.script.machines.boot);
            state.schedule(id, at, Change::Run);
        }
        let Some(outcome) = outcome else { return };
        match outcome {
            Outcome::Fails { after, failure } => {
                let at = now + state.draw(after);
                state.schedule(id, at, Change::Fail(failure));
            }
            Outcome::Vanishes { after } => {
                let at = now + state.draw(after);
                state.schedule(id, at, Change::Vanish);
            }
            Outcome::PowersOff { after } => {
                let at = now + state.draw(after);
                state.schedule(id, at, Change::PowerOff);
            }
            Outcome::Preempted { after, notice } => {
                let at = now + state.draw(after);
                let gone = at + state.draw(notice);
                state.schedule(id, at, Change::Announce);
                state.schedule(id, gone, Change::Vanish);
            }
            Outcome::NeverRuns => mark(state, id, |record| record.never_runs = true),
            Outcome::IgnoresStop => mark(state, id, |record| record.ignores_stop = true),
            Outcome::LeavesDisk => mark(state, id, |record| record.leaves_disk = true),
        }
    }

    fn outcome(&self, state: &mut State, number: u64) -> Option<Outcome> {
        for rule in &self.script.outcomes {
            if state.matches(rule.when, number) {
                return Some(rule.outcome.clone());
            }
        }
        None
    }

    /// Boots a machine that is off.
    pub(crate) fn start(state: &mut State, now: Instant, id: &str) -> Result<(), CloudError> {
        let record = visible(state, id, now)?;
        match record.view.phase {
            Phase::Running | Phase::Creating => Ok(()),
            Phase::Stopped => {
                let (boot, never_runs) = (record.boot, record.never_runs);
                mark(state, id, |record| record.view.phase = Phase::Creating);
                if !never_runs {
                    let at = now + state.draw(boot);
                    state.schedule(id, at, Change::Run);
                }
                Ok(())
            }
            phase => Err(CloudError::Conflict(format!("machine {id} is {phase:?}, not off"))),
        }
    }

    /// Starts to power a machine off, and says when it is off.
    pub(crate) fn stop(
        state: &mut State,
        now: Instant,
        id: &str,
        grace: Duration,
    ) -> Result<Instant, CloudError> {
        let record = visible(state, id, now)?;
        match record.view.phase {
            Phase::Stopped | Phase::Failed => return Ok(now),
            Phase::Gone | Phase::Destroying => return Err(no_such(id)),
            Phase::Creating | Phase::Running | Phase::Stopping => {}
        }
        let (stop, ignores) = (record.stop, record.ignores_stop);
        let needs = state.draw(stop);
        let at = now + if ignores { grace } else { needs.min(grace) };
        mark(state, id, |record| {
            record.view.phase = Phase::Stopping;
            record.due.retain(|(_, change)| matches!(change, Change::Vanish | Change::Announce));
        });
        state.schedule(id, at, Change::PowerOff);
        Ok(at)
    }

    /// Starts to remove a machine and what it left, and says when it is gone.
    pub(crate) fn destroy(state: &mut State, now: Instant, id: &str) -> Instant {
        state.leftovers.remove(id);
        let Some(record) = state.machines.get(id).filter(|record| record.exists()) else {
            // Asked again: what the first time left behind goes now.
            state.leftovers.remove(&format!("disk-of-{id}"));
            return now;
        };
        if let (Phase::Destroying, Some((at, _))) = (record.view.phase, record.due.first()) {
            return *at;
        }
        let span = record.destroy;
        let at = now + state.draw(span);
        mark(state, id, |record| {
            record.view.phase = Phase::Destroying;
            record.due.clear();
        });
        state.schedule(id, at, Change::Go);
        at
    }

    /// Attaches a volume.
    pub(crate) fn attach(
        state: &mut State,
        now: Instant,
        id: &str,
        volume: &str,
    ) -> Result<(), CloudError> {
        visible(state, id, now)?;
        check_exists(state, volume)?;
        check_not_attached(state, volume, id)?;
        mark(state, id, |record| {
            record.view.attached.insert(volume.to_owned());
        });
        Ok(())
    }

    /// Detaches a volume.
    pub(crate) fn detach(
        state: &mut State,
        now: Instant,
        id: &str,
        volume: &str,
    ) -> Result<(), CloudError> {
        visible(state, id, now)?;
        mark(state, id, |record| {
            record.view.attached.remove(volume);
        });
        Ok(())
    }

    /// What carries the tags and is not a machine.
    pub(crate) fn sweep(state: &State, tags: &BTreeMap<String, String>) -> Vec<LeftoverView> {
        let carries = |left: &&LeftoverView| {
            tags.iter().all(|(key, value)| left.tags.get(key) == Some(value))
        };
        state.leftovers.values().filter(carries).cloned().collect()
    }
}

/// A machine that callers can see.
pub(crate) fn visible<'a>(
    state: &'a State,
    id: &str,
    now: Instant,
) -> Result<&'a Record, CloudError> {
    state.visible(id, now).ok_or_else(|| no_such(id))
}

/// Waits until `at`, as far as the caller does.
pub(crate) async fn wait_until(
    ctx: &CallContext,
    method: Method,
    at: Instant,
) -> Result<(), ProviderError> {
    let Some(deadline) = ctx.deadline.filter(|deadline| *deadline < at) else {
        sleep_until(at).await;
        return Ok(());
    };
    sleep_until(deadline).await;
    Err(CloudError::Deadline { method }.into())
}

async fn pause(delay: Duration) {
    if !delay.is_zero() {
        sleep(delay).await;
    }
}

fn throttle(state: &mut State, limit: Throttle, now: Instant) -> Option<Duration> {
    let full = f64::from(limit.calls.max(1));
    let per_call = Duration::from_millis(limit.refill_ms).div_f64(full);
    let bucket = state.bucket.get_or_insert(Bucket { level: full, at: now });
    let refilled = now.saturating_duration_since(bucket.at).as_secs_f64()
        / per_call.as_secs_f64().max(f64::EPSILON);
    bucket.level = (bucket.level + refilled).min(full);
    bucket.at = now;
    if bucket.level >= 1.0 {
        bucket.level -= 1.0;
        return None;
    }
    Some(per_call.mul_f64(1.0 - bucket.level).max(Duration::from_millis(1)))
}

fn check_quota(
    limits: &QuotaLimits,
    state: &State,
    wanted: &MachineType,
) -> Result<(), CloudError> {
    let used = used(state);
    let rows = [
        ("machines", limits.machines, used.machines + 1),
        ("cpu_millis", limits.cpu_millis, used.cpu_millis + wanted.cpu_millis),
        ("memory_bytes", limits.memory_bytes, used.memory_bytes + wanted.memory_bytes),
    ];
    for (name, limit, needed) in rows {
        if let Some(limit) = limit.filter(|limit| needed > *limit) {
            return Err(CloudError::Quota { name, limit });
        }
    }
    Ok(())
}

/// What machines take up.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pub(crate) machines: u64,
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
}

/// What all machines that exist take up.
pub(crate) fn used(state: &State) -> Used {
    let mut used = Used::default();
    for record in state.machines.values().filter(|record| record.exists()) {
        used.machines += 1;
        used.cpu_millis += record.machine_type().cpu_millis;
        used.memory_bytes += record.machine_type().memory_bytes;
    }
    used
}

fn check_not_attached(state: &State, volume: &str, except: &str) -> Result<(), CloudError> {
    let holder = state
        .machines
        .values()
        .filter(|record| record.exists())
        .find(|record| record.view.id != except && record.view.attached.contains(volume));
    match holder {
        Some(record) => Err(CloudError::Conflict(format!(
            "volume {volume} is attached to machine {}",
            record.view.id
        ))),
        None => Ok(()),
    }
}

fn same_shape(
    there: &MachineView,
    request: &CreateRequest,
    machine_type: &MachineType,
) -> Result<(), CloudError> {
    let same = there.name == request.name
        && there.machine_type.name == machine_type.name
        && there.image == request.image
        && there.user_data.expose() == request.user_data
        && there.tags == request.tags.clone().into_iter().collect();
    if same {
        return Ok(());
    }
    Err(CloudError::Conflict(format!("machine {} was made with another shape", there.id)))
}

fn record(view: MachineView, visible_at: Instant, behaviour: Behaviour) -> Record {
    let Behaviour { boot, stop, destroy, lingers, hidden: Span { .. } } = behaviour;
    Record {
        view,
        visible_at,
        due: Vec::new(),
        boot,
        stop,
        destroy,
        lingers,
        ignores_stop: false,
        never_runs: false,
        leaves_disk: false,
        console: Console::default(),
    }
}

fn mark(state: &mut State, id: &str, change: impl FnOnce(&mut Record)) {
    if let Some(record) = state.machines.get_mut(id) {
        change(record);
        state.version += 1;
    }
}

fn fill(pattern: &str, id: &str, name: &str, ip: &str, number: u64) -> String {
    pattern
        .replace("{id}", id)
        .replace("{name}", name)
        .replace("{ip}", ip)
        .replace("{number}", &number.to_string())
}

fn no_such(id: &str) -> CloudError {
    CloudError::NoSuchMachine { id: id.to_owned() }
}
