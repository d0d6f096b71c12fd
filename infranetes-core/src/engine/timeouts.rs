//! All waits of the engine in one table; inner ones are shorter than outer ones.

use std::time::Duration;

use crate::engine::config::PhaseTimeouts;
use crate::error::EngineError;

/// What the kubelet allows `RunPodSandbox`.
pub(crate) const KUBELET_RUN: Duration = Duration::from_secs(240);
/// What the kubelet allows other calls, unless it is told otherwise.
#[cfg(test)]
pub(crate) const KUBELET_CALL: Duration = Duration::from_secs(120);

/// How long a call of ours waits before it says that the work goes on.
pub(crate) const STOP_CALL: Duration = Duration::from_secs(100);
/// As above, for a removal: afterwards a durable deletion goes on, and the call succeeds.
pub(crate) const REMOVE_CALL: Duration = Duration::from_secs(60);
/// As above, for the creation of a container.
pub(crate) const CREATE_CONTAINER_CALL: Duration = Duration::from_secs(110);
/// As above, for all other calls on containers; a stop adds its grace.
pub(crate) const CONTAINER_CALL: Duration = Duration::from_secs(60);

/// Everything that ends a sandbox's containers: their stop, the rest of their logs, the power-off.
pub(crate) const QUIESCE: Duration = Duration::from_secs(20);
/// How long containers may take to end when their sandbox does; a kubelet stopped them with patience before.
pub(crate) const QUIESCE_GRACE: Duration = Duration::from_secs(2);
/// How long the rest of the logs may take.
pub(crate) const QUIESCE_LOGS: Duration = Duration::from_secs(5);

/// A machine on its way to the disk. Its containers stand still as long, and the agent gives up after ten minutes.
pub(crate) const CHECKPOINT: Duration = Duration::from_secs(480);
/// How long it is tried to tell them that they go on.
pub(crate) const CHECKPOINT_END: Duration = Duration::from_secs(60);

/// One call to an agent that does not wait for a program.
pub(crate) const AGENT_CALL: Duration = Duration::from_secs(10);
/// One call to an agent that has its machine do something: programs begin and end, directories are made and removed, the kernel takes
/// memory back. That takes long in a machine whose host is busy, and tells nothing of its agent.
pub(crate) const WORK: Duration = Duration::from_secs(30);
/// The least time between two samples that are taken from one machine.
pub(crate) const SAMPLE_GAP: Duration = Duration::from_millis(200);
/// One attempt to enrol or to connect.
pub(crate) const AGENT_DIAL: Duration = Duration::from_secs(8);
/// A new certificate for an agent: two calls.
pub(crate) const ROTATION: Duration = Duration::from_secs(20);
/// How often it is asked whether one is due; the shortest life of a certificate is ten minutes.
pub(crate) const CERTIFICATE_LOOK: Duration = Duration::from_secs(60);
/// Layers on their way into a machine.
pub(crate) const IMPORT: Duration = Duration::from_secs(600);
/// From there until the rest of its output is in its log; then its end is told in any case.
pub(crate) const LOG_REST: Duration = Duration::from_secs(2);
/// One volume on its way into a machine.
pub(crate) const DELIVERY: Duration = Duration::from_secs(60);
/// One round of what a container shares with the node, before a command begins in it or its end is told.
pub(crate) const SHARE: Duration = Duration::from_secs(6);
/// What a container wrote, on its way to the node before anybody hears that it exited.
pub(crate) const WRITE_BACK: Duration = Duration::from_secs(8);
/// From the agent's word that a container ended until its watch says how, what it wrote is on the node, and the rest of its
/// output is in its log.
pub(crate) const EXIT_SEEN: Duration = Duration::from_secs(12);

/// Everything that connects a sandbox to the pod network of the node.
pub(crate) const NETWORK_UP: Duration = Duration::from_secs(110);
/// A look at that connection.
pub(crate) const NETWORK_CHECK: Duration = Duration::from_secs(60);
/// What the pod network does once after a start, with what waits for others before it.
pub(crate) const NETWORK_COLLECT: Duration = Duration::from_secs(180);
/// One attempt to take it down.
pub(crate) const NETWORK_DOWN: Duration = Duration::from_secs(60);

/// How long a provider may fail to show a machine that it made.
pub(crate) const SETTLE: Duration = Duration::from_secs(30);
/// How long a machine that was ready has to be unknown to its provider before it counts as vanished.
pub(crate) const VANISHED: Duration = Duration::from_secs(10);
/// Agent and provider both silent for this long: the machine is lost.
pub(crate) const BOTH_SILENT: Duration = Duration::from_secs(300);
/// The most time between two looks at the provider while an agent is silent or enrols.
pub(crate) const LOOK: Duration = Duration::from_secs(3);

/// One commit of the record.
pub(crate) const COMMIT: Duration = Duration::from_secs(30);
/// How long a log may be unmarked: after a crash what is travels again. Much output is marked sooner.
pub(crate) const LOG_MARK: Duration = Duration::from_secs(1);

/// The most create calls for one machine.
pub(crate) const CREATE_CALLS_MAX: u32 = 6;
/// The longest pause between two tries of anything.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(30);

impl PhaseTimeouts {
    /// The name of the timeout that contradicts another, and what it would have to be; `None` when all fit together.
    pub fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        let rules = [
            (
                self.run_call < KUBELET_RUN,
                "run_call",
                "the kubelet gives up after 4m; it has to be shorter",
            ),
            (self.provider_call > Duration::ZERO, "provider_call", "it has to be longer than 0s"),
            (
                self.provider_call < self.run_call,
                "provider_call",
                "it has to be shorter than run_call",
            ),
            (
                self.provider_call < STOP_CALL,
                "provider_call",
                "it has to be shorter than 100s, so that a stop can be answered in time",
            ),
            (self.bind < self.run_call, "bind", "it has to be shorter than run_call"),
            (
                AGENT_DIAL < self.enrol,
                "enrol",
                "it has to be longer than 8s, the time of one attempt",
            ),
            (self.boot > Duration::ZERO, "boot", "it has to be longer than 0s"),
        ];
        let broken = rules.into_iter().find(|(holds, ..)| !holds);
        broken.map(|(_, name, problem)| (name, problem))
    }

    /// Says what is wrong with a handler's timeouts, if anything is.
    pub(crate) fn check(&self, handler: &str) -> Result<(), EngineError> {
        match self.contradiction() {
            None => Ok(()),
            Some((name, problem)) => Err(EngineError::Invalid {
                field: format!("timeout {name} of handler {handler:?}"),
                problem: problem.to_owned(),
            }),
        }
    }
}

/// How long to wait before looking again at something that began `elapsed` ago: often at first, and never so seldom that
/// looking costs a noticeable part of the whole.
pub(crate) fn poll_pause(elapsed: Duration) -> Duration {
    (elapsed / 40).clamp(Duration::from_millis(20), Duration::from_secs(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_waits_are_shorter_than_outer_ones() {
        let phases = PhaseTimeouts::default();
        let table = [
            ("dial < agent call", AGENT_DIAL, AGENT_CALL),
            ("agent call < bind", AGENT_CALL, phases.bind),
            ("agent call < enrol", AGENT_CALL, phases.enrol),
            ("agent call < work", AGENT_CALL, WORK),
            ("work < container call", WORK + EXIT_SEEN, CONTAINER_CALL),
            ("work twice < create container", 2 * WORK, CREATE_CONTAINER_CALL),
            (
                "beginning, writing and ending a checkpoint < the agent's patience",
                WORK + CHECKPOINT + CHECKPOINT_END,
                Duration::from_secs(600),
            ),
            ("sample gap < agent call", SAMPLE_GAP, AGENT_CALL),
            ("write back and rest of a log < exit seen", WRITE_BACK + LOG_REST, EXIT_SEEN),
            ("delivery < create container", DELIVERY, CREATE_CONTAINER_CALL),
            ("container call < kubelet", CONTAINER_CALL, KUBELET_CALL),
            ("create container < kubelet", CREATE_CONTAINER_CALL, KUBELET_CALL),
            ("stop < kubelet", STOP_CALL, KUBELET_CALL),
            ("remove < kubelet", REMOVE_CALL, KUBELET_CALL),
            ("run < kubelet", phases.run_call, KUBELET_RUN),
            ("bind < run", phases.bind, phases.run_call),
            ("provider call < run", phases.provider_call, phases.run_call),
            ("parts of quiesce", QUIESCE_GRACE + QUIESCE_LOGS + AGENT_CALL, QUIESCE),
            ("quiesce, a look and a destroy < stop", QUIESCE + phases.provider_call, STOP_CALL),
            ("settle < stop", SETTLE + LOOK, STOP_CALL),
            ("connecting < run", NETWORK_UP, phases.run_call),
            ("disconnecting < stop", NETWORK_DOWN, STOP_CALL),
            ("vanished < both silent", VANISHED, BOTH_SILENT),
            ("commit < container call", COMMIT, CONTAINER_CALL),
            ("two calls < a rotation", AGENT_CALL, ROTATION),
            ("rotation < until the next", ROTATION, CERTIFICATE_LOOK),
        ];
        for (what, inner, outer) in table {
            assert!(inner < outer, "{what}: {inner:?} is not shorter than {outer:?}");
        }
        phases.check("default").unwrap();
    }

    #[test]
    fn a_handler_whose_waits_contradict_each_other_is_refused() {
        let good = PhaseTimeouts::default();
        for bad in [
            PhaseTimeouts { run_call: KUBELET_RUN, ..good },
            PhaseTimeouts { provider_call: good.run_call, ..good },
            PhaseTimeouts { bind: good.run_call, ..good },
            PhaseTimeouts { enrol: Duration::from_secs(1), ..good },
            PhaseTimeouts { boot: Duration::ZERO, ..good },
        ] {
            assert!(bad.check("x").is_err(), "{bad:?}");
        }
    }
}
