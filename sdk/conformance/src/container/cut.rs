//! Promises about calls that are cut off, by their caller or their deadline: whatever they had done, the same call again comes to
//! the same end.

use std::time::Duration;

use infranetes_sdk::container::{
    AttachInput, AttachInputPart, ContainerState, CreateContainerRequest, KillContainerRequest,
    ListContainersRequest, ListImagesRequest, MissingRequest, Resources, StatsRequest,
    StopContainerRequest, UpdateContainerRequest, UsageRequest,
};
use infranetes_sdk::{ErrorKind, stream};

use super::stage::{ENDLESS, Stage, reference};
use crate::check::{Outcome, ensure, fails, honest, ok};
use crate::cut::{Cut, late};

pub(super) async fn cancelled_create(stage: &Stage) -> Outcome {
    create(stage, Cut::Cancelled).await
}

pub(super) async fn late_create(stage: &Stage) -> Outcome {
    create(stage, Cut::Late).await
}

/// A container that may or may not be there: asking for it once more makes it, it runs, and it can be removed.
async fn create(stage: &Stage, cut: Cut) -> Outcome {
    for patience in PATIENCE {
        let request = stage.request(ENDLESS);
        let create = |context| stage.provider.create(context, request.clone());
        cut.off("create", stage.limits(), patience, create).await?;
        let id = stage.run(request).await?;
        let state = stage.status(&id).await?.state();
        ensure(state == ContainerState::Running, || format!("it is {state:?}"))?;
        gone(stage, &id).await?;
    }
    Ok(())
}

pub(super) async fn cancelled_start(stage: &Stage) -> Outcome {
    start(stage, Cut::Cancelled).await
}

pub(super) async fn late_start(stage: &Stage) -> Outcome {
    start(stage, Cut::Late).await
}

async fn start(stage: &Stage, cut: Cut) -> Outcome {
    for patience in PATIENCE {
        let request: CreateContainerRequest = stage.request(ENDLESS);
        let id = request.id.clone();
        ok("create", stage.provider.create(stage.ctx(), request).await)?;
        let start = |context| stage.provider.start(context, reference(&id));
        cut.off("start", stage.limits(), patience, start).await?;
        ok("start again", stage.provider.start(stage.ctx(), reference(&id)).await)?;
        let status = stage.status(&id).await?;
        let runs = status.state() == ContainerState::Running && status.pid > 0;
        ensure(runs, || format!("it is {status:?}"))?;
        stage.remove(&id).await?;
    }
    Ok(())
}

pub(super) async fn cancelled_stop(stage: &Stage) -> Outcome {
    stop(stage, Cut::Cancelled).await
}

pub(super) async fn late_stop(stage: &Stage) -> Outcome {
    stop(stage, Cut::Late).await
}

async fn stop(stage: &Stage, cut: Cut) -> Outcome {
    let script = "trap '' TERM; while true; do sleep 1 & wait $!; done";
    let id = stage.run(stage.request(script)).await?;
    let stop = |grace_ms| StopContainerRequest { id: id.clone(), grace_ms, ..Default::default() };
    let patient = |context| stage.provider.stop(context, stop(60_000));
    cut.off("stop", stage.limits(), Duration::from_millis(300), patient).await?;
    // The second caller's grace counts for the second caller.
    let hurried = stage.provider.stop(stage.ctx(), stop(100));
    ok("stop again", hurried.await)?;
    let status = stage.status(&id).await?;
    ensure(status.state() == ContainerState::Exited, || format!("it is {status:?}"))?;
    stage.remove(&id).await
}

pub(super) async fn cancelled_remove(stage: &Stage) -> Outcome {
    remove(stage, Cut::Cancelled).await
}

pub(super) async fn late_remove(stage: &Stage) -> Outcome {
    remove(stage, Cut::Late).await
}

async fn remove(stage: &Stage, cut: Cut) -> Outcome {
    for patience in PATIENCE {
        let id = stage.run(stage.request(ENDLESS)).await?;
        let remove = |context| stage.provider.remove(context, reference(&id));
        cut.off("remove", stage.limits(), patience, remove).await?;
        gone(stage, &id).await?;
    }
    Ok(())
}

/// What tells or changes little has a deadline, too, and does no harm by passing it.
pub(super) async fn late_questions(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?;
    let id = stage.require_main().await?;
    let image = Some(stage.subject.image.clone());
    let resources = Some(Resources { pids_limit: 200, ..Resources::default() });
    let signal = "SIGCONT".into();
    let missing = MissingRequest { image };
    let kill = KillContainerRequest { id: id.clone(), signal };
    let update = UpdateContainerRequest { id: id.clone(), resources };
    for patience in PATIENCE {
        late! { stage, patience;
            able.import => missing(missing.clone());
            able.own_root => list_images(ListImagesRequest {});
            able.own_root => usage(UsageRequest {});
            true => status(reference(&id));
            true => list(ListContainersRequest {});
            able.stats => stats(StatsRequest { id: id.clone() });
            able.update => update(update.clone());
            true => kill(kill.clone());
            able.pause => pause(reference(&id));
            able.pause => resume(reference(&id));
        }
        if able.pause {
            // Whatever became of those.
            ok("resume", stage.provider.resume(stage.ctx(), reference(&id)).await)?;
        }
    }
    stage.require_main().await.map(drop)
}

/// Whether `attach` does what `describe` says of it.
pub(super) async fn attach_is_honest(stage: &Stage) -> Outcome {
    let able = stage.capabilities().await?.attach;
    let id = stage.require_main().await?;
    let (sender, input) = stream::channel(1);
    let start = Some(AttachInputPart::Start(reference(&id)));
    // Fits into the queue, whoever reads.
    let _ = sender.send(Ok(AttachInput { input: start })).await;
    let opened = stage.provider.attach(stage.ctx(), input).await;
    honest("attach", able, opened.map(drop))
}

/// It can be removed, whatever was before, and then it is not there.
async fn gone(stage: &Stage, id: &str) -> Outcome {
    stage.remove(id).await?;
    let status = stage.provider.status(stage.ctx(), reference(id)).await;
    fails("status", ErrorKind::NotFound, status)
}

/// How long callers wait before they go away.
const PATIENCE: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(40)];
