//! Which machine types fit a pod. Pure.

use infranetes_sdk::pod::{MachineType, PlanRequest, PlanResponse};

use crate::convert;
use crate::error::CloudError;
use crate::script::TypeEntry;

/// Candidates for a request, cheapest first, each in each of its zones.
pub(crate) fn plan(types: &[TypeEntry], request: &PlanRequest) -> Result<PlanResponse, CloudError> {
    if let Some(key) = request.annotations.keys().min() {
        return Err(CloudError::Invalid(format!(
            "the annotation {key:?} means nothing to this cloud"
        )));
    }
    let mut fitting: Vec<&TypeEntry> = types.iter().filter(|entry| fits(entry, request)).collect();
    fitting.sort_by_key(|entry| {
        let price = price(entry, request.spot).unwrap_or(u64::MAX);
        (price, entry.memory_bytes, entry.cpu_millis, entry.name.clone())
    });
    let candidates: Vec<MachineType> = fitting
        .iter()
        .flat_map(|entry| {
            let zones = zones(entry, &request.zones);
            zones.into_iter().map(|zone| convert::machine_type(entry, &zone, request.spot))
        })
        .take(CANDIDATES_MAX)
        .collect();
    match candidates.first() {
        Some(best) => {
            let why = why(best, request);
            Ok(PlanResponse { candidates, why })
        }
        None => Err(CloudError::Invalid(refusal(types, request))),
    }
}

/// The type of the catalogue that a `create` names, in the zone that it names.
pub(crate) fn resolve(
    types: &[TypeEntry],
    wanted: Option<&MachineType>,
) -> Result<MachineType, CloudError> {
    let Some(wanted) = wanted else {
        return Err(CloudError::Invalid("the request names no machine type".to_owned()));
    };
    let Some(entry) = types.iter().find(|entry| entry.name == wanted.name) else {
        let name = &wanted.name;
        return Err(CloudError::Invalid(format!("machine type {name:?} is not in the catalogue")));
    };
    let zone = match entry.zones.first() {
        Some(first) if wanted.zone.is_empty() => first,
        Some(_) if entry.zones.contains(&wanted.zone) => &wanted.zone,
        None if wanted.zone.is_empty() => &wanted.zone,
        _ => {
            let (name, zone) = (&wanted.name, &wanted.zone);
            return Err(CloudError::Invalid(format!(
                "machine type {name} is not in zone {zone:?}"
            )));
        }
    };
    if wanted.spot && entry.spot_price_micros_per_hour.is_none() {
        let name = &wanted.name;
        return Err(CloudError::Invalid(format!("machine type {name} cannot be had as spot")));
    }
    Ok(convert::machine_type(entry, zone, wanted.spot))
}

/// The smallest type that has at least so much.
pub(crate) fn resized<'a>(
    types: &'a [TypeEntry],
    now: &MachineType,
    cpu_millis: u64,
    memory_bytes: u64,
) -> Result<&'a TypeEntry, CloudError> {
    types
        .iter()
        .filter(|entry| {
            entry.cpu_millis >= cpu_millis
                && entry.memory_bytes >= memory_bytes
                && entry.architecture == now.architecture
                && entry.gpus == now.gpus
        })
        .min_by_key(|entry| (entry.memory_bytes, entry.cpu_millis))
        .ok_or_else(|| CloudError::Invalid("no machine type is large enough".to_owned()))
}

fn fits(entry: &TypeEntry, request: &PlanRequest) -> bool {
    entry.cpu_millis >= request.cpu_millis
        && entry.memory_bytes >= request.memory_bytes
        && entry.gpus >= request.gpus
        && (request.gpus > 0 || entry.gpus == 0 || entry.name == request.machine_type)
        && (request.architecture.is_empty() || entry.architecture == request.architecture)
        && (request.machine_type.is_empty() || entry.name == request.machine_type)
        && (!request.spot || entry.spot_price_micros_per_hour.is_some())
        && !zones(entry, &request.zones).is_empty()
}

fn zones(entry: &TypeEntry, allowed: &[String]) -> Vec<String> {
    match (entry.zones.is_empty(), allowed.is_empty()) {
        (true, true) => vec![String::new()],
        (_, true) => entry.zones.clone(),
        _ => allowed.iter().filter(|zone| entry.zones.contains(zone)).cloned().collect(),
    }
}

fn price(entry: &TypeEntry, spot: bool) -> Option<u64> {
    if spot { entry.spot_price_micros_per_hour } else { entry.price_micros_per_hour }
}

fn why(best: &MachineType, request: &PlanRequest) -> String {
    let choice = match request.machine_type.is_empty() {
        true => "is the cheapest type that fits",
        false => "is the type that the profile fixes, and it fits",
    };
    format!(
        "{} {choice} {} CPU millis, {} bytes of memory and {} GPUs",
        best.name, request.cpu_millis, request.memory_bytes, request.gpus
    )
}

fn refusal(types: &[TypeEntry], request: &PlanRequest) -> String {
    let (name, architecture) = (&request.machine_type, &request.architecture);
    if !name.is_empty() && !types.iter().any(|entry| entry.name == *name) {
        return format!("machine type {name:?} is not in the catalogue");
    }
    if !architecture.is_empty() && !types.iter().any(|entry| entry.architecture == *architecture) {
        return format!("no machine type has the architecture {architecture:?}");
    }
    format!(
        "no machine type fits {} CPU millis, {} bytes of memory and {} GPUs",
        request.cpu_millis, request.memory_bytes, request.gpus
    )
}

const CANDIDATES_MAX: usize = 32;
