//! What outlives engines, who keeps one running, and what must hold at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use infranetes_core::engine::{
    Engine, EngineConfig, EngineParts, Entropy, HandlerConfig, HandlerNetwork, ImageSource,
    PhaseTimeouts, ResolvedImage, WallClock,
};
use infranetes_core::error::EngineError;
use infranetes_core::record::MemoryStore;
use infranetes_core::session::{LayerSource, MachineImage, MachineLayer};
use infranetes_core::spec::SandboxResources;
use infranetes_provider_fake::{FakeCloud, FakeProvider, Tokens};
use infranetes_sdk::PodProvider;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::sim::agent::{Fleet, SimConnector};
use crate::sim::files::SimFiles;
use crate::sim::kubelet::Kubelet;
use crate::sim::logs::SimLogs;
use crate::sim::network::SimNetwork;
use crate::sim::provider::SimProvider;
use crate::sim::random::Random;
use crate::sim::scenario::{Sabotage, Scenario};
use crate::sim::seam::Seams;
use crate::sim::store::SimStore;

/// Everything that outlives an engine.
pub struct World {
    /// How it began.
    pub scenario: Scenario,
    /// The cloud's truth.
    pub cloud: FakeCloud,
    /// The agents in its machines.
    pub fleet: Arc<Fleet>,
    /// The pod network of the node.
    pub network: Arc<SimNetwork>,
    /// What is durable on the node.
    pub store: MemoryStore,
    /// The log files of the node.
    pub logs: SimLogs,
    /// Its other files.
    pub files: SimFiles,
    /// Where engines die.
    pub seams: Seams,
    /// What was promised and broken.
    pub promises: Arc<Promises>,
    /// The engine of now; `None` while the node is down.
    pub engine: watch::Sender<Option<Engine>>,
    entropy: Arc<SimEntropy>,
    begin: Instant,
}

/// What happened in a world.
#[derive(Clone, Debug)]
pub struct History {
    /// Whose.
    pub seed: u64,
    /// Promises that were broken; none is what is wanted.
    pub broken: Vec<String>,
    /// How many seams were passed.
    pub passages: u64,
    /// How many engines died.
    pub crashes: usize,
    /// How many machines were ever made.
    pub machines: u64,
    /// How long it took in the world's own time.
    pub simulated: Duration,
    /// What was done, line by line.
    pub transcript: Vec<String>,
}

/// Collects broken promises.
#[derive(Debug, Default)]
pub struct Promises(Mutex<Vec<String>>);

impl Promises {
    /// Notes a broken promise, once.
    pub fn broken(&self, what: &str) {
        let mut broken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.len() < 100 && !broken.iter().any(|line| line == what) {
            broken.push(what.to_owned());
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl World {
    /// Lives through a scenario.
    pub async fn run(scenario: &Scenario) -> History {
        let begin = Instant::now();
        let world = Arc::new(Self::new(scenario.clone()));
        let pods = (0..scenario.pods).map(|number| {
            let kubelet = Kubelet::new(world.clone(), number);
            let checkpoints = scenario.checkpoints;
            tokio::spawn(async move {
                match checkpoints {
                    true => kubelet.live_twice().await,
                    false => kubelet.live().await,
                }
            })
        });
        let pods: Vec<_> = pods.collect();
        let mut crashes = 0;
        let lives = world.keep_an_engine_running(&mut crashes);
        let end = async {
            for pod in pods {
                if let Err(error) = pod.await {
                    world.promises.broken(&format!("a kubelet failed: {error}"));
                }
            }
            world.settle().await;
        };
        tokio::select! {
            // In order, not by chance: one seed is one history.
            biased;
            () = lives => {}
            answer = timeout(WORLD_MAX, end) => if answer.is_err() {
                world.promises.broken("the world did not come to its end");
            },
        }
        world.nothing_is_left();
        History {
            seed: scenario.seed,
            broken: world.promises.all(),
            passages: world.seams.passed(),
            crashes,
            machines: world.cloud.created(),
            simulated: begin.elapsed(),
            transcript: world.seams.transcript(),
        }
    }

    /// An empty world; it begins when it is made.
    pub fn new(scenario: Scenario) -> Self {
        let seams = Seams::new();
        let promises = Arc::new(Promises::default());
        let cloud = FakeCloud::new(scenario.seed);
        let fleet = Fleet::new(
            cloud.clone(),
            seams.clone(),
            promises.clone(),
            scenario.seed ^ 0xA6E7,
            scenario.break_percent,
            scenario.certificate_life,
        );
        let network = SimNetwork::new(
            cloud.clone(),
            seams.clone(),
            promises.clone(),
            scenario.seed ^ 0x2E7,
            scenario.network_trouble_percent,
        );
        let entropy = Arc::new(SimEntropy(Mutex::new(Random::new(scenario.seed ^ 0xE7))));
        Self {
            cloud,
            fleet,
            network,
            store: MemoryStore::new(),
            logs: SimLogs::default(),
            files: SimFiles::new(seams.clone(), scenario.sabotage),
            seams,
            promises,
            engine: watch::Sender::new(None),
            entropy,
            begin: Instant::now(),
            scenario,
        }
    }

    /// Starts an engine, waits for its death, drops what is left of it, and starts over; never returns.
    async fn keep_an_engine_running(&self, crashes: &mut usize) {
        let mut lives = self.scenario.crashes.clone().into_iter();
        loop {
            self.seams.new_life(lives.next());
            let started = tokio::select! {
                biased;
                () = self.seams.crash() => None,
                engine = self.start() => Some(engine),
            };
            match started {
                None => {}
                Some(Err(error)) => {
                    self.promises.broken(&format!("an engine did not start: {error}"));
                    return;
                }
                Some(Ok(engine)) => {
                    self.engine.send_replace(Some(engine.clone()));
                    self.seams.crash().await;
                    self.engine.send_replace(None);
                    engine.abort();
                    drop(engine);
                }
            }
            *crashes += 1;
            // Tasks that were aborted are dropped when their turn comes.
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            sleep(self.scenario.down).await;
            self.seams.note("the node is up again");
        }
    }

    /// Starts an engine over what there is.
    pub async fn start(&self) -> Result<Engine, EngineError> {
        Engine::start(self.config(), self.parts()).await
    }

    fn config(&self) -> EngineConfig {
        let handler = HandlerConfig {
            provider: "sim".to_owned(),
            default_resources: SandboxResources { cpu_millis: 1000, memory_bytes: 1 << 29 },
            default_overhead: SandboxResources::default(),
            machine_type: String::new(),
            zones: Vec::new(),
            spot: false,
            allowed_annotations: Default::default(),
            network: if self.scenario.pod_network {
                HandlerNetwork::Node
            } else {
                HandlerNetwork::Provider
            },
            timeouts: PhaseTimeouts::default(),
        };
        EngineConfig {
            cluster: "sim".to_owned(),
            node: "node-1".to_owned(),
            handlers: BTreeMap::from([(String::new(), handler)]),
            concurrent_creates: 2,
            stats_period: Duration::from_secs(10),
            mounts: Default::default(),
        }
    }

    fn parts(&self) -> EngineParts {
        let mut script = self.scenario.script.clone();
        if self.scenario.sabotage == Sabotage::TokensIgnored {
            script.tokens = Tokens::Ignored;
        }
        let provider: Arc<dyn PodProvider> = Arc::new(SimProvider {
            inner: FakeProvider::new(self.cloud.clone(), script),
            seams: self.seams.clone(),
            promises: self.promises.clone(),
            fleet: self.fleet.clone(),
            network: self.network.clone(),
        });
        EngineParts {
            providers: BTreeMap::from([("sim".to_owned(), Ok(provider))]),
            connector: Arc::new(SimConnector { fleet: self.fleet.clone() }),
            images: Arc::new(SimImages),
            records: Arc::new(SimStore {
                inner: self.store.clone(),
                seams: self.seams.clone(),
                sabotage: self.scenario.sabotage,
            }),
            logs: Arc::new(self.logs.clone()),
            files: Arc::new(self.files.clone()),
            network: Some(self.network.clone()),
            entropy: self.entropy.clone(),
            clock: Arc::new(SimClock(self.begin)),
        }
    }

    /// All pods are gone for their kubelets: durable deletions come to their end, too.
    async fn settle(&self) {
        let until = Instant::now() + SETTLE_MAX;
        while Instant::now() < until {
            let idle = self.engine.borrow().as_ref().is_some_and(|engine| {
                engine.sandboxes().is_empty() && engine.removing().is_empty()
            });
            if idle && self.cloud.alive() == 0 {
                return;
            }
            sleep(Duration::from_secs(2)).await;
        }
    }

    fn nothing_is_left(&self) {
        for machine in self.cloud.machines() {
            self.promises
                .broken(&format!("machine {} ({}) is left behind", machine.id, machine.name));
        }
        self.network.nothing_is_left();
        // The one that stays is the record's own birth.
        if self.store.len() > 1 {
            self.promises.broken(&format!("{} records are left behind", self.store.len() - 1));
        }
    }
}

struct SimEntropy(Mutex<Random>);

impl Entropy for SimEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        let mut random = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&random.bits().to_be_bytes()[..chunk.len()]);
        }
    }
}

struct SimClock(Instant);

impl WallClock for SimClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + self.0.elapsed()
    }
}

struct SimImages;

#[async_trait::async_trait]
impl ImageSource for SimImages {
    async fn resolve(&self, image: &str) -> Result<ResolvedImage, EngineError> {
        let layer = |digest: &str| MachineLayer {
            digest: digest.to_owned(),
            diff_id: digest.to_owned(),
            size_bytes: 3,
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        };
        Ok(ResolvedImage {
            image: MachineImage {
                id: format!("sha256:{image}"),
                layers: vec![layer("a"), layer("b")],
            },
            cmd: vec!["sleep".to_owned()],
            ..ResolvedImage::default()
        })
    }

    async fn open_layer(&self, layer: &MachineLayer) -> Result<LayerSource, EngineError> {
        Ok(LayerSource { layer: layer.clone(), reader: Box::pin(&b"abc"[..]) })
    }
}

const WORLD_MAX: Duration = Duration::from_secs(48 * 3600);
const SETTLE_MAX: Duration = Duration::from_secs(2 * 3600);
const TURNS: usize = 32;
