//! Between a machine of this node and the messages of the SDK.

use infranetes_sdk::ErrorKind;
use infranetes_sdk::pod::{Addresses, Machine, MachineState, MachineType, Status};

use crate::machine::Phase;
use crate::plan::{ARCHITECTURE, MIB, Size};
use crate::record::{End, Record};

/// The machine as the SDK says it.
pub(crate) fn machine(record: &Record, phase: Phase) -> Machine {
    let size = Size {
        name: record.machine_type.clone(),
        cpu_millis: record.cpu_millis,
        memory_mib: record.memory_mib,
    };
    Machine {
        id: record.id.clone(),
        name: record.name.clone(),
        state: state(phase) as i32,
        tags: record.tags.clone().into_iter().collect(),
        failure: record.end.as_ref().filter(|end| end.failed).map(failure),
        created_unix_ms: record.created_unix_ms,
        zone: String::new(),
        addresses: Some(addresses(record, phase)),
        machine_type: Some(machine_type(&size)),
    }
}

/// Where the machine is reached; empty unless it runs.
///
/// The pod's address is the guest's on QEMU's user-mode network. Every machine has the same, and nothing but the guest
/// itself reaches it: this is `ADDRESS_MODE_LOCAL`.
pub(crate) fn addresses(record: &Record, phase: Phase) -> Addresses {
    match (phase, record.port) {
        (Phase::Running | Phase::Stopping, Some(port)) => Addresses {
            // Addresses in a namespace are known to whoever made it.
            ips: match record.namespace {
                None => vec![GUEST_ADDRESS.to_owned()],
                Some(_) => Vec::new(),
            },
            agent: format!("tcp://127.0.0.1:{port}"),
        },
        _ => Addresses::default(),
    }
}

/// A size as the SDK says it.
pub(crate) fn machine_type(size: &Size) -> MachineType {
    MachineType {
        name: size.name.clone(),
        cpu_millis: size.cpu_millis,
        memory_bytes: size.memory_mib * MIB,
        architecture: ARCHITECTURE.to_owned(),
        ..Default::default()
    }
}

fn state(phase: Phase) -> MachineState {
    match phase {
        Phase::Creating => MachineState::Creating,
        Phase::Running => MachineState::Running,
        Phase::Stopping => MachineState::Stopping,
        Phase::Stopped => MachineState::Stopped,
        Phase::Failed => MachineState::Failed,
        Phase::Destroying | Phase::Gone => MachineState::Destroying,
    }
}

fn failure(end: &End) -> Status {
    let kind = infranetes_sdk::v1::ErrorKind::from(ErrorKind::Transient);
    Status {
        kind: kind as i32,
        message: end.message.clone(),
        sources: end.details.clone(),
        ..Default::default()
    }
}

/// What QEMU's user-mode network calls its guest.
pub(crate) const GUEST_ADDRESS: &str = "10.0.2.15";
