//! Promises that need no machine: capabilities, plans, unknown ids, wrong wishes.

use infranetes_sdk::ErrorKind;
use infranetes_sdk::pod::{
    AddressMode, AddressesRequest, ConsoleRequest, CreateRequest, DescribePodRequest,
    EventsRequest, GetRequest, Network, PlanRequest, QuotaRequest, StopMachineRequest,
    SweepRequest,
};

use super::stage::Stage;
use crate::check::{Outcome, ensure, fails, honest, ok, require};

pub(super) async fn describe_is_constant(stage: &Stage) -> Outcome {
    let first = stage.capabilities().await?;
    let second = ok("describe", stage.provider.describe(stage.ctx(), DescribePodRequest {}).await)?;
    ensure(first == second, || format!("{first:?} became {second:?}"))?;
    ensure(!first.architectures.is_empty(), || "no architecture is named".into())?;
    ensure(first.user_data_limit_bytes > 0, || "it takes no user-data at all".into())
}

pub(super) async fn plan_fits(stage: &Stage) -> Outcome {
    let wish = &stage.subject.plan;
    let plan = ok("plan", stage.provider.plan(stage.ctx(), wish.clone()).await)?;
    ensure(!plan.candidates.is_empty(), || "there is no candidate".into())?;
    ensure(!plan.why.is_empty(), || "it does not say why".into())?;
    for candidate in &plan.candidates {
        let fits = candidate.cpu_millis >= wish.cpu_millis
            && candidate.memory_bytes >= wish.memory_bytes
            && candidate.gpus >= wish.gpus
            && (wish.architecture.is_empty() || candidate.architecture == wish.architecture)
            && (wish.machine_type.is_empty() || candidate.name == wish.machine_type)
            && (wish.zones.is_empty() || wish.zones.contains(&candidate.zone));
        ensure(fits, || format!("{candidate:?} does not fit {wish:?}"))?;
        ensure(!candidate.name.is_empty(), || format!("{candidate:?} has no name"))?;
    }
    Ok(())
}

pub(super) async fn plan_is_constant(stage: &Stage) -> Outcome {
    let wish = &stage.subject.plan;
    let first = ok("plan", stage.provider.plan(stage.ctx(), wish.clone()).await)?;
    let second = ok("plan", stage.provider.plan(stage.ctx(), wish.clone()).await)?;
    ensure(first == second, || format!("{first:?} became {second:?}"))?;
    let machines = stage.list(&stage.run_tags(), 0).await?;
    ensure(machines.is_empty(), || format!("planning made {} machines", machines.len()))
}

pub(super) async fn plan_refuses(stage: &Stage) -> Outcome {
    let wish = &stage.subject.plan;
    let impossible = [
        ("an endless memory", PlanRequest { memory_bytes: u64::MAX / 2, ..wish.clone() }),
        ("endless CPUs", PlanRequest { cpu_millis: u64::MAX / 2, ..wish.clone() }),
        ("an unknown type", PlanRequest { machine_type: "no-such-type".into(), ..wish.clone() }),
        ("an unknown architecture", PlanRequest { architecture: "pdp11".into(), ..wish.clone() }),
    ];
    for (what, wish) in impossible {
        let plan = stage.provider.plan(stage.ctx(), wish).await;
        fails(&format!("plan with {what}"), ErrorKind::Invalid, plan)?;
    }
    Ok(())
}

pub(super) async fn unknown_ids(stage: &Stage) -> Outcome {
    let id = String::from(UNKNOWN);
    let provider = &stage.provider;
    let get = provider.get(stage.ctx(), GetRequest { id: id.clone() }).await;
    fails("get", ErrorKind::NotFound, get)?;
    let addresses = provider.addresses(stage.ctx(), AddressesRequest { id: id.clone() }).await;
    fails("addresses", ErrorKind::NotFound, addresses)?;
    let stop = provider.stop(stage.ctx(), StopMachineRequest { id: id.clone(), grace_ms: 0 }).await;
    fails("stop", ErrorKind::NotFound, stop)?;
    if stage.capabilities().await?.console {
        let request = ConsoleRequest { id, ..ConsoleRequest::default() };
        let console = provider.console(stage.ctx(), request).await;
        fails("console", ErrorKind::NotFound, console)?;
    }
    Ok(())
}

pub(super) async fn destroy_unknown(stage: &Stage) -> Outcome {
    stage.delete(UNKNOWN).await
}

pub(super) async fn capabilities(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?;
    let provider = &stage.provider;
    let sweep = provider.sweep(stage.ctx(), SweepRequest { tags: stage.run_tags() }).await;
    honest("sweep", able.sweep, sweep)?;
    honest("quota", able.quota, provider.quota(stage.ctx(), QuotaRequest {}).await)?;
    honest("events", able.events, provider.events(stage.ctx(), EventsRequest {}).await)
}

pub(super) async fn user_data_limit(stage: &Stage) -> Outcome {
    let limit = stage.capabilities().await?.user_data_limit_bytes;
    require(limit <= USER_DATA_TRIED, "the limit is larger than what is tried")?;
    let mut request = stage.request().await?;
    request.user_data = vec![b'x'; usize::try_from(limit).unwrap_or(usize::MAX) + 1];
    refused(stage, "create with too much user-data", ErrorKind::Invalid, request).await
}

pub(super) async fn no_checkpoint(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?.checkpoint;
    require(able, "describe denies checkpoint")?;
    let mut request = stage.request().await?;
    request.checkpoint = "/no/such/checkpoint".into();
    let what = "create with a checkpoint that is not there";
    refused(stage, what, ErrorKind::Invalid, request).await
}

pub(super) async fn unknown_type(stage: &Stage) -> Outcome {
    let mut request = stage.request().await?;
    request.machine_type = request.machine_type.map(|mut machine_type| {
        machine_type.name = "no-such-type".into();
        machine_type
    });
    refused(stage, "create with an unknown machine type", ErrorKind::Invalid, request).await
}

pub(super) async fn address_modes(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?.address_modes;
    let all = [AddressMode::Local, AddressMode::Private, AddressMode::Public, AddressMode::Cni];
    for mode in all.into_iter().filter(|mode| !able.contains(&i32::from(*mode))) {
        let mut request = stage.request().await?;
        request.network = Some(Network { address_mode: mode.into(), ..Network::default() });
        refused(stage, &format!("create with {mode:?}"), ErrorKind::Unsupported, request).await?;
    }
    Ok(())
}

/// The wish is refused as `kind`, and nothing of it exists afterwards.
async fn refused(stage: &Stage, what: &str, kind: ErrorKind, request: CreateRequest) -> Outcome {
    fails(what, kind, stage.try_create(&request).await)?;
    let machines = stage.list(&request.tags, 0).await?;
    ensure(machines.is_empty(), || format!("{what} left a machine"))
}

const UNKNOWN: &str = "no-such-machine";

/// More than any cloud takes; a provider with a larger limit is believed.
const USER_DATA_TRIED: u64 = 16 << 20;
