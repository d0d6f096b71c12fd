//! What an engine is told once: its handlers, its bounds, its patience.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::engine::naming::is_tag_value;
use crate::error::EngineError;
use crate::mounts::MountPolicy;
use crate::spec::SandboxResources;

/// What an engine is told once.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Names this cluster in ownership tags: [a-z0-9_-]{1,63}.
    pub cluster: String,
    /// Names this node in ownership tags: [a-z0-9_-]{1,63}.
    pub node: String,
    /// Handlers by name; "" is the default handler.
    pub handlers: BTreeMap<String, HandlerConfig>,
    /// The most machines that are being created at once.
    pub concurrent_creates: usize,
    /// How often machines tell what they use; a second to an hour.
    pub stats_period: Duration,
    /// What may be mounted from the node.
    pub mounts: MountPolicy,
}

/// A RuntimeClass handler: a provider and the shape of its machines.
#[derive(Clone, Debug)]
pub struct HandlerConfig {
    /// Name of a provider instance.
    pub provider: String,
    /// Size of a machine whose pod says nothing.
    pub default_resources: SandboxResources,
    /// What is added for kernel and agent when the pod brings no overhead.
    pub default_overhead: SandboxResources,
    /// A fixed machine type, or empty.
    pub machine_type: String,
    /// Zones that may be used, best first; empty means any.
    pub zones: Vec<String>,
    /// Ask for spot machines.
    pub spot: bool,
    /// Pod annotations that reach the provider's plan.
    pub allowed_annotations: BTreeSet<String>,
    /// Who gives its pods their network.
    pub network: HandlerNetwork,
    /// How long each phase of a boot may take.
    pub timeouts: PhaseTimeouts,
}

/// Who gives the pods of a handler their network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HandlerNetwork {
    /// The provider: machines come with an address, or without one.
    #[default]
    Provider,
    /// This node: [`EngineParts::network`](crate::engine::EngineParts) connects a namespace, and the machine takes its place.
    Node,
}

/// How long the phases of a boot may take. Inner waits are shorter than outer ones; a test asserts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseTimeouts {
    /// The provider's answer to one call.
    pub provider_call: Duration,
    /// From the provider's answer until the machine runs.
    pub boot: Duration,
    /// From running until the agent is enrolled.
    pub enrol: Duration,
    /// From enrolled to ready.
    pub bind: Duration,
    /// How long RunPodSandbox waits before it says that the boot goes on; below the kubelet's four minutes.
    pub run_call: Duration,
}

impl Default for PhaseTimeouts {
    /// For machines that boot in seconds, and in a minute or two where the CPU is emulated.
    fn default() -> Self {
        Self {
            provider_call: Duration::from_secs(60),
            boot: Duration::from_secs(120),
            enrol: Duration::from_secs(120),
            bind: Duration::from_secs(30),
            run_call: Duration::from_secs(220),
        }
    }
}

impl EngineConfig {
    /// The shortest period of samples.
    pub const STATS_PERIOD_MIN: Duration = Duration::from_secs(1);
    /// The longest period of samples.
    pub const STATS_PERIOD_MAX: Duration = Duration::from_secs(3600);

    /// Says what is wrong with it, if anything is.
    pub fn check(&self) -> Result<(), EngineError> {
        for (field, value) in [("cluster", &self.cluster), ("node", &self.node)] {
            if !is_tag_value(value) {
                return Err(EngineError::Invalid {
                    field: field.to_owned(),
                    problem: format!("{value:?} is no tag value: 1 to 63 of a-z, 0-9, _ and -"),
                });
            }
        }
        if self.concurrent_creates == 0 {
            return Err(EngineError::Invalid {
                field: "concurrent_creates".to_owned(),
                problem: "without one there is never a machine".to_owned(),
            });
        }
        if !(Self::STATS_PERIOD_MIN..=Self::STATS_PERIOD_MAX).contains(&self.stats_period) {
            return Err(EngineError::Invalid {
                field: "stats_period".to_owned(),
                problem: "it has to be between 1s and 1h".to_owned(),
            });
        }
        self.handlers.iter().try_for_each(|(name, handler)| handler.timeouts.check(name))
    }
}
