//! Promises about volumes on machines, where one plugin has both. The first checks run in order and share a machine and a volume.

use infranetes_sdk::pod::{
    AttachRequest, AttachResponse, CreateRequest, DetachRequest, Disk, Machine, MachineState,
};
use infranetes_sdk::volume::{Volume, VolumeState};
use infranetes_sdk::{ErrorKind, Result};

use super::stage::Stage;
use crate::check::{Outcome, Stop, ensure, fails, honest, ok, require};
use crate::cut::Cut;
use crate::stock::fault::{Fault, FaultyCall, REFUSALS, is_refused, may_be_repeated, some};
use crate::volume;

pub(super) async fn attach(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?.attach_after_boot;
    let (machine, volume) = both(stage).await?;
    if !able {
        return honest("attach", false, try_attach(stage, &machine.id, &volume.id).await);
    }
    let first = ok("attach", try_attach(stage, &machine.id, &volume.id).await)?;
    ensure(!first.device_id.is_empty(), || "it does not say how the guest finds it".into())?;
    let again = ok("attach again", try_attach(stage, &machine.id, &volume.id).await)?;
    ensure(first == again, || format!("{first:?} became {again:?}"))?;
    is_attached(stage, &volume, &machine).await
}

pub(super) async fn unknown_ids(stage: &Stage) -> Outcome {
    let (machine, volume) = shared(stage).await?;
    let unknown = try_attach(stage, &machine.id, UNKNOWN).await;
    fails("attach of an unknown volume", ErrorKind::NotFound, unknown)?;
    let unknown = try_attach(stage, UNKNOWN, &volume.id).await;
    fails("attach to an unknown machine", ErrorKind::NotFound, unknown)
}

pub(super) async fn elsewhere(stage: &Stage) -> Outcome {
    let (_, volume) = shared(stage).await?;
    let request = stage.request().await?;
    let other = running(stage, &request).await?;
    let taken = try_attach(stage, &other.id, &volume.id).await;
    fails("attach to another machine", ErrorKind::Conflict, taken)?;
    stage.end(&request, &other).await
}

pub(super) async fn delete_attached(stage: &Stage) -> Outcome {
    let (machine, volume) = shared(stage).await?;
    let volumes = volumes(stage)?;
    let reference = infranetes_sdk::volume::VolumeRef { id: volume.id.clone() };
    let deleted = volumes.provider.delete(stage.ctx(), reference).await;
    fails("delete of an attached volume", ErrorKind::Conflict, deleted)?;
    is_attached(stage, &volume, &machine).await
}

pub(super) async fn detach(stage: &Stage) -> Outcome {
    let (machine, volume) = shared(stage).await?;
    for what in ["detach", "detach again"] {
        ok(what, try_detach(stage, &machine.id, &volume.id).await)?;
        volumes(stage)?.wait_for_state(&volume.id, VolumeState::Available).await?;
    }
    Ok(())
}

pub(super) async fn cancelled(stage: &Stage) -> Outcome {
    let (machine, volume) = shared(stage).await?;
    let (machine_id, volume_id) = (machine.id.clone(), volume.id.clone());
    for patience_ms in [0, 5, 50] {
        let patience = std::time::Duration::from_millis(patience_ms);
        let request = attach_request(&machine_id, &volume_id);
        let attach = |context| stage.provider.attach(context, request);
        Cut::Cancelled.off("attach", stage.limits(), patience, attach).await?;
        ok("attach again", try_attach(stage, &machine_id, &volume_id).await)?;
        is_attached(stage, &volume, &machine).await?;
        let request = detach_request(&machine_id, &volume_id);
        let detach = |context| stage.provider.detach(context, request);
        Cut::Cancelled.off("detach", stage.limits(), patience, detach).await?;
        is_detached(stage, &volume, &machine).await?;
    }
    Ok(())
}

/// Also ends the machine of the checks above.
pub(super) async fn destroy(stage: &Stage) -> Outcome {
    let (machine, volume) = shared(stage).await?;
    ok("attach", try_attach(stage, &machine.id, &volume.id).await)?;
    stage.delete(&machine.id).await?;
    stage.wait_until_gone(&machine.id).await?;
    kept(stage, &volume).await
}

pub(super) async fn from_the_beginning(stage: &Stage) -> Outcome {
    let volumes = volumes(stage)?;
    let volume = volumes.make(&volumes.request().await?).await?;
    let request = with_disk(stage, &volume.id).await?;
    let machine = running(stage, &request).await?;
    is_attached(stage, &volume, &machine).await?;
    for (what, kind, id) in [
        ("a volume that another machine has", ErrorKind::Conflict, volume.id.as_str()),
        ("an unknown volume", ErrorKind::NotFound, UNKNOWN),
    ] {
        let request = with_disk(stage, id).await?;
        fails(&format!("create with {what}"), kind, stage.try_create(&request).await)?;
        stage.wait_for_count(&request, 0..=0).await?;
    }
    stage.end(&request, &machine).await?;
    kept(stage, &volume).await
}

pub(super) async fn attach_refused(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.attach_after_boot, "describe denies attach")?;
    let (machine, volume) = both(stage).await?;
    let mut injected = false;
    let refusals = REFUSALS.map(Fault::Refused);
    for fault in refusals.into_iter().chain([Fault::AnswerLost]) {
        if !stage.inject(FaultyCall::Attach, fault) {
            continue;
        }
        injected = true;
        let attached = try_attach(stage, &machine.id, &volume.id).await;
        match fault {
            Fault::Refused(kind) if is_refused("attach", kind, &attached)? => {
                volumes(stage)?.wait_for_state(&volume.id, VolumeState::Available).await?;
            }
            Fault::Refused(_) => {}
            _ => may_be_repeated("attach", &attached)?,
        }
        ok("attach again", try_attach(stage, &machine.id, &volume.id).await)?;
        is_attached(stage, &volume, &machine).await?;
        is_detached(stage, &volume, &machine).await?;
    }
    some(injected, "failed attach")
}

/// Also ends the machine and the volume of the checks of faults.
pub(super) async fn detach_refused(stage: &Stage) -> Outcome {
    let (machine, volume) = shared(stage).await?;
    let mut injected = false;
    for fault in [Fault::Refused(ErrorKind::Transient), Fault::AnswerLost] {
        ok("attach", try_attach(stage, &machine.id, &volume.id).await)?;
        if stage.inject(FaultyCall::Detach, fault) {
            injected = true;
            may_be_repeated("detach", &try_detach(stage, &machine.id, &volume.id).await)?;
        }
        is_detached(stage, &volume, &machine).await?;
    }
    stage.delete(&machine.id).await?;
    kept(stage, &volume).await?;
    some(injected, "failed detach")
}

/// A machine that runs, and a volume, for the checks that follow.
async fn both(stage: &Stage) -> Outcome<(Machine, Volume)> {
    let volumes = volumes(stage)?;
    let wish = volumes.request().await?;
    let volume = volumes.make(&wish).await?;
    volumes.set_main(wish, volume.clone());
    let request = stage.request().await?;
    let machine = running(stage, &request).await?;
    stage.set_main(request, machine.clone());
    Ok((machine, volume))
}

async fn with_disk(stage: &Stage, volume: &str) -> Outcome<CreateRequest> {
    let disk = Disk { volume_id: volume.to_owned(), ..Disk::default() };
    Ok(CreateRequest { disks: vec![disk], ..stage.request().await? })
}

async fn running(stage: &Stage, request: &CreateRequest) -> Outcome<Machine> {
    let machine = stage.create(request).await?;
    stage.wait_for_state(&machine.id, MachineState::Running).await
}

/// The machine and the volume of an earlier check.
async fn shared(stage: &Stage) -> Outcome<(Machine, Volume)> {
    require(stage.capabilities().await?.attach_after_boot, "describe denies attach")?;
    Ok((stage.main()?.1, volumes(stage)?.main()?.1))
}

fn volumes(stage: &Stage) -> Outcome<&volume::Stage> {
    stage.beside.as_ref().ok_or_else(|| Stop::Skipped("the plugin has no volumes".into()))
}

async fn try_attach(stage: &Stage, machine: &str, volume: &str) -> Result<AttachResponse> {
    stage.provider.attach(stage.ctx(), attach_request(machine, volume)).await
}

async fn try_detach(stage: &Stage, machine: &str, volume: &str) -> Result<()> {
    stage.provider.detach(stage.ctx(), detach_request(machine, volume)).await.map(drop)
}

fn attach_request(machine: &str, volume: &str) -> AttachRequest {
    AttachRequest { machine_id: machine.into(), volume_id: volume.into(), read_only: false }
}

fn detach_request(machine: &str, volume: &str) -> DetachRequest {
    DetachRequest { machine_id: machine.into(), volume_id: volume.into() }
}

async fn is_attached(stage: &Stage, volume: &Volume, machine: &Machine) -> Outcome {
    let volumes = volumes(stage)?;
    let held = volumes.wait_for_state(&volume.id, VolumeState::Attached).await?;
    ensure(held.machine_id == machine.id, || format!("it is attached to {:?}", held.machine_id))
}

/// Asks for it once more, whatever became of earlier calls.
async fn is_detached(stage: &Stage, volume: &Volume, machine: &Machine) -> Outcome {
    ok("detach again", try_detach(stage, &machine.id, &volume.id).await)?;
    let volume = volumes(stage)?.wait_for_state(&volume.id, VolumeState::Available).await?;
    ensure(volume.machine_id.is_empty(), || format!("it is attached to {:?}", volume.machine_id))
}

/// The volume outlived its machine, and can be deleted.
async fn kept(stage: &Stage, volume: &Volume) -> Outcome {
    let volumes = volumes(stage)?;
    volumes.wait_for_state(&volume.id, VolumeState::Available).await?;
    volumes.delete(&volume.id).await?;
    volumes.wait_until_gone(&volume.id).await
}

const UNKNOWN: &str = "no-such-thing";
