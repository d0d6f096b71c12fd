//! What a fake cloud does to its callers and its machines, as data.
//!
//! Every part can be written in code or in the `[config.script]` table of an instance. The default script is a cloud
//! on its best day: no delay, no fault, a machine runs at once.

use std::collections::BTreeMap;
use std::time::Duration;

use infranetes_sdk::ErrorKind;
use serde::{Deserialize, Deserializer};

/// Everything that can be scripted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// How long a call takes, half of it before and half of it after its effect. A call that is cut off in the first
    /// half did nothing; one that is cut off in the second half did everything, and nobody was told.
    pub delay: Span,
    /// The same for single methods.
    pub delays: BTreeMap<Method, Span>,
    /// Calls that go wrong. The first rule that matches a call decides.
    pub faults: Vec<FaultRule>,
    /// How machines behave when nothing else is said.
    pub machines: Behaviour,
    /// Machines that come out differently, counted over all that were ever created. The first match decides.
    pub outcomes: Vec<OutcomeRule>,
    /// What the cloud does with a token that it has seen before.
    pub tokens: Tokens,
    /// How many calls the cloud takes before it answers `Throttled`.
    pub throttle: Option<Throttle>,
    /// Account limits.
    pub quota: QuotaLimits,
    /// Names of machine types that have no capacity now: `create` answers `Capacity` at once.
    pub sold_out: Vec<String>,
    /// What `plan` chooses from, and all that `create` takes.
    pub types: Vec<TypeEntry>,
    /// Machine images that `create` takes; none means container pods only.
    pub images: Vec<String>,
    /// Where the agent of a machine listens. `{id}`, `{name}`, `{ip}` and `{number}` are filled in.
    pub endpoint: String,
    /// The most bytes of user-data that `create` takes.
    pub user_data_limit_bytes: u64,
    /// Entries on a page of `list` when the caller does not say.
    pub page_size: u32,
    /// What this cloud cannot do.
    pub without: Vec<Feature>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            delay: Span::ZERO,
            delays: BTreeMap::new(),
            faults: Vec::new(),
            machines: Behaviour::default(),
            outcomes: Vec::new(),
            tokens: Tokens::Native,
            throttle: None,
            quota: QuotaLimits::default(),
            sold_out: Vec::new(),
            types: TypeEntry::catalogue(),
            images: Vec::new(),
            endpoint: "tcp://{ip}:7777".to_owned(),
            user_data_limit_bytes: 16 * 1024,
            page_size: 50,
            without: Vec::new(),
        }
    }
}

impl Script {
    /// Adds a call that goes wrong.
    #[must_use]
    pub fn with_fault(mut self, method: Method, when: When, action: FaultAction) -> Self {
        self.faults.push(FaultRule { method, when, action });
        self
    }

    /// Adds a machine that comes out differently.
    #[must_use]
    pub fn with_outcome(mut self, when: When, outcome: Outcome) -> Self {
        self.outcomes.push(OutcomeRule { when, outcome });
        self
    }

    /// How long a call of `method` takes.
    pub(crate) fn delay_of(&self, method: Method) -> Span {
        self.delays.get(&method).copied().unwrap_or(self.delay)
    }

    pub(crate) fn lacks(&self, feature: Feature) -> bool {
        self.without.contains(&feature)
    }
}

/// The methods of the provider that reach the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "named like the methods of `PodProvider`")]
pub enum Method {
    Plan,
    Create,
    Get,
    List,
    Start,
    Stop,
    Destroy,
    Addresses,
    Attach,
    Detach,
    Console,
    Resize,
    Events,
    Sweep,
    Quota,
    CreateVolume,
    GetVolume,
    ListVolumes,
    ExpandVolume,
    SnapshotVolume,
    DeleteVolume,
}

/// Which calls, or which machines, a rule is about. Counting starts at 1 and goes on over restarts of a provider,
/// because the cloud counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// All.
    #[default]
    Always,
    /// Only this one.
    Nth(u64),
    /// The first ones, up to and including this one.
    First(u64),
    /// Each whose number divides by this.
    Every(u64),
    /// This many of a hundred, by the cloud's seed.
    Percent(u8),
}

/// A call that goes wrong.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// Of which method.
    pub method: Method,
    /// Which of its calls.
    #[serde(default)]
    pub when: When,
    /// How.
    pub action: FaultAction,
}

/// How a call goes wrong.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultAction {
    /// It has no effect, and answers this.
    Fail(Failure),
    /// It takes effect, and the caller sees a `Transient` error.
    LoseAnswer,
    /// It has no effect and never answers; the caller's deadline ends it.
    Hang,
    /// It takes effect and never answers.
    HangAfterEffect,
}

/// A failure in a provider's words.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// "quota", "capacity", "credentials", "throttled", "not_found", "conflict", "invalid", "unsupported",
    /// "transient", "internal" or "deadline_exceeded".
    #[serde(deserialize_with = "kind_by_name")]
    pub kind: ErrorKind,
    /// One sentence.
    #[serde(default = "Failure::default_message")]
    pub message: String,
    /// When the cloud says to come back.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    /// The cloud's own code, or empty.
    #[serde(default)]
    pub provider_code: String,
}

impl Failure {
    /// A failure without a retry time or code.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after_ms: None, provider_code: String::new() }
    }

    fn default_message() -> String {
        "the script says that this fails".to_owned()
    }
}

/// How a machine behaves.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behaviour {
    /// From accepted to running, and from `start` to running.
    pub boot: Span,
    /// From the wish to power off until it is off.
    pub stop: Span,
    /// From `destroy` until it is gone.
    pub destroy: Span,
    /// For so long after `create`, `get` and `list` do not show it.
    pub hidden: Span,
    /// For so long after it is gone, `get` and `list` still show it as being destroyed.
    pub lingers: Span,
}

/// A machine that comes out differently.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutcomeRule {
    /// Which machines.
    #[serde(default)]
    pub when: When,
    /// How.
    pub outcome: Outcome,
}

/// How a machine comes out.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The cloud accepts it and later finds that it cannot: `Failed`, and somebody has to destroy it.
    Fails {
        /// From accepted to failed.
        after: Span,
        /// Why.
        failure: Failure,
    },
    /// It stays in `Creating` for ever.
    NeverRuns,
    /// It is gone some time after it was accepted, and nobody asked for that.
    Vanishes {
        /// From accepted to gone.
        after: Span,
    },
    /// The guest powers itself off some time after it was accepted.
    PowersOff {
        /// From accepted to off.
        after: Span,
    },
    /// The guest does not hear the power button: `stop` takes the whole grace.
    IgnoresStop,
    /// Its disk is left behind when it is destroyed.
    LeavesDisk,
    /// The cloud announces that it will take the machine back, and does so.
    Preempted {
        /// From accepted to the announcement.
        after: Span,
        /// From the announcement to gone.
        notice: Span,
    },
}

/// What happens with a token that was seen before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokens {
    /// The cloud knows tokens: one machine (AWS, GCP).
    #[default]
    Native,
    /// The cloud does not; the provider looks for the name in the listing before it creates. Two calls at once, or a
    /// listing that lags, make two machines (Nova).
    ListFirst,
    /// Every call makes a machine.
    Ignored,
}

/// A bucket of calls.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    /// How many calls fit.
    pub calls: u32,
    /// How long it takes to fill from empty.
    pub refill_ms: u64,
}

/// Account limits; what is absent has no limit.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaLimits {
    /// Machines that exist, stopped and failed ones included.
    pub machines: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Memory.
    pub memory_bytes: Option<u64>,
}

/// A machine type of the catalogue.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypeEntry {
    /// Its name.
    pub name: String,
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// GPUs.
    #[serde(default)]
    pub gpus: u32,
    /// "amd64" or "arm64".
    #[serde(default = "TypeEntry::default_architecture")]
    pub architecture: String,
    /// Where it is to be had; empty for a cloud without zones.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Micro-units of a dollar per hour.
    #[serde(default)]
    pub price_micros_per_hour: Option<u64>,
    /// The price when it may be taken back; absent means that it cannot be had as spot.
    #[serde(default)]
    pub spot_price_micros_per_hour: Option<u64>,
}

impl TypeEntry {
    fn catalogue() -> Vec<Self> {
        let gib = 1 << 30;
        let rows: [(&str, u64, u64, u32, &str, u64); 6] = [
            ("f1-small", 1_000, gib, 0, "amd64", 10_000),
            ("f1-medium", 2_000, 4 * gib, 0, "amd64", 40_000),
            ("f1-large", 8_000, 32 * gib, 0, "amd64", 320_000),
            ("f1-huge", 64_000, 512 * gib, 0, "amd64", 5_120_000),
            ("f2-arm", 2_000, 4 * gib, 0, "arm64", 30_000),
            ("f3-gpu", 16_000, 64 * gib, 1, "amd64", 2_500_000),
        ];
        rows.into_iter()
            .map(|(name, cpu_millis, memory_bytes, gpus, architecture, price)| Self {
                name: name.to_owned(),
                cpu_millis,
                memory_bytes,
                gpus,
                architecture: architecture.to_owned(),
                zones: vec!["zone-a".to_owned(), "zone-b".to_owned()],
                price_micros_per_hour: Some(price),
                spot_price_micros_per_hour: Some(price / 4),
            })
            .collect()
    }

    fn default_architecture() -> String {
        "amd64".to_owned()
    }
}

/// What a cloud may lack; `describe` then denies it and its methods answer `Unsupported`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "named like the fields of `PodCapabilities`")]
pub enum Feature {
    Attach,
    Console,
    StopStart,
    Resize,
    Events,
    Sweep,
    Quota,
    Expand,
    Snapshot,
}

/// A length of time, or a range that the cloud's seed draws from. In configuration: `250` or `[100, 400]`, in
/// milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "SpanText")]
pub struct Span {
    /// The shortest.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self { min: Duration::ZERO, max: Duration::ZERO };

    /// Always so many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self { min: Duration::from_millis(millis), max: Duration::from_millis(millis) }
    }

    /// Between two numbers of milliseconds.
    pub const fn between(min: u64, max: u64) -> Self {
        Self { min: Duration::from_millis(min), max: Duration::from_millis(max) }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SpanText {
    Fixed(u64),
    Range([u64; 2]),
}

impl From<SpanText> for Span {
    fn from(text: SpanText) -> Self {
        match text {
            SpanText::Fixed(millis) => Self::millis(millis),
            SpanText::Range([min, max]) => Self::between(min.min(max), max.max(min)),
        }
    }
}

fn kind_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ErrorKind, D::Error> {
    let name = String::deserialize(deserializer)?;
    ErrorKind::ALL
        .into_iter()
        .find(|kind| kind.to_string().replace(' ', "_") == name)
        .ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no kind of error")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reads_from_configuration() {
        let script: Script = serde_json::from_value(serde_json::json!({
            "delay": 5,
            "delays": { "create": [100, 400] },
            "faults": [
                { "method": "create", "when": { "nth": 2 }, "action": { "fail": { "kind": "not_found" } } },
                { "method": "get", "action": "lose_answer" },
            ],
            "outcomes": [
                { "when": { "every": 3 }, "outcome": { "fails": { "after": 10, "failure": { "kind": "capacity" } } } },
                { "when": { "percent": 5 }, "outcome": "never_runs" },
            ],
            "tokens": "list_first",
            "without": ["console"],
        }))
        .expect("a script");
        assert_eq!(script.delay_of(Method::Get), Span::millis(5));
        assert_eq!(script.delay_of(Method::Create), Span::between(100, 400));
        assert_eq!(script.faults[0].when, When::Nth(2));
        assert_eq!(script.faults[1].when, When::Always);
        assert!(script.lacks(Feature::Console));
        assert_eq!(script.tokens, Tokens::ListFirst);
    }

    #[test]
    fn a_typing_error_is_refused_by_its_name() {
        for (wrong, hint) in [
            (serde_json::json!({ "dellay": 5 }), "dellay"),
            (serde_json::json!({ "delays": { "crate": 5 } }), "crate"),
            (
                serde_json::json!({ "faults": [{ "method": "get", "action": { "fail": { "kind": "x" } } }] }),
                "\"x\" is no kind of error",
            ),
        ] {
            let error = serde_json::from_value::<Script>(wrong).expect_err("refused").to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
