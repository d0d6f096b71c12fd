//! What comes next for a sandbox: a pure function of what is wanted, what is recorded and what was seen.
//!
//! The task of a sandbox asks again after every step, and after a restart with nothing seen yet: a step that turned out to
//! be done already is simply not planned again.

use crate::engine::life::{Goal, Life, Network};
use crate::status::Phase;

/// What this process saw of the machine; all of it is lost with the process, and seen again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The create call is, or was, on its way.
    pub(crate) submitted: bool,
    /// The provider said that the machine runs.
    pub(crate) running: bool,
    /// A session to the agent is open.
    pub(crate) session: bool,
    /// The agent took, or confirmed, its sandbox over this session.
    pub(crate) bound: bool,
    /// Containers are ended, or nobody can be asked to end them.
    pub(crate) quiesced: bool,
    /// Somebody said that the machine may be gone.
    pub(crate) doubted: bool,
    /// This process set up the network, or looked whether it is still as it was.
    pub(crate) examined: bool,
}

/// The next thing to do. Each is safe to repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Connect the sandbox to the pod network of the node.
    Connect,
    /// Choose the machine's shape, and write down the intent.
    Prepare,
    /// Ask the provider for the machine.
    Submit,
    /// Wait until the provider says that it runs.
    AwaitRunning,
    /// Enrol the agent, or connect to it.
    Open,
    /// Tell the agent its sandbox.
    Bind,
    /// It was ready and its session broke: connect again, and find out whether the machine still is.
    Reopen,
    /// Ask the provider whether the machine still is.
    Check,
    /// Look whether the pod network is still as it was set up.
    Examine,
    /// End the containers, take the last of their logs, power off.
    Quiesce,
    /// Destroy the machine that the provider named.
    Destroy,
    /// Find what a create call made whose answer never came, and destroy it.
    Settle,
    /// Take down what connects the sandbox to the pod network of the node.
    Disconnect,
    /// Delete the record.
    Forget,
    /// Nothing, until something happens.
    Rest,
}

/// What comes next.
pub(crate) fn next(life: &Life, seen: &Seen) -> Step {
    let Some(machine) = &life.machine else {
        return match (life.goal, &life.failure, &life.network) {
            (Goal::Run, None, Network::Down | Network::Unsettled) => Step::Connect,
            (Goal::Run, None, Network::Own | Network::Up(_)) => Step::Prepare,
            (_, _, Network::Unsettled | Network::Up(_)) => Step::Disconnect,
            (Goal::Remove, ..) => Step::Forget,
            (Goal::Run | Goal::Stop, ..) => Step::Rest,
        };
    };
    if life.goal != Goal::Run && seen.session && !seen.quiesced && !machine.doomed {
        return Step::Quiesce;
    }
    if life.goal != Goal::Run || machine.doomed {
        return if machine.id.is_some() { Step::Destroy } else { Step::Settle };
    }
    match (machine.id.is_some(), seen) {
        (false, _) => Step::Submit,
        (_, Seen { doubted: true, .. }) => Step::Check,
        (_, Seen { session: true, bound: true, examined: false, .. })
            if life.network.attachment().is_some() =>
        {
            Step::Examine
        }
        (_, Seen { session: true, bound: true, .. }) => Step::Rest,
        (_, Seen { session: true, bound: false, .. }) => Step::Bind,
        _ if life.was_ready => Step::Reopen,
        (_, Seen { running: false, .. }) => Step::AwaitRunning,
        _ => Step::Open,
    }
}

/// Where in its life the sandbox is, for those who look at it.
pub(crate) fn phase(life: &Life, seen: &Seen) -> Phase {
    match (life.goal, &life.machine) {
        (Goal::Remove, _) => return Phase::Removing,
        (Goal::Stop, Some(_)) => return Phase::Stopping,
        (Goal::Stop, None) if life.network.may_be() => return Phase::Stopping,
        (Goal::Stop, None) => return Phase::Stopped,
        (Goal::Run, _) if life.failure.is_some() => return Phase::Failed,
        (Goal::Run, None) => return Phase::Intended,
        (Goal::Run, Some(machine)) if machine.doomed => return Phase::Intended,
        (Goal::Run, Some(_)) if life.was_ready => return Phase::Ready,
        (Goal::Run, Some(machine)) if machine.id.is_none() && !seen.submitted => {
            return Phase::Intended;
        }
        (Goal::Run, Some(machine)) if machine.id.is_none() => return Phase::Submitted,
        (Goal::Run, Some(_)) => {}
    }
    match seen {
        Seen { session: true, .. } => Phase::Bound,
        Seen { running: true, .. } => Phase::Booted,
        _ => Phase::Allocated,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::life::{Failure, Machine, UserData};
    use crate::error::{Cause, FailureKind};
    use crate::ids::{MachineId, SandboxId};
    use crate::session::Ticket;
    use crate::status::Timeline;
    use crate::testing;

    fn machine() -> Machine {
        Machine {
            provider: "p".into(),
            token: "t".into(),
            name: "n".into(),
            shape: Default::default(),
            why: String::new(),
            user_data: UserData::default(),
            ticket: Ticket { agent_name: "a".into(), token: vec![1] },
            id: None,
            endpoint: String::new(),
            identity: None,
            next_name: None,
            boot_id: String::new(),
            kernel_release: String::new(),
            doomed: false,
        }
    }

    fn life(goal: Goal) -> Life {
        Life {
            id: SandboxId::from_random([7; 32]),
            spec: Arc::new(testing::sandbox_spec("p")),
            created_at: SystemTime::UNIX_EPOCH,
            goal,
            tries: 0,
            passed_over: 0,
            machine: None,
            failure: None,
            was_ready: false,
            ips: Vec::new(),
            network: Network::Own,
            origin: None,
            timeline: Timeline::default(),
        }
    }

    /// Does a step the way the task does when it goes well.
    fn go_well(life: &mut Life, seen: &mut Seen, step: Step) {
        match step {
            Step::Connect => {
                life.network = Network::Up(Box::default());
                seen.examined = true;
            }
            Step::Prepare => {
                life.machine = Some(machine());
                *seen = Seen { examined: seen.examined, ..Seen::default() };
            }
            Step::Submit => {
                if let Some(machine) = &mut life.machine {
                    machine.id = Some(MachineId("m".into()));
                }
            }
            Step::AwaitRunning => seen.running = true,
            Step::Open | Step::Reopen => seen.session = true,
            Step::Bind => {
                seen.bound = true;
                life.was_ready = true;
            }
            Step::Check => seen.doubted = false,
            Step::Examine => seen.examined = true,
            Step::Quiesce => seen.quiesced = true,
            Step::Destroy | Step::Settle => {
                life.machine = None;
                *seen = Seen::default();
            }
            Step::Disconnect => life.network = Network::Down,
            Step::Forget | Step::Rest => {}
        }
    }

    fn any_life() -> impl Strategy<Value = (Life, Seen)> {
        let goals = prop_oneof![Just(Goal::Run), Just(Goal::Stop), Just(Goal::Remove)];
        let flags = proptest::collection::vec(any::<bool>(), 12);
        let networks = prop_oneof![
            Just(Network::Own),
            Just(Network::Down),
            Just(Network::Unsettled),
            Just(Network::Up(Box::default())),
        ];
        (goals, flags, networks).prop_map(|(goal, flag, network)| {
            let mut life = life(goal);
            life.network = network;
            // Whoever is bound has been ready, and is bound over a session.
            life.was_ready = flag[0] || flag[8];
            if flag[1] {
                let mut made = machine();
                made.id = flag[2].then(|| MachineId("m".into()));
                made.doomed = flag[3];
                life.machine = Some(made);
                // A machine is made in a network that is up, and stays in one that is.
                if life.network == Network::Down {
                    life.network = Network::Up(Box::default());
                }
            }
            if flag[4] {
                let cause = Cause::new(FailureKind::Internal, "x");
                let failure = Failure { phase: Phase::Booted, cause, console: String::new() };
                life.failure = Some(failure);
                life.machine.iter_mut().for_each(|machine| machine.doomed = true);
            }
            let seen = Seen {
                submitted: flag[5],
                running: flag[6],
                session: flag[7] || flag[8],
                bound: flag[8],
                quiesced: flag[9],
                doubted: flag[10],
                examined: flag[11],
            };
            (life, seen)
        })
    }

    proptest! {
        #[test]
        fn from_everywhere_the_steps_come_to_their_goal((life, seen) in any_life()) {
            let (mut life, mut seen) = (life, seen);
            for _ in 0..16 {
                let step = next(&life, &seen);
                if matches!(step, Step::Rest | Step::Forget) {
                    break;
                }
                go_well(&mut life, &mut seen, step);
            }
            let resting = next(&life, &seen);
            match life.goal {
                Goal::Run if life.failure.is_some() => {
                    prop_assert!(life.machine.is_none() && !life.network.may_be());
                }
                Goal::Run => {
                    prop_assert_eq!(phase(&life, &seen), Phase::Ready);
                    prop_assert!(seen.bound);
                    prop_assert!(!matches!(life.network, Network::Down));
                }
                Goal::Stop => prop_assert!(life.machine.is_none() && resting == Step::Rest),
                Goal::Remove => prop_assert!(life.machine.is_none() && resting == Step::Forget),
            }
            if life.goal != Goal::Run {
                prop_assert!(!life.network.may_be(), "the network is left");
            }
        }

        #[test]
        fn nothing_is_made_for_what_is_not_wanted((life, seen) in any_life()) {
            let step = next(&life, &seen);
            if life.goal != Goal::Run || life.failure.is_some() {
                prop_assert!(!matches!(step, Step::Connect | Step::Prepare | Step::Submit));
            }
            if life.machine.is_some() {
                prop_assert!(!matches!(step, Step::Connect | Step::Disconnect), "under a machine");
            }
            if life.machine.is_some() {
                prop_assert!(step != Step::Prepare && step != Step::Forget, "a second machine, or a lost one");
            }
        }
    }

    /// All steps until there is nothing to do.
    fn steps(life: &mut Life, seen: &mut Seen) -> Vec<(Phase, Step)> {
        let mut steps = Vec::new();
        while !matches!(next(life, seen), Step::Rest | Step::Forget) {
            let step = next(life, seen);
            steps.push((phase(life, seen), step));
            go_well(life, seen, step);
        }
        steps
    }

    #[test]
    fn the_network_is_there_before_the_machine_and_goes_after_it() {
        let (mut life, mut seen) = (life(Goal::Run), Seen::default());
        life.network = Network::Unsettled;
        let begun = steps(&mut life, &mut seen);
        assert_eq!(begun[0], (Phase::Intended, Step::Connect));
        assert_eq!(begun[1], (Phase::Intended, Step::Prepare));
        assert!(begun.iter().all(|(_, step)| *step != Step::Examine), "it was just made");
        // Another process looks at it once.
        seen = Seen::default();
        let again: Vec<_> = steps(&mut life, &mut seen).into_iter().map(|(_, step)| step).collect();
        assert_eq!(again, [Step::Reopen, Step::Bind, Step::Examine]);
        life.goal = Goal::Stop;
        let end = steps(&mut life, &mut seen);
        let wanted = [Step::Quiesce, Step::Destroy, Step::Disconnect];
        assert_eq!(end, wanted.map(|step| (Phase::Stopping, step)));
        assert_eq!(phase(&life, &seen), Phase::Stopped);
    }

    #[test]
    fn a_boot_goes_step_by_step() {
        let (mut life, mut seen) = (life(Goal::Run), Seen::default());
        let steps = steps(&mut life, &mut seen);
        let wanted = [
            (Phase::Intended, Step::Prepare),
            (Phase::Intended, Step::Submit),
            (Phase::Allocated, Step::AwaitRunning),
            (Phase::Booted, Step::Open),
            (Phase::Bound, Step::Bind),
        ];
        assert_eq!(steps, wanted);
        // After a restart a ready one stays ready while its session is opened again.
        seen = Seen::default();
        assert_eq!((phase(&life, &seen), next(&life, &seen)), (Phase::Ready, Step::Reopen));
    }
}
