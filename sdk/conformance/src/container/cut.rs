//! Promises about calls that are cut off: whatever they had done, the same call again comes to the same end.

use std::time::Duration;

use infranetes_sdk::ErrorKind;
use infranetes_sdk::container::{
    AttachInput, AttachInputPart, ContainerState, CreateContainerRequest, StopContainerRequest,
};
use infranetes_sdk::stream;
use tokio::time::timeout;

use super::stage::{ENDLESS, Stage, reference};
use crate::check::{DEADLINE_GRACE, Outcome, ensure, fails, honest, ok};

pub(super) async fn cancelled_create(stage: &Stage) -> Outcome {
    for patience in PATIENCE {
        let request = stage.request(ENDLESS);
        let create = stage.provider.create(stage.ctx(), request.clone());
        // The answer, if it came, is thrown away, as a lost one would be.
        let _ = timeout(patience, create).await;
        comes_to_the_same_end(stage, request).await?;
    }
    Ok(())
}

pub(super) async fn late_create(stage: &Stage) -> Outcome {
    for patience in PATIENCE {
        let request = stage.request(ENDLESS);
        let context = stage.ctx().with_timeout(patience);
        let create = stage.provider.create(context, request.clone());
        // A linked provider may leave its deadline to the caller, which then drops the call.
        if let Ok(Err(error)) = timeout(patience + DEADLINE_GRACE, create).await {
            ensure(error.kind == ErrorKind::DeadlineExceeded, || {
                format!("past the deadline create answered {error:?}")
            })?;
        }
        comes_to_the_same_end(stage, request).await?;
    }
    Ok(())
}

/// A container that may or may not be there: asking for it once more makes it, it runs, and it can be removed.
async fn comes_to_the_same_end(stage: &Stage, request: CreateContainerRequest) -> Outcome {
    let id = stage.run(request).await?;
    let state = stage.status(&id).await?.state();
    ensure(state == ContainerState::Running, || format!("it is {state:?}"))?;
    stage.remove(&id).await?;
    let status = stage.provider.status(stage.ctx(), reference(&id)).await;
    fails("status", ErrorKind::NotFound, status)
}

pub(super) async fn cancelled_start(stage: &Stage) -> Outcome {
    for patience in PATIENCE {
        let request = stage.request(ENDLESS);
        let id = request.id.clone();
        ok("create", stage.provider.create(stage.ctx(), request).await)?;
        let _ = timeout(patience, stage.provider.start(stage.ctx(), reference(&id))).await;
        ok("start again", stage.provider.start(stage.ctx(), reference(&id)).await)?;
        let status = stage.status(&id).await?;
        let runs = status.state() == ContainerState::Running && status.pid > 0;
        ensure(runs, || format!("it is {status:?}"))?;
        stage.remove(&id).await?;
    }
    Ok(())
}

pub(super) async fn cancelled_stop(stage: &Stage) -> Outcome {
    let script = "trap '' TERM; while true; do sleep 1 & wait $!; done";
    let id = stage.run(stage.request(script)).await?;
    let stop = |grace_ms| StopContainerRequest { id: id.clone(), grace_ms, ..Default::default() };
    let patient = stage.provider.stop(stage.ctx(), stop(60_000));
    let _ = timeout(Duration::from_millis(300), patient).await;
    // The second caller's grace counts for the second caller.
    let hurried = stage.provider.stop(stage.ctx(), stop(100));
    ok("stop again", hurried.await)?;
    let status = stage.status(&id).await?;
    ensure(status.state() == ContainerState::Exited, || format!("it is {status:?}"))?;
    stage.remove(&id).await
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

/// How long callers wait before they go away.
const PATIENCE: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(40)];
