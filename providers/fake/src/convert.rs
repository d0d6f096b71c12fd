//! Between the cloud's own words and the messages of the SDK.

use std::time::Duration;

use infranetes_sdk::pod::{Addresses, Leftover, Machine, MachineEvent, MachineState, MachineType};
use infranetes_sdk::{ProviderError, RetryAdvice};

use crate::cloud::{LeftoverView, MachineView, Phase};
use crate::error::CloudError;
use crate::script::{Failure, TypeEntry};
use crate::state::Event;

impl From<CloudError> for ProviderError {
    fn from(error: CloudError) -> Self {
        let plain = Self::new(error.kind(), error.to_string());
        match error {
            CloudError::Scripted(failure) => Self::from(&failure),
            CloudError::Throttled { retry_after } => plain
                .with_retry(RetryAdvice::After(retry_after))
                .with_provider_code("RequestLimitExceeded"),
            CloudError::Quota { .. } => plain.with_provider_code("LimitExceeded"),
            CloudError::SoldOut { .. } => plain.with_provider_code("SoldOut"),
            _ => plain,
        }
    }
}

impl From<&Failure> for ProviderError {
    fn from(failure: &Failure) -> Self {
        let error = Self::new(failure.kind, failure.message.clone())
            .with_provider_code(failure.provider_code.clone());
        match failure.retry_after_ms {
            Some(millis) => error.with_retry(RetryAdvice::After(Duration::from_millis(millis))),
            None => error,
        }
    }
}

/// The machine as the SDK says it.
pub(crate) fn machine(view: &MachineView) -> Machine {
    Machine {
        id: view.id.clone(),
        name: view.name.clone(),
        state: state(view.phase) as i32,
        tags: view.tags.clone().into_iter().collect(),
        failure: view.failure.as_ref().map(|failure| ProviderError::from(failure).into()),
        created_unix_ms: view.created_unix_ms,
        zone: view.machine_type.zone.clone(),
        addresses: Some(addresses(view)),
        machine_type: Some(view.machine_type.clone()),
    }
}

/// Where the machine is reached; empty until it runs.
pub(crate) fn addresses(view: &MachineView) -> Addresses {
    match view.phase {
        Phase::Running | Phase::Stopping => {
            Addresses { ips: vec![view.ip.clone()], agent: view.endpoint.clone() }
        }
        _ => Addresses::default(),
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

/// A type of the catalogue in one zone, as the SDK says it.
pub(crate) fn machine_type(entry: &TypeEntry, zone: &str, spot: bool) -> MachineType {
    let price = if spot { entry.spot_price_micros_per_hour } else { entry.price_micros_per_hour };
    MachineType {
        name: entry.name.clone(),
        cpu_millis: entry.cpu_millis,
        memory_bytes: entry.memory_bytes,
        architecture: entry.architecture.clone(),
        gpus: entry.gpus,
        zone: zone.to_owned(),
        spot,
        price_micros_per_hour: price,
        currency: if price.is_some() { "USD".to_owned() } else { String::new() },
    }
}

/// What was left behind, as the SDK says it.
pub(crate) fn leftover(view: &LeftoverView) -> Leftover {
    Leftover {
        kind: view.kind.clone(),
        id: view.id.clone(),
        tags: view.tags.clone().into_iter().collect(),
        created_unix_ms: view.created_unix_ms,
    }
}

/// What happened, as the SDK says it.
pub(crate) fn event(event: &Event) -> MachineEvent {
    MachineEvent {
        machine_id: event.machine_id.clone(),
        kind: event.kind as i32,
        message: event.message.clone(),
    }
}
