//! What a sandbox or a container does with a request: pure, a table to be read aloud.

use crate::engine::life::{Goal, Life};
use crate::status::ContainerState;

/// Where a sandbox stands, as far as admission cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// On its way to ready.
    Booting,
    Ready,
    /// Did not become ready.
    Failed,
    /// Was ready, and lost its machine.
    Lost,
    Stopping,
    Stopped,
    /// A durable deletion goes on.
    Removing,
}

/// What is asked of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SandboxWish {
    Run,
    Stop,
    Remove,
    /// Create a container in it.
    Host,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerStanding {
    Created,
    Starting,
    Running,
    Stopping,
    Exited,
    Removing,
}

/// What is asked of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerWish {
    Start,
    Stop,
    Remove,
    ReopenLog,
    /// New limits.
    Update,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Begin it.
    Accept,
    /// It goes on: wait for its end together.
    Join,
    /// It is so already.
    AlreadyDone,
    /// It is not to be.
    Deny(Denial),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    NotReady,
    MachineLost,
    StoppedForGood,
    BeingRemoved,
    NotRunning,
    HasExited,
    BeingStarted,
}

use Admission::{Accept, AlreadyDone, Deny, Join};

/// What a sandbox does with a wish.
pub(crate) fn admit(standing: Standing, wish: SandboxWish) -> Admission {
    use SandboxWish::{Host, Remove, Run, Stop};
    use Standing::{Booting, Failed, Lost, Ready, Removing, Stopped, Stopping};
    match (standing, wish) {
        (Booting, Run) => Join,
        (Ready, Run) => AlreadyDone,
        // The kubelet asks again with the same attempt after an error: what failed starts over with another machine.
        (Failed, Run) => Accept,
        // Its containers have run. Starting over would run them twice under one name.
        (Lost, Run) => Deny(Denial::MachineLost),
        (Stopping | Stopped, Run) => Deny(Denial::StoppedForGood),
        (Removing, Run) => Deny(Denial::BeingRemoved),

        (Booting | Ready | Failed | Lost, Stop) => Accept,
        (Stopping | Removing, Stop) => Join,
        (Stopped, Stop) => AlreadyDone,

        (Booting | Ready | Failed | Lost | Stopping | Stopped, Remove) => Accept,
        (Removing, Remove) => Join,

        (Ready, Host) => Accept,
        (Booting, Host) => Deny(Denial::NotReady),
        (Failed | Lost, Host) => Deny(Denial::MachineLost),
        (Stopping | Stopped, Host) => Deny(Denial::StoppedForGood),
        (Removing, Host) => Deny(Denial::BeingRemoved),
    }
}

/// What a container does with a wish.
pub(crate) fn admit_container(standing: ContainerStanding, wish: ContainerWish) -> Admission {
    use ContainerStanding::{Created, Exited, Removing, Running, Starting, Stopping};
    use ContainerWish::{Remove, ReopenLog, Start, Stop, Update};
    match (standing, wish) {
        (Created, Start) => Accept,
        (Starting, Start) => Join,
        (Running, Start) => AlreadyDone,
        (Stopping | Exited, Start) => Deny(Denial::HasExited),
        (Removing, Start) => Deny(Denial::BeingRemoved),

        (Created | Running, Stop) => Accept,
        (Starting, Stop) => Deny(Denial::BeingStarted),
        (Stopping | Removing, Stop) => Join,
        (Exited, Stop) => AlreadyDone,

        (Created | Running | Exited, Remove) => Accept,
        (Starting, Remove) => Deny(Denial::BeingStarted),
        // The kill of a removal overtakes a stop that is patient.
        (Stopping, Remove) => Accept,
        (Removing, Remove) => Join,

        (Starting | Running | Stopping, ReopenLog) => Accept,
        (Created | Exited | Removing, ReopenLog) => Deny(Denial::NotRunning),

        (Created | Running, Update) => Accept,
        (Starting, Update) => Deny(Denial::BeingStarted),
        (Stopping | Exited, Update) => Deny(Denial::NotRunning),
        (Removing, Update) => Deny(Denial::BeingRemoved),
    }
}

/// Where a sandbox stands.
pub(crate) fn standing(life: &Life) -> Standing {
    match (life.goal, &life.failure) {
        (Goal::Remove, _) => Standing::Removing,
        (Goal::Stop, _) if life.machine.is_some() || life.network.may_be() => Standing::Stopping,
        (Goal::Stop, _) => Standing::Stopped,
        (Goal::Run, Some(_)) if life.was_ready => Standing::Lost,
        (Goal::Run, Some(_)) => Standing::Failed,
        (Goal::Run, None) if life.was_ready => Standing::Ready,
        (Goal::Run, None) => Standing::Booting,
    }
}

/// Where a container stands when nothing is being done with it.
pub(crate) fn at_rest(state: ContainerState) -> ContainerStanding {
    match state {
        ContainerState::Created => ContainerStanding::Created,
        ContainerState::Running | ContainerState::Unknown => ContainerStanding::Running,
        ContainerState::Exited => ContainerStanding::Exited,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STANDINGS: [Standing; 7] = [
        Standing::Booting,
        Standing::Ready,
        Standing::Failed,
        Standing::Lost,
        Standing::Stopping,
        Standing::Stopped,
        Standing::Removing,
    ];

    /// What happens to a sandbox by itself.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Wish(SandboxWish),
        BootEnds { well: bool },
        MachineVanishes,
        MachineIsGone,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Wish(SandboxWish::Run)),
            Just(Event::Wish(SandboxWish::Stop)),
            Just(Event::Wish(SandboxWish::Remove)),
            Just(Event::Wish(SandboxWish::Host)),
            any::<bool>().prop_map(|well| Event::BootEnds { well }),
            Just(Event::MachineVanishes),
            Just(Event::MachineIsGone),
        ]
    }

    /// Where an event leads, for a wish only when it is accepted.
    fn follow(standing: Standing, event: Event) -> Standing {
        match (standing, event) {
            (from, Event::Wish(wish)) => match (admit(from, wish), wish) {
                (Accept, SandboxWish::Run) => Standing::Booting,
                (Accept, SandboxWish::Stop) => Standing::Stopping,
                (Accept, SandboxWish::Remove) => Standing::Removing,
                _ => from,
            },
            (Standing::Booting, Event::BootEnds { well: true }) => Standing::Ready,
            (Standing::Booting, Event::BootEnds { well: false }) => Standing::Failed,
            (Standing::Ready, Event::MachineVanishes) => Standing::Lost,
            (Standing::Stopping, Event::MachineIsGone) => Standing::Stopped,
            (same, _) => same,
        }
    }

    proptest! {
        #[test]
        fn no_sequence_of_events_leads_back_from_an_end(
            events in proptest::collection::vec(event(), 0..60),
        ) {
            let mut standing = Standing::Booting;
            let (mut was_ready, mut ending, mut removing) = (false, false, false);
            for event in events {
                standing = follow(standing, event);
                was_ready |= standing == Standing::Ready;
                prop_assert!(!(was_ready && standing == Standing::Booting), "containers would run twice");
                ending |= matches!(standing, Standing::Stopping | Standing::Stopped | Standing::Removing);
                prop_assert!(!(ending && matches!(standing, Standing::Booting | Standing::Ready)));
                removing |= standing == Standing::Removing;
                prop_assert!(!removing || standing == Standing::Removing);
                // From everywhere the way out is open.
                prop_assert!(!matches!(admit(standing, SandboxWish::Stop), Deny(_)));
                prop_assert!(!matches!(admit(standing, SandboxWish::Remove), Deny(_)));
                prop_assert!(
                    (admit(standing, SandboxWish::Host) == Accept) == (standing == Standing::Ready)
                );
            }
        }
    }

    #[test]
    fn asking_again_never_begins_the_same_thing_twice() {
        for standing in STANDINGS {
            for wish in [SandboxWish::Run, SandboxWish::Stop, SandboxWish::Remove] {
                let then = follow(standing, Event::Wish(wish));
                if admit(standing, wish) == Accept {
                    assert!(
                        matches!(admit(then, wish), Join | AlreadyDone),
                        "{standing:?} {wish:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_container_can_be_removed_from_everywhere_but_the_middle_of_its_start() {
        use ContainerStanding::{Created, Exited, Removing, Running, Starting, Stopping};
        for standing in [Created, Running, Stopping, Exited, Removing] {
            let answer = admit_container(standing, ContainerWish::Remove);
            assert!(matches!(answer, Accept | Join), "{standing:?}");
        }
        assert_eq!(admit_container(Starting, ContainerWish::Remove), Deny(Denial::BeingStarted));
        // What exited never runs again.
        assert_eq!(admit_container(Exited, ContainerWish::Start), Deny(Denial::HasExited));
    }
}
