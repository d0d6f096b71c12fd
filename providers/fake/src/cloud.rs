//! The cloud itself: what a test holds in its hand while providers come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use infranetes_sdk::pod::{MachineEventKind, MachineType};
use infranetes_sdk::{ErrorKind, Secret};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::script::{Failure, FaultAction, FaultRule, Method, When};
use crate::state::{Change, State};

/// A cloud in memory. Cheap to clone; every clone is the same cloud, and it outlives the providers in front of it, so
/// that a simulated node can crash and come back to the machines that it left.
///
/// The methods here are for the one who tests: they look at the truth, without delay, and do to machines what a real
/// cloud does behind everybody's back.
#[derive(Clone, Debug)]
pub struct FakeCloud {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// A machine as it truly is.
#[derive(Clone, Debug)]
pub struct MachineView {
    /// The cloud's id.
    pub id: String,
    /// Its number: the first machine that was ever created is 1.
    pub number: u64,
    /// The token that it was created with.
    pub token: String,
    /// The name that it was created with.
    pub name: String,
    /// What it does.
    pub phase: Phase,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its type.
    pub machine_type: MachineType,
    /// What was handed to the guest.
    pub user_data: Secret,
    /// Its machine image, or empty.
    pub image: String,
    /// Volumes attached to it.
    pub attached: BTreeSet<String>,
    /// How often it came up.
    pub boots: u64,
    /// Its address.
    pub ip: String,
    /// Where its agent would listen.
    pub endpoint: String,
    /// On a calendar that starts with the cloud's first call.
    pub created_unix_ms: u64,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Accepted, not running yet.
    Creating,
    /// Up.
    Running,
    /// On the way down.
    Stopping,
    /// Off.
    Stopped,
    /// It will never run.
    Failed,
    /// On the way out.
    Destroying,
    /// Gone; at most still listed.
    Gone,
}

/// Something that costs money and is not a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftoverView {
    /// "disk", "nic", …
    pub kind: String,
    /// The cloud's id.
    pub id: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// One call that reached the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    /// Since the cloud's first call, in milliseconds.
    pub at_ms: u64,
    /// Which method.
    pub method: Method,
    /// The machine's id; for `create` its name; else empty.
    pub subject: String,
    /// The kind of the error that the cloud decided on, or `None` where the call took effect.
    pub refused: Option<ErrorKind>,
}

impl FakeCloud {
    /// An empty cloud. Every chance in it comes from `seed`.
    pub fn new(seed: u64) -> Self {
        let state = Mutex::new(State::new(seed));
        Self { shared: Arc::new(Shared { state, changed: watch::Sender::new(0) }) }
    }

    /// How many machines exist and cost money: all but those that are gone.
    pub fn alive(&self) -> usize {
        self.now(|state| state.machines.values().filter(|record| record.exists()).count())
    }

    /// How many machines were ever created.
    pub fn created(&self) -> u64 {
        self.now(|state| state.created)
    }

    /// How many machines were ever created by this name.
    pub fn created_with_name(&self, name: &str) -> u64 {
        self.now(|state| state.created_by_name.get(name).copied().unwrap_or(0))
    }

    /// How many calls of `method` reached the cloud, throttled and failed ones included.
    pub fn calls(&self, method: Method) -> u64 {
        self.now(|state| state.calls.get(&method).copied().unwrap_or(0))
    }

    /// The last calls, oldest first. Two runs with one seed and the same calls have equal journals.
    pub fn journal(&self) -> Vec<CallRecord> {
        self.now(|state| state.journal.iter().cloned().collect())
    }

    /// Every machine that exists, in the order of creation.
    pub fn machines(&self) -> Vec<MachineView> {
        self.now(|state| {
            let there = state.machines.values().filter(|record| record.exists());
            there.map(|record| record.view.clone()).collect()
        })
    }

    /// A machine that exists.
    pub fn machine(&self, id: &str) -> Option<MachineView> {
        self.now(|state| {
            let record = state.machines.get(id).filter(|record| record.exists())?;
            Some(record.view.clone())
        })
    }

    /// How many machines exist for each value of the tag `key`. More than one for a value that names a sandbox is a
    /// leak.
    pub fn alive_by_tag(&self, key: &str) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for value in self.machines().iter().filter_map(|machine| machine.tags.get(key)) {
            *count.entry(value.clone()).or_default() += 1;
        }
        count
    }

    /// What was left behind.
    pub fn leftovers(&self) -> Vec<LeftoverView> {
        self.now(|state| state.leftovers.values().cloned().collect())
    }

    /// Makes the next call of `method` go wrong, before any rule of a script.
    pub fn fail_next(&self, method: Method, action: FaultAction) {
        self.now(|state| state.injected.push(FaultRule { method, when: When::Always, action }));
    }

    /// Takes a machine away. False if it does not exist.
    pub fn vanish(&self, id: &str) -> bool {
        self.change(id, Change::Vanish)
    }

    /// Lets the guest power itself off. False if the machine does not exist.
    pub fn power_off(&self, id: &str) -> bool {
        self.change(id, Change::PowerOff)
    }

    /// Makes a machine fail. False if it does not exist.
    pub fn fail(&self, id: &str, failure: Failure) -> bool {
        self.change(id, Change::Fail(failure))
    }

    /// Announces that the cloud takes a machine back soon. False if it does not exist.
    pub fn announce_preemption(&self, id: &str) -> bool {
        self.change(id, Change::Announce)
    }

    /// Says that a machine will be under maintenance. False if it does not exist.
    pub fn announce_maintenance(&self, id: &str) -> bool {
        let there = self.machine(id).is_some();
        if there {
            let kind = MachineEventKind::Maintenance;
            self.now(|state| state.emit(id, kind, "the cloud works on the host of the machine"));
        }
        there
    }

    /// Lets a guest print on its console.
    pub fn print(&self, id: &str, text: &[u8]) {
        self.now(|state| state.print(id, text));
    }

    /// Leaves something behind.
    pub fn leave_behind(&self, leftover: LeftoverView) {
        self.now(|state| state.leftovers.insert(leftover.id.clone(), leftover));
    }

    /// Looks at the state of now, and tells streams when that changed it.
    pub(crate) fn now<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        self.at(Instant::now(), look)
    }

    pub(crate) fn at<T>(&self, now: Instant, look: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        state.advance(now);
        let answer = look(&mut state);
        // What fell due at once (a boot that takes no time) is true for the next one who looks.
        state.advance(now);
        let version = state.version;
        drop(state);
        self.shared.changed.send_if_modified(|seen| {
            let changed = *seen < version;
            *seen = (*seen).max(version);
            changed
        });
        answer
    }

    /// Wakes up when something changed that a stream may wait for.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    fn change(&self, id: &str, change: Change) -> bool {
        let now = Instant::now();
        self.at(now, |state| {
            let there = state.machines.get(id).is_some_and(|record| record.exists());
            if there {
                state.schedule(id, now, change);
            }
            there
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it looked did not break the cloud.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
