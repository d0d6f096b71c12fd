//! What a world is made of, from one seed.

use std::time::Duration;

use infranetes_provider_fake::{
    Behaviour, Failure, FaultAction, Method, Outcome, Script, Span, Tokens, When,
};
use infranetes_sdk::ErrorKind;

use crate::sim::random::Random;

/// One history's beginning.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Every chance comes from it.
    pub seed: u64,
    /// How many pods live in it.
    pub pods: usize,
    /// The cloud.
    pub script: Script,
    /// After how many passages of a seam each life of an engine ends; the one after the last lives on.
    pub crashes: Vec<u64>,
    /// How long the node is down after a crash.
    pub down: Duration,
    /// How often of a hundred a call to an agent breaks its session.
    pub break_percent: u64,
    /// How long an agent's certificate is good for.
    pub certificate_life: Duration,
    /// How often of a hundred a kubelet asks twice, gives up half-way, or ends a pod early.
    pub restless_percent: u64,
    /// The node connects its pods; else their machines come with addresses.
    pub pod_network: bool,
    /// How often of a hundred the node's pod network fails.
    pub network_trouble_percent: u64,
    /// Each pod is written to the node's disk, and another one goes on from there beside it. That is real files and threads: such a
    /// history is not the same to the last await.
    pub checkpoints: bool,
    /// Machines may end by themselves in this world.
    pub mortal: bool,
    /// How the world itself is broken, to see that it notices.
    pub sabotage: Sabotage,
}

/// Ways to break the world, so that a promise has to be broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// None: all promises hold.
    #[default]
    None,
    /// The store says that the intent of a machine is durable, and forgets it.
    IntentsForgotten,
    /// The store says that a wish is durable whose network is about to be set up, and forgets it.
    WishesForgotten,
    /// The store says that a removal is durable, and forgets it.
    GoalsForgotten,
    /// The cloud makes a machine for every create call, whatever the token.
    TokensIgnored,
    /// The node's disk says that what a container wrote is there, and it is not.
    WritesLost,
}

impl Scenario {
    /// A world on a good day: calls take a little time, and that is all.
    pub fn calm(seed: u64) -> Self {
        let script = Script {
            delay: Span::millis(40),
            machines: Behaviour {
                boot: Span::millis(2000),
                destroy: Span::millis(300),
                ..Behaviour::default()
            },
            ..Script::default()
        };
        Self {
            seed,
            pods: 1,
            script,
            crashes: Vec::new(),
            down: Duration::from_secs(1),
            break_percent: 0,
            certificate_life: CERTIFICATE_LIFE,
            restless_percent: 0,
            pod_network: true,
            network_trouble_percent: 0,
            checkpoints: false,
            mortal: false,
            sabotage: Sabotage::None,
        }
    }

    /// Nothing fails or dies in this world.
    pub fn is_calm(&self) -> bool {
        self.crashes.is_empty() && self.break_percent == 0 && !self.mortal && self.pods == 1
    }

    /// A calm world whose engine dies after `passages`.
    pub fn crash_at(passages: u64) -> Self {
        Self { crashes: vec![passages], ..Self::calm(1) }
    }

    /// A calm world with checkpoints, whose engine dies after so many passages, or lives on.
    pub fn with_checkpoints(crashes: Vec<u64>) -> Self {
        Self { crashes, checkpoints: true, ..Self::calm(1) }
    }

    /// The world of a seed: anything may be slow, fail, lose its answer, or die.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mortal = random.percent(30);
        let crashes = (0..random.below(5)).map(|_| 1 + random.below(120)).collect();
        Self {
            seed,
            pods: 1 + random.below(3) as usize,
            script: script(&mut random, mortal),
            crashes,
            down: Duration::from_millis(random.below(20_000)),
            certificate_life: CERTIFICATE_LIFE,
            break_percent: if random.percent(40) { random.below(12) } else { 0 },
            restless_percent: if random.percent(60) { random.below(40) } else { 0 },
            pod_network: random.percent(60),
            network_trouble_percent: if random.percent(40) { random.below(30) } else { 0 },
            checkpoints: false,
            mortal,
            sabotage: Sabotage::None,
        }
    }
}

fn script(random: &mut Random, mortal: bool) -> Script {
    let mut script = Script {
        delay: Span::between(1, 1 + random.below(2000)),
        machines: Behaviour {
            boot: Span::between(100, 100 + random.below(20_000)),
            stop: Span::between(0, random.below(5000)),
            destroy: Span::between(0, random.below(20_000)),
            hidden: Span::between(0, random.below(8000)),
            lingers: Span::between(0, random.below(8000)),
        },
        tokens: Tokens::Native,
        ..Script::default()
    };
    for method in [Method::Plan, Method::Create, Method::Get, Method::List, Method::Destroy] {
        if random.percent(40) {
            let percent = 1 + random.below(25) as u8;
            script = script.with_fault(method, When::Percent(percent), fault(random, method));
        }
    }
    if mortal {
        let after = Span::between(0, 60_000);
        let outcome = match random.below(5) {
            0 => Outcome::Vanishes { after },
            1 => Outcome::PowersOff { after },
            2 => Outcome::NeverRuns,
            3 => Outcome::Preempted { after, notice: Span::millis(5000) },
            _ => Outcome::Fails {
                after: Span::between(0, 5000),
                failure: Failure::new(kind(random), "the cloud changed its mind"),
            },
        };
        script = script.with_outcome(When::Percent(10 + random.below(50) as u8), outcome);
    }
    if random.percent(10) {
        script.sold_out = vec!["f1-small".to_owned()];
    }
    script
}

fn fault(random: &mut Random, method: Method) -> FaultAction {
    match random.below(4) {
        0 => FaultAction::LoseAnswer,
        1 if method == Method::Create => FaultAction::HangAfterEffect,
        2 if method == Method::Create => FaultAction::Fail(Failure::new(kind(random), "not now")),
        1 => FaultAction::Hang,
        _ => FaultAction::Fail(Failure::new(ErrorKind::Transient, "try again")),
    }
}

fn kind(random: &mut Random) -> ErrorKind {
    let kinds = [
        ErrorKind::Quota,
        ErrorKind::Capacity,
        ErrorKind::Credentials,
        ErrorKind::Throttled,
        ErrorKind::Invalid,
        ErrorKind::Transient,
        ErrorKind::Internal,
    ];
    kinds[random.below(kinds.len() as u64) as usize]
}

/// The shortest that a daemon takes.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(600);
