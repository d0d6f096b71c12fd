//! What comes next for a sandbox: a pure function of what is wanted, what is recorded and what was seen.
//!
//! The task of a sandbox asks again after every step, and after a restart with nothing seen yet: a step that turned out to
//! be done already is simply not planned again.

use crate::engine::life::{Goal, Life};
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
}

/// The next thing to do. Each is safe to repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
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
    /// End the containers, take the last of their logs, power off.
    Quiesce,
    /// Destroy the machine that the provider named.
    Destroy,
    /// Find what a create call made whose answer never came, and destroy it.
    Settle,
    /// Delete the record.
    Forget,
    /// Nothing, until something happens.
    Rest,
}

/// What comes next.
pub(crate) fn next(life: &Life, seen: &Seen) -> Step {
    let Some(machine) = &life.machine else {
        return match (life.goal, &life.failure) {
            (Goal::Run, None) => Step::Prepare,
            (Goal::Remove, _) => Step::Forget,
            (Goal::Run | Goal::Stop, _) => Step::Rest,
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
