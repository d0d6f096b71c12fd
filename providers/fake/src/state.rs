//! The truth of a fake cloud: its machines, and what time does to them.
//!
//! Nothing runs in the background. Each machine carries a list of changes with the time at which they are due, and
//! [`State::advance`] applies those whose time has come, in order. So the cloud goes on while no provider exists, works
//! under paused time, and gives the same history for the same seed and calls.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use infranetes_sdk::pod::{MachineEventKind, MachineType};
use tokio::time::Instant;

use crate::cloud::{CallRecord, LeftoverView, MachineView, Phase};
use crate::script::{Failure, FaultAction, FaultRule, Method, Span, When};
use crate::volumes::Volumes;

/// Everything that a cloud knows.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) machines: BTreeMap<String, Record>,
    pub(crate) leftovers: BTreeMap<String, LeftoverView>,
    pub(crate) volumes: Volumes,
    pub(crate) calls: BTreeMap<Method, u64>,
    pub(crate) created: u64,
    pub(crate) created_by_name: BTreeMap<String, u64>,
    pub(crate) injected: Vec<FaultRule>,
    pub(crate) journal: VecDeque<CallRecord>,
    pub(crate) bucket: Option<Bucket>,
    /// Goes up with everything that a stream may wait for.
    pub(crate) version: u64,
    events: VecDeque<Event>,
    next_event: u64,
    epoch: Option<Instant>,
    random: Random,
}

/// One machine.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) view: MachineView,
    pub(crate) visible_at: Instant,
    pub(crate) due: Vec<(Instant, Change)>,
    pub(crate) boot: Span,
    pub(crate) stop: Span,
    pub(crate) destroy: Span,
    pub(crate) lingers: Span,
    pub(crate) ignores_stop: bool,
    pub(crate) never_runs: bool,
    pub(crate) leaves_disk: bool,
    pub(crate) console: Console,
}

/// What time does to a machine.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Run,
    Fail(Failure),
    PowerOff,
    Announce,
    /// Gone without anybody asking.
    Vanish,
    /// Gone because somebody destroyed it.
    Go,
    /// Not even listed any more.
    Forget,
}

/// Something that happened to a machine.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) number: u64,
    pub(crate) machine_id: String,
    pub(crate) kind: MachineEventKind,
    pub(crate) message: String,
}

/// The last part of what a machine printed.
#[derive(Debug, Default)]
pub(crate) struct Console {
    bytes: VecDeque<u8>,
    /// How many were ever printed.
    pub(crate) total: u64,
}

/// Calls that the cloud takes now.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) level: f64,
    pub(crate) at: Instant,
}

impl State {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            machines: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            volumes: Volumes::default(),
            calls: BTreeMap::new(),
            created: 0,
            created_by_name: BTreeMap::new(),
            injected: Vec::new(),
            journal: VecDeque::new(),
            bucket: None,
            version: 0,
            events: VecDeque::new(),
            next_event: 0,
            epoch: None,
            random: Random(seed),
        }
    }

    /// Applies every change whose time has come, in the order of their times.
    pub(crate) fn advance(&mut self, now: Instant) {
        while let Some((at, id)) = self.next_due() {
            if at > now {
                return;
            }
            let Some(record) = self.machines.get_mut(&id) else { return };
            let (at, change) = record.due.remove(0);
            self.apply(&id, at, change);
            self.version += 1;
        }
    }

    /// When the next change is due.
    pub(crate) fn next_change(&self) -> Option<Instant> {
        self.next_due().map(|(at, _)| at)
    }

    /// Lets a change happen at `at`; the changes of one machine stay sorted.
    pub(crate) fn schedule(&mut self, id: &str, at: Instant, change: Change) {
        if let Some(record) = self.machines.get_mut(id) {
            let place = record.due.partition_point(|(due, _)| *due <= at);
            record.due.insert(place, (at, change));
            self.version += 1;
        }
    }

    /// What is not there is not an answer: `None` while the cloud hides the machine, or once it is forgotten.
    pub(crate) fn visible(&self, id: &str, now: Instant) -> Option<&Record> {
        self.machines.get(id).filter(|record| record.visible_at <= now)
    }

    /// Draws from a span.
    pub(crate) fn draw(&mut self, span: Span) -> Duration {
        let width = span.max.saturating_sub(span.min).as_nanos();
        let width = u64::try_from(width).unwrap_or(u64::MAX);
        if width == 0 {
            return span.min;
        }
        span.min + Duration::from_nanos(self.random.below(width.saturating_add(1)))
    }

    /// Whether a rule is about number `number`.
    pub(crate) fn matches(&mut self, when: When, number: u64) -> bool {
        match when {
            When::Always => true,
            When::Nth(wanted) => number == wanted,
            When::First(last) => number <= last,
            When::Every(step) => step != 0 && number.is_multiple_of(step),
            When::Percent(percent) => self.random.below(100) < u64::from(percent),
        }
    }

    /// The fault that was injected for the next call of `method`; it is used up.
    pub(crate) fn take_injected(&mut self, method: Method) -> Option<FaultAction> {
        let place = self.injected.iter().position(|rule| rule.method == method)?;
        Some(self.injected.remove(place).action)
    }

    /// Milliseconds of a made-up calendar, the same in every run.
    pub(crate) fn unix_ms(&mut self, now: Instant) -> u64 {
        EPOCH_UNIX_MS.saturating_add(self.since_epoch_ms(now))
    }

    /// Milliseconds since the cloud's first call.
    pub(crate) fn since_epoch_ms(&mut self, now: Instant) -> u64 {
        let epoch = *self.epoch.get_or_insert(now);
        u64::try_from(now.saturating_duration_since(epoch).as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn note_call(&mut self, record: CallRecord) {
        if self.journal.len() == JOURNAL_MAX {
            self.journal.pop_front();
        }
        self.journal.push_back(record);
    }

    /// Events from number `from` on, and the number to go on with.
    pub(crate) fn events_from(&self, from: u64) -> (Vec<Event>, u64) {
        let new = self.events.iter().filter(|event| event.number >= from).cloned().collect();
        (new, self.next_event)
    }

    pub(crate) fn emit(&mut self, id: &str, kind: MachineEventKind, message: &str) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Event {
            number: self.next_event,
            machine_id: id.to_owned(),
            kind,
            message: message.to_owned(),
        });
        self.next_event += 1;
        self.version += 1;
    }

    /// Prints on a machine's console.
    pub(crate) fn print(&mut self, id: &str, text: &[u8]) {
        if let Some(record) = self.machines.get_mut(id) {
            record.console.push(text);
            self.version += 1;
        }
    }

    fn next_due(&self) -> Option<(Instant, String)> {
        self.machines
            .iter()
            .filter_map(|(id, record)| record.due.first().map(|(at, _)| (*at, id)))
            .min()
            .map(|(at, id)| (at, id.clone()))
    }

    fn apply(&mut self, id: &str, at: Instant, change: Change) {
        let Some(record) = self.machines.get_mut(id) else { return };
        if !change.happens_in(record.view.phase) {
            return;
        }
        let name = record.view.name.clone();
        match change {
            Change::Run => {
                record.view.phase = Phase::Running;
                record.view.boots += 1;
                self.print(id, format!("{name} is up\n").as_bytes());
            }
            Change::Fail(failure) => {
                let text = format!("{name} failed: {}\n", failure.message);
                record.view.phase = Phase::Failed;
                record.view.failure = Some(failure);
                record.due.clear();
                self.print(id, text.as_bytes());
            }
            Change::PowerOff => {
                record.view.phase = Phase::Stopped;
                record.due.retain(|(_, change)| matches!(change, Change::Vanish));
                self.print(id, format!("{name} is off\n").as_bytes());
                self.emit(id, MachineEventKind::Gone, "the machine is powered off");
            }
            Change::Announce => self.emit(
                id,
                MachineEventKind::PreemptedSoon,
                "the cloud takes the machine back soon",
            ),
            Change::Vanish => self.go(id, at, "the machine is gone, and nobody asked for that"),
            Change::Go => {
                if record.leaves_disk {
                    let left = LeftoverView {
                        kind: "disk".to_owned(),
                        id: format!("disk-of-{id}"),
                        tags: record.view.tags.clone(),
                        created_unix_ms: record.view.created_unix_ms,
                    };
                    self.leftovers.insert(left.id.clone(), left);
                }
                self.go(id, at, "the machine was destroyed");
            }
            Change::Forget => {
                self.machines.remove(id);
            }
        }
    }

    fn go(&mut self, id: &str, at: Instant, message: &str) {
        let Some(lingers) = self.machines.get(id).map(|record| record.lingers) else { return };
        let until = at + self.draw(lingers);
        if let Some(record) = self.machines.get_mut(id) {
            record.view.phase = Phase::Gone;
            record.view.attached = BTreeSet::new();
            record.due = vec![(until, Change::Forget)];
        }
        self.emit(id, MachineEventKind::Gone, message);
    }
}

impl Change {
    /// Somebody else may have been quicker: a machine on its way out does not fail any more.
    fn happens_in(&self, phase: Phase) -> bool {
        match self {
            Self::Run => phase == Phase::Creating,
            Self::Fail(_) | Self::PowerOff => {
                matches!(phase, Phase::Creating | Phase::Running | Phase::Stopping)
            }
            Self::Announce => !matches!(phase, Phase::Destroying | Phase::Gone),
            Self::Vanish | Self::Go => phase != Phase::Gone,
            Self::Forget => phase == Phase::Gone,
        }
    }
}

impl Record {
    /// Machines that exist count, and cost, until they are gone.
    pub(crate) fn exists(&self) -> bool {
        self.view.phase != Phase::Gone
    }

    pub(crate) fn carries(&self, tags: &BTreeMap<String, String>) -> bool {
        tags.iter().all(|(key, value)| self.view.tags.get(key) == Some(value))
    }

    pub(crate) fn machine_type(&self) -> &MachineType {
        &self.view.machine_type
    }
}

impl Console {
    pub(crate) fn push(&mut self, text: &[u8]) {
        let keep = text.len().min(CONSOLE_MAX);
        let drop = (self.bytes.len() + keep).saturating_sub(CONSOLE_MAX);
        self.bytes.drain(..drop);
        self.bytes.extend(&text[text.len() - keep..]);
        self.total += text.len() as u64;
    }

    /// What was printed after `offset`, as far as it is still kept.
    pub(crate) fn after(&self, offset: u64) -> Vec<u8> {
        let wanted = self.total.saturating_sub(offset).min(self.bytes.len() as u64);
        let wanted = usize::try_from(wanted).unwrap_or(self.bytes.len());
        self.bytes.iter().skip(self.bytes.len() - wanted).copied().collect()
    }
}

/// The SplitMix64 generator: small, and the same on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }
}

const EPOCH_UNIX_MS: u64 = 1_700_000_000_000;
const CONSOLE_MAX: usize = 64 * 1024;
const EVENTS_MAX: usize = 4096;
const JOURNAL_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_keeps_the_last_part_and_counts_all() {
        let mut console = Console::default();
        console.push(&vec![b'a'; CONSOLE_MAX]);
        console.push(b"end");
        assert_eq!(console.total, CONSOLE_MAX as u64 + 3);
        assert_eq!(console.after(0).len(), CONSOLE_MAX);
        assert_eq!(console.after(console.total - 3), b"end");
        assert_eq!(console.after(console.total), b"");
        console.push(&vec![b'b'; 3 * CONSOLE_MAX]);
        assert_eq!(console.after(0), vec![b'b'; CONSOLE_MAX]);
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed() {
        let draws = |seed| {
            let mut state = State::new(seed);
            (0..50).map(|_| state.draw(Span::between(1, 1000))).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
    }
}
