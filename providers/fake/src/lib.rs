//! A cloud in memory, for tests, for authors, and for trying things out.
//!
//! [`FakeProvider`] keeps every promise of [`PodProvider`](infranetes_sdk::PodProvider) and
//! [`VolumeProvider`](infranetes_sdk::VolumeProvider), and passes the conformance suites like any other provider. What makes it useful is that a [`Script`] lets it be as slow, forgetful and unlucky as real
//! clouds are: calls take time, fail by kind, or take effect and lose their answer; machines hide from listings, fail
//! after they were accepted, never come up, vanish, or leave disks behind. Everything is decided by a seed and by tokio's
//! clock, so that the same run happens again, also under paused time.
//!
//! [`FakeCloud`] is the truth behind it. It outlives providers, and counts.
//!
//! No machine of it ever runs anything.

mod check;
mod client;
mod cloud;
mod config;
mod convert;
mod error;
mod pages;
mod plan;
mod provider;
mod script;
mod state;
mod streams;
mod volumes;

pub use cloud::{CallRecord, FakeCloud, LeftoverView, MachineView, Phase};
pub use config::Config;
pub use provider::FakeProvider;
pub use script::{
    Behaviour, Failure, FaultAction, FaultRule, Feature, Method, Outcome, OutcomeRule, QuotaLimits,
    Script, Span, Throttle, Tokens, TypeEntry, When,
};

use infranetes_sdk::{Host, Plugin, Providers, Result, async_trait};

/// The plugin: each instance has a cloud of its own, which goes when the instance goes.
#[derive(Debug)]
pub struct Fake;

#[async_trait]
impl Plugin for Fake {
    type Config = Config;

    async fn start(_host: Host, config: Config) -> Result<Providers> {
        let cloud = FakeCloud::new(config.seed);
        let provider = FakeProvider::new(cloud, config.script);
        Ok(Providers::default().with_pods(provider.clone()).with_volumes(provider))
    }
}

infranetes_sdk::export_provider!(Fake);
