//! Promises about calls for a machine that are cut off, by their caller or their deadline. The checks share the machine of one life.

use std::time::Duration;

use infranetes_sdk::pod::{
    AddressesRequest, ConsoleRequest, DescribePodRequest, GetRequest, ListRequest, MachineState,
    MachineType, PlanRequest, QuotaRequest, ResizeRequest, StartMachineRequest, StopMachineRequest,
    SweepRequest,
};

use super::stage::Stage;
use crate::check::{Outcome, ensure, ok, require};
use crate::cut::{Cut, late};

pub(super) async fn late_questions(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?;
    let (_, machine) = stage.main()?;
    let (id, tags) = (machine.id.clone(), stage.run_tags());
    let list = ListRequest { tags: tags.clone(), ..ListRequest::default() };
    let console = ConsoleRequest { id: id.clone(), replay_bytes: 4096, follow: false };
    for patience in PATIENCE {
        late! { stage, patience;
            true => describe(DescribePodRequest {});
            true => plan(stage.subject.plan.clone());
            true => get(GetRequest { id: id.clone() });
            true => list(list.clone());
            true => addresses(AddressesRequest { id: id.clone() });
            able.console => console(console.clone());
            able.sweep => sweep(SweepRequest { tags: tags.clone() });
            able.quota => quota(QuotaRequest {});
        }
    }
    let state = stage.get(&id).await?.state();
    ensure(state == MachineState::Running, || format!("it is {state:?}"))
}

/// To more, where there is more. Not every cloud changes a machine that runs: the answer may be an error.
pub(super) async fn resize(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.resize, "describe denies resize")?;
    let (_, machine) = stage.main()?;
    let before = size(stage, &machine.id).await?;
    let memory_bytes = before.memory_bytes.saturating_mul(2);
    let wish = PlanRequest { memory_bytes, ..stage.subject.plan.clone() };
    let plan = stage.provider.plan(stage.ctx(), wish).await;
    let larger = plan.ok().and_then(|plan| plan.candidates.into_iter().next());
    let wanted = larger.unwrap_or_else(|| before.clone());
    let request = |size: &MachineType| ResizeRequest {
        id: machine.id.clone(),
        cpu_millis: size.cpu_millis,
        memory_bytes: size.memory_bytes,
    };
    for cut in Cut::ALL {
        for patience in PATIENCE {
            let call = |context| stage.provider.resize(context, request(&wanted));
            drop(cut.answer(stage.limits(), patience, call).await);
            stage.wait_for_state(&machine.id, MachineState::Running).await?;
            let now = size(stage, &machine.id).await?;
            let whole = now == before || now.memory_bytes >= wanted.memory_bytes;
            ensure(whole, || format!("from {before:?} to {wanted:?} it came to {now:?}"))?;
            let again = stage.provider.resize(stage.ctx(), request(&now)).await;
            ok("resize to what it is", again)?;
        }
    }
    Ok(())
}

pub(super) async fn stop_and_start(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.stop_start, "describe denies start")?;
    let (_, machine) = stage.main()?;
    let id = || machine.id.clone();
    for cut in Cut::ALL {
        for patience in PATIENCE {
            let stop = |context| {
                stage.provider.stop(context, StopMachineRequest { id: id(), grace_ms: 0 })
            };
            cut.off("stop", stage.limits(), patience, stop).await?;
            ok("stop again", stop(stage.ctx()).await)?;
            let state = stage.get(&machine.id).await?.state();
            ensure(state == MachineState::Stopped, || format!("stopped, it is {state:?}"))?;
            let start = |context| stage.provider.start(context, StartMachineRequest { id: id() });
            cut.off("start", stage.limits(), patience, start).await?;
            ok("start again", start(stage.ctx()).await)?;
            stage.wait_for_state(&machine.id, MachineState::Running).await?;
        }
    }
    Ok(())
}

async fn size(stage: &Stage, id: &str) -> Outcome<MachineType> {
    Ok(stage.get(id).await?.machine_type.unwrap_or_default())
}

/// How long callers wait before they go away.
const PATIENCE: [Duration; 2] = [Duration::ZERO, Duration::from_millis(20)];
