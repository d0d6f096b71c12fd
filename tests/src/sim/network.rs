//! The pod network of the simulated node: it outlives engines, fails at times, and notices what must not be.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use infranetes_core::error::FailureKind;
use infranetes_core::ids::SandboxId;
use infranetes_core::network::{Attachment, NetworkError, NetworkWish, PodNetwork, Prefix};
use infranetes_provider_fake::FakeCloud;

use crate::sim::random::Random;
use crate::sim::seam::Seams;
use crate::sim::world::Promises;

/// What is connected, in whole or in part.
pub struct SimNetwork {
    cloud: FakeCloud,
    seams: Seams,
    promises: Arc<Promises>,
    trouble_percent: u64,
    world: Mutex<Connections>,
}

struct Connections {
    all: BTreeMap<SandboxId, State>,
    random: Random,
    given: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Partial,
    Up,
}

impl SimNetwork {
    /// An empty network; `trouble_percent` of its answers are failures.
    pub fn new(
        cloud: FakeCloud,
        seams: Seams,
        promises: Arc<Promises>,
        seed: u64,
        trouble_percent: u64,
    ) -> Arc<Self> {
        let random = Random::new(seed);
        let world = Mutex::new(Connections { all: BTreeMap::new(), random, given: 0 });
        Arc::new(Self { cloud, seams, promises, trouble_percent, world })
    }

    /// A machine that is made in a namespace that is not there could reach nobody.
    pub fn is_entered(&self, namespace: &str) {
        let up = self
            .world()
            .all
            .iter()
            .any(|(sandbox, state)| *state == State::Up && namespace == namespace_of(sandbox));
        if !up {
            self.promises.broken(&format!("a machine is made in {namespace:?}, which is not up"));
        }
    }

    /// At the end, nobody is connected.
    pub fn nothing_is_left(&self) {
        for sandbox in self.world().all.keys() {
            self.promises.broken(&format!("the network of sandbox {sandbox} is left behind"));
        }
    }

    /// What changes a network under a machine cuts it off.
    fn no_machine_is_there(&self, sandbox: &SandboxId, what: &str) {
        let machines = self.cloud.alive_by_tag("infranetes-sandbox");
        let of_sandbox =
            |tag: &String| !tag.is_empty() && sandbox.as_str().starts_with(tag.as_str());
        if machines.iter().any(|(tag, count)| *count > 0 && of_sandbox(tag)) {
            self.promises.broken(&format!("{what} of {sandbox} under its machine"));
        }
    }

    fn trouble(&self) -> Result<(), NetworkError> {
        match self.world().random.percent(self.trouble_percent) {
            true => Err(NetworkError::new(FailureKind::Unavailable, "the plugin is in a mood")),
            false => Ok(()),
        }
    }

    fn world(&self) -> MutexGuard<'_, Connections> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl PodNetwork for SimNetwork {
    async fn set_up(&self, wish: &NetworkWish) -> Result<Attachment, NetworkError> {
        let sandbox = &wish.sandbox;
        self.no_machine_is_there(sandbox, "a set-up");
        self.seams.pass("network: before set-up").await;
        self.world().all.insert(sandbox.clone(), State::Partial);
        self.seams.pass("network: within set-up").await;
        self.trouble()?;
        let number = {
            let mut world = self.world();
            world.all.insert(sandbox.clone(), State::Up);
            world.given = world.given.wrapping_add(1);
            world.given
        };
        self.seams.pass("network: after set-up").await;
        Ok(Attachment {
            namespace: namespace_of(sandbox).into(),
            ips: vec![[10, 0, 0, number].into()],
            ..Attachment::default()
        })
    }

    async fn check(&self, sandbox: &SandboxId) -> Result<(), NetworkError> {
        self.seams.pass("network: check").await;
        if self.world().all.get(sandbox) != Some(&State::Up) {
            self.promises.broken("a sandbox that is ready is not connected");
        }
        self.trouble()
    }

    async fn tear_down(&self, sandbox: &SandboxId) -> Result<(), NetworkError> {
        self.no_machine_is_there(sandbox, "a teardown");
        self.seams.pass("network: before teardown").await;
        if let Some(state) = self.world().all.get_mut(sandbox) {
            *state = State::Partial;
        }
        self.seams.pass("network: within teardown").await;
        self.trouble()?;
        self.world().all.remove(sandbox);
        self.seams.pass("network: after teardown").await;
        Ok(())
    }

    fn problem(&self) -> Option<String> {
        None
    }

    fn use_ranges(&self, _: &[Prefix]) -> Result<(), NetworkError> {
        Ok(())
    }
}

fn namespace_of(sandbox: &SandboxId) -> String {
    format!("/run/netns/{sandbox}")
}
