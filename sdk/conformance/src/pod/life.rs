//! Promises along one machine's life. The checks run in order and share the machine.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use infranetes_sdk::pod::{
    AddressesRequest, AttachRequest, CheckpointRequest, ConsoleRequest, MachineState,
    ResizeRequest, StartMachineRequest, StopMachineRequest,
};
use infranetes_sdk::{BoxStream, ErrorKind};

use super::stage::{Machines, Stage};
use crate::check::{Outcome, Stop, ensure, eventually, fails, honest, ok, require};
use crate::stock::{Stock, lists};

pub(super) async fn create(stage: &Stage) -> Outcome {
    let request = stage.request().await?;
    let machine = stage.create(&request).await?;
    stage.set_main(request.clone(), machine.clone());
    ensure(machine.name == request.name, || format!("its name is {:?}", machine.name))?;
    let state = machine.state();
    ensure(matches!(state, MachineState::Creating | MachineState::Running), || {
        format!("it is {state:?}")
    })?;
    let tags = stage.capabilities().await?.tags;
    ensure(!tags || machine.tags == request.tags, || format!("its tags are {:?}", machine.tags))
}

pub(super) async fn other_shape(stage: &Stage) -> Outcome {
    let (mut request, _) = stage.main()?;
    request.name = format!("{}-other", request.name);
    request.user_data.extend(b"-other");
    fails("create", ErrorKind::Conflict, stage.try_create(&request).await)
}

pub(super) async fn runs(stage: &Stage) -> Outcome {
    let (request, machine) = stage.main()?;
    let machine = stage.wait_for_state(&machine.id, MachineState::Running).await?;
    ensure(machine.name == request.name, || format!("its name is {:?}", machine.name))?;
    ensure(machine.created_unix_ms > 0, || "it was never created".into())?;
    let tags = stage.capabilities().await?.tags;
    ensure(!tags || machine.tags == request.tags, || format!("its tags are {:?}", machine.tags))
}

pub(super) async fn listed(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.tags, "describe denies tags")?;
    lists::by_tags(stage).await
}

pub(super) async fn pages(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.tags, "describe denies tags")?;
    lists::pages(stage, stage.subject.machines_max.max(2)).await
}

pub(super) async fn addresses(stage: &Stage) -> Outcome {
    let (_, machine) = stage.main()?;
    let addresses = eventually("its agent's address", stage.limits().start, || async {
        let request = AddressesRequest { id: machine.id.clone() };
        match stage.provider.addresses(stage.ctx(), request).await {
            Ok(found) if stage.subject.has_agent && found.agent.is_empty() => Err("empty".into()),
            other => Ok(other),
        }
    })
    .await?;
    let addresses = ok("addresses", addresses)?;
    for ip in &addresses.ips {
        ensure(ip.parse::<IpAddr>().is_ok(), || format!("{ip:?} is no address"))?;
    }
    let agent = &addresses.agent;
    let known = ["tcp://", "unix:///"].iter().any(|scheme| agent.starts_with(scheme));
    ensure(agent.is_empty() || known, || format!("{agent:?} is neither tcp:// nor unix:///"))
}

pub(super) async fn console_replay(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.console, "describe denies the console")?;
    let (_, machine) = stage.main()?;
    let replay =
        |replay_bytes| ConsoleRequest { id: machine.id.clone(), replay_bytes, follow: false };
    if stage.subject.has_console_output {
        eventually("output on the console", stage.limits().start, || async {
            let opened = stage.provider.console(stage.ctx(), replay(4096)).await;
            match read_all(stage, opened).await {
                Ok(0) => Err("it is empty".into()),
                Ok(_) => Ok(()),
                Err(Stop::Broken(why) | Stop::Skipped(why)) => Err(why),
            }
        })
        .await?;
    }
    for limit in [0, 10, 4096] {
        let opened = stage.provider.console(stage.ctx(), replay(limit)).await;
        let bytes = read_all(stage, opened).await?;
        ensure(bytes <= limit, || format!("{bytes} bytes came where {limit} were asked for"))?;
    }
    Ok(())
}

async fn read_all(
    stage: &Stage,
    opened: infranetes_sdk::Result<BoxStream<infranetes_sdk::pod::ConsoleChunk>>,
) -> Outcome<u64> {
    let mut chunks = ok("console", opened)?;
    let mut bytes = 0;
    let read = async {
        while let Some(chunk) = chunks.next().await {
            bytes += ok("the console", chunk)?.data.len() as u64;
        }
        Ok(())
    };
    tokio::time::timeout(stage.limits().call, read)
        .await
        .map_err(|_| Stop::Broken("a replay without follow does not end".into()))??;
    Ok(bytes)
}

pub(super) async fn console_readers(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.console, "describe denies the console")?;
    let (_, machine) = stage.main()?;
    let follow = ConsoleRequest { id: machine.id.clone(), replay_bytes: 0, follow: true };
    let mut readers = Vec::new();
    for _ in 0..3 {
        readers.push(ok("console", stage.provider.console(stage.ctx(), follow.clone()).await)?);
    }
    for mut reader in readers {
        // Silence is fine; an end is not, because the machine runs.
        let read = async {
            while let Some(item) = reader.next().await {
                ok("the console", item)?;
            }
            Err(Stop::Broken("following ended while the machine runs".into()))
        };
        tokio::time::timeout(FOLLOW_PAUSE, read).await.unwrap_or(Ok(()))?;
    }
    Ok(())
}

pub(super) async fn capabilities(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?;
    let (_, machine) = stage.main()?;
    let id = machine.id;
    if !able.console {
        let request = ConsoleRequest { id: id.clone(), ..ConsoleRequest::default() };
        honest("console", false, stage.provider.console(stage.ctx(), request).await)?;
    }
    if !able.resize {
        let request = ResizeRequest { id: id.clone(), ..ResizeRequest::default() };
        honest("resize", false, stage.provider.resize(stage.ctx(), request).await)?;
    }
    if !able.checkpoint {
        let request = CheckpointRequest { id: id.clone(), ..CheckpointRequest::default() };
        honest("checkpoint", false, stage.provider.checkpoint(stage.ctx(), request).await)?;
    }
    if !able.attach_after_boot {
        let volume_id = String::from("no-such-volume");
        let request = AttachRequest { machine_id: id, volume_id, read_only: false };
        honest("attach", false, stage.provider.attach(stage.ctx(), request).await)?;
    }
    Ok(())
}

pub(super) async fn resize_same(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.resize, "describe denies resize")?;
    let (_, machine) = stage.main()?;
    let machine = stage.get(&machine.id).await?;
    let size = machine.machine_type.unwrap_or_default();
    let request = ResizeRequest {
        id: machine.id,
        cpu_millis: size.cpu_millis,
        memory_bytes: size.memory_bytes,
    };
    ok("resize", stage.provider.resize(stage.ctx(), request).await).map(drop)
}

pub(super) async fn stop(stage: &Stage) -> Outcome {
    let (_, machine) = stage.main()?;
    for what in ["stop", "stop again"] {
        let request = StopMachineRequest { id: machine.id.clone(), grace_ms: 0 };
        ok(what, stage.provider.stop(stage.ctx(), request).await)?;
        let state = stage.get(&machine.id).await?.state();
        ensure(state == MachineState::Stopped, || format!("after {what} it is {state:?}"))?;
    }
    let listed = stage.list(&stage.run_tags(), 0).await?;
    ensure(listed.iter().any(|listed| listed.id == machine.id), || "list hides it".into())
}

pub(super) async fn start(stage: &Stage) -> Outcome {
    let (_, machine) = stage.main()?;
    let request = StartMachineRequest { id: machine.id.clone() };
    if !stage.capabilities().await?.stop_start {
        let started = stage.provider.start(stage.ctx(), request).await;
        return honest("start", false, started);
    }
    ok("start", stage.provider.start(stage.ctx(), request.clone()).await)?;
    stage.wait_for_state(&machine.id, MachineState::Running).await?;
    ok("start again", stage.provider.start(stage.ctx(), request).await).map(drop)
}

pub(super) async fn destroy(stage: &Stage) -> Outcome {
    let (_, machine) = stage.main()?;
    stage.delete(&machine.id).await?;
    stage.wait_until_gone(&machine.id).await?;
    fails("get", ErrorKind::NotFound, stage.try_get(&machine.id).await)?;
    Machines::swept(stage).await
}

pub(super) async fn destroy_again(stage: &Stage) -> Outcome {
    let (_, machine) = stage.main()?;
    stage.delete(&machine.id).await
}

pub(super) async fn destroy_creating(stage: &Stage) -> Outcome {
    let machine = stage.create(&stage.request().await?).await?;
    stage.delete(&machine.id).await?;
    stage.wait_until_gone(&machine.id).await
}

/// How long a reader of a silent console is watched.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);
