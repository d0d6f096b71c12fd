//! Between a machine of this node and the messages of the SDK.

use std::path::Path;

use infranetes_sdk::ErrorKind;
use infranetes_sdk::pod::{Addresses, Machine, MachineState, MachineType, Status};

use crate::machine::Phase;
use crate::plan::{MIB, Size, architecture};
use crate::record::{End, Record};

/// The machine as the SDK says it.
pub(crate) fn machine(record: &Record, phase: Phase, socket: &Path) -> Machine {
    Machine {
        id: record.id.clone(),
        name: record.name.clone(),
        state: state(phase) as i32,
        tags: record.tags.clone().into_iter().collect(),
        failure: record.end.as_ref().filter(|end| end.failed).map(failure),
        created_unix_ms: record.created_unix_ms,
        zone: String::new(),
        addresses: Some(addresses(phase, socket)),
        machine_type: Size::parse(&record.machine_type).map(machine_type),
    }
}

/// Where the machine is reached; empty unless it runs.
///
/// Its own network namespace has loopback alone, and 127.0.0.1 would mean the node to whoever reads it; addresses in one that
/// it was given are known to whoever gave it.
pub(crate) fn addresses(phase: Phase, socket: &Path) -> Addresses {
    match phase {
        Phase::Running | Phase::Stopping => {
            Addresses { ips: Vec::new(), agent: format!("unix://{}", socket.display()) }
        }
        _ => Addresses::default(),
    }
}

/// A size as the SDK says it.
pub(crate) fn machine_type(size: Size) -> MachineType {
    MachineType {
        name: size.name(),
        cpu_millis: size.cpu_millis,
        memory_bytes: size.memory_mib.saturating_mul(MIB),
        architecture: architecture().to_owned(),
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
