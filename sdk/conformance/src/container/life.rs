//! Promises along a container's life.

use futures::future::join_all;
use infranetes_sdk::ErrorKind;
use infranetes_sdk::container::{
    ContainerState, CreateContainerRequest, KillContainerRequest, Process, Resources, StatsRequest,
    StopContainerRequest, UpdateContainerRequest,
};

use super::stage::{ENDLESS, Stage, reference};
use crate::check::{Outcome, ensure, eventually, fails, ok, require};

pub(super) async fn create(stage: &Stage) -> Outcome {
    ok("create", stage.provider.create(stage.ctx(), stage.main_request()).await)?;
    let status = stage.status(&stage.main_id()).await?;
    let state = status.state();
    ensure(state == ContainerState::Created, || format!("it is {state:?}"))?;
    ensure(status.created_unix_ns > 0, || "it was never created".into())?;
    ensure(status.pid == 0, || format!("it has process {}", status.pid))
}

pub(super) async fn create_again(stage: &Stage) -> Outcome {
    let request = stage.main_request();
    ok("create again", stage.provider.create(stage.ctx(), request.clone()).await)?;
    let process = Process { args: stage.shell("exit 1"), ..request.process.unwrap_or_default() };
    let other = CreateContainerRequest { process: Some(process), ..stage.main_request() };
    let created = stage.provider.create(stage.ctx(), other).await;
    fails("create with another process", ErrorKind::Conflict, created)
}

pub(super) async fn start(stage: &Stage) -> Outcome {
    let id = stage.main_id();
    for what in ["start", "start again"] {
        ok(what, stage.provider.start(stage.ctx(), reference(&id)).await)?;
        let status = stage.status(&id).await?;
        let runs = status.state() == ContainerState::Running && status.pid > 0;
        ensure(runs, || format!("after {what}: {status:?}"))?;
    }
    Ok(())
}

pub(super) async fn status(stage: &Stage) -> Outcome {
    let id = stage.require_main().await?;
    let status = stage.status(&id).await?;
    let listed = stage.list().await?;
    ensure(listed.contains(&status), || format!("{status:?} is not in {listed:?}"))?;
    ensure(status.started_unix_ns >= status.created_unix_ns, || format!("{status:?}"))
}

pub(super) async fn stats(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.stats, "describe denies stats")?;
    let id = stage.require_main().await?;
    for request in [StatsRequest { id: id.clone() }, StatsRequest::default()] {
        let stats = ok("stats", stage.provider.stats(stage.ctx(), request).await)?.stats;
        let one = stats.iter().find(|stats| stats.id == id);
        let there = one.is_some_and(|stats| stats.timestamp_unix_ns > 0 && stats.processes > 0);
        ensure(there, || format!("{id} has {one:?}"))?;
    }
    Ok(())
}

pub(super) async fn update(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.update, "describe denies update")?;
    let id = stage.require_main().await?;
    let resources = Resources { pids_limit: 200, ..Resources::default() };
    let request = UpdateContainerRequest { id, resources: Some(resources) };
    for what in ["update", "update again"] {
        ok(what, stage.provider.update(stage.ctx(), request.clone()).await)?;
    }
    Ok(())
}

pub(super) async fn pause(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.pause, "describe denies pause")?;
    // Ends as soon as it may run.
    let id = stage.run(stage.request("sleep 2")).await?;
    ok("pause", stage.provider.pause(stage.ctx(), reference(&id)).await)?;
    tokio::time::sleep(STILL).await;
    let state = stage.status(&id).await?.state();
    ensure(state == ContainerState::Running, || format!("paused, it is {state:?}"))?;
    ok("resume", stage.provider.resume(stage.ctx(), reference(&id)).await)?;
    stage.wait_for_exit(&id).await?;
    fails("pause", ErrorKind::Conflict, stage.provider.pause(stage.ctx(), reference(&id)).await)?;
    stage.remove(&id).await?;
    let id = stage.run(stage.request(ENDLESS)).await?;
    for _ in ["once", "and again"] {
        ok("pause", stage.provider.pause(stage.ctx(), reference(&id)).await)?;
    }
    for _ in ["once", "and again"] {
        ok("resume", stage.provider.resume(stage.ctx(), reference(&id)).await)?;
    }
    // One that stands still can be ended.
    ok("pause", stage.provider.pause(stage.ctx(), reference(&id)).await)?;
    let stop = StopContainerRequest { id: id.clone(), ..Default::default() };
    ok("stop", stage.provider.stop(stage.ctx(), stop).await)?;
    stage.remove(&id).await
}

pub(super) async fn start_unknown_program(stage: &Stage) -> Outcome {
    let mut request = stage.request("");
    let process = request.process.get_or_insert_default();
    process.args = vec!["/no/such/program".into()];
    let id = request.id.clone();
    ok("create", stage.provider.create(stage.ctx(), request).await)?;
    let started = stage.provider.start(stage.ctx(), reference(&id)).await;
    fails("start", ErrorKind::Invalid, started)?;
    let status = stage.status(&id).await?;
    let as_promised = status.state() == ContainerState::Exited
        && status.exit_code == 127
        && status.reason == "StartError";
    ensure(as_promised, || format!("it is {status:?}"))?;
    stage.remove(&id).await
}

pub(super) async fn stop_signal(stage: &Stage) -> Outcome {
    let script = "trap 'exit 3' TERM; while true; do sleep 1 & wait $!; done";
    let id = stage.run(stage.request(script)).await?;
    wait_for_trap(stage, &id).await?;
    for what in ["stop", "stop again"] {
        let request =
            StopContainerRequest { id: id.clone(), grace_ms: 20_000, ..Default::default() };
        ok(what, stage.provider.stop(stage.ctx(), request).await)?;
        let status = stage.status(&id).await?;
        let ended = status.state() == ContainerState::Exited && status.exit_code == 3;
        ensure(ended, || format!("after {what}: {status:?}"))?;
    }
    ok("start", stage.provider.start(stage.ctx(), reference(&id)).await)?;
    let state = stage.status(&id).await?.state();
    ensure(state == ContainerState::Exited, || format!("it ran twice: {state:?}"))?;
    stage.remove(&id).await
}

pub(super) async fn stop_grace(stage: &Stage) -> Outcome {
    let script = "trap '' TERM; while true; do sleep 1 & wait $!; done";
    let id = stage.run(stage.request(script)).await?;
    wait_for_trap(stage, &id).await?;
    let request = StopContainerRequest { id: id.clone(), grace_ms: 300, ..Default::default() };
    ok("stop", stage.provider.stop(stage.ctx(), request).await)?;
    let status = stage.status(&id).await?;
    let killed = status.state() == ContainerState::Exited && status.exit_code == 137;
    ensure(killed, || format!("it is {status:?}"))?;
    stage.remove(&id).await
}

/// A shell needs a moment before it hears signals: its first child shows that it got there.
async fn wait_for_trap(stage: &Stage, id: &str) -> Outcome {
    if !stage.capabilities().await?.stats {
        tokio::time::sleep(TRAP_PAUSE).await;
        return Ok(());
    }
    eventually("the shell's child", stage.limits().start, || async {
        let stats = stage.provider.stats(stage.ctx(), StatsRequest { id: id.into() }).await;
        match stats {
            Ok(stats) if stats.stats.iter().any(|stats| stats.processes >= 2) => Ok(()),
            other => Err(format!("stats answer {other:?}")),
        }
    })
    .await
}

pub(super) async fn kill(stage: &Stage) -> Outcome {
    let id = stage.run(stage.request(ENDLESS)).await?;
    let kill = |signal: &str| {
        let request = KillContainerRequest { id: id.clone(), signal: signal.into() };
        stage.provider.kill(stage.ctx(), request)
    };
    fails("kill", ErrorKind::Invalid, kill("SIGNOSUCH").await)?;
    ok("kill", kill("SIGKILL").await)?;
    let status = stage.wait_for_exit(&id).await?;
    ensure(status.exit_code == 137, || format!("it is {status:?}"))?;
    ok("kill of an exited container", kill("9").await)?;
    stage.remove(&id).await
}

pub(super) async fn concurrent(stage: &Stage) -> Outcome {
    let runs = (0..5).map(|code| async move {
        let status = stage.run_to_end(stage.request(&format!("exit {code}"))).await?;
        ensure(status.exit_code == code, || format!("exit {code} became {status:?}"))?;
        stage.remove(&status.id).await
    });
    join_all(runs).await.into_iter().collect()
}

pub(super) async fn remove(stage: &Stage) -> Outcome {
    let id = stage.require_main().await?;
    stage.remove(&id).await?;
    let status = stage.provider.status(stage.ctx(), reference(&id)).await;
    fails("status", ErrorKind::NotFound, status)?;
    stage.remove(&id).await
}

/// Removes what earlier checks left; after that nothing may be there.
pub(super) async fn clean(stage: &Stage) -> Outcome {
    stage.remove_all().await?;
    let left = stage.list().await?;
    ensure(left.is_empty(), || format!("{left:?} are left"))
}

/// Longer than what stands still would have taken.
const STILL: std::time::Duration = std::time::Duration::from_secs(3);
const TRAP_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
