//! Promises about what a container leaves behind: its exit, its logs, its events.

use std::collections::BTreeMap;

use futures::StreamExt;
use infranetes_sdk::container::{
    ContainerEventsRequest, ContainerState, EnvVar, LogChunk, LogStream, LogsInput, LogsInputPart,
    LogsStart,
};
use infranetes_sdk::stream;

use super::stage::{ENDLESS, Stage};
use crate::check::{Outcome, Stop, ensure, ok, require};

pub(super) async fn process(stage: &Stage) -> Outcome {
    require_logs(stage).await?;
    let mut request = stage.request("echo \"$GREETING\"; pwd; id -u; id -g; hostname");
    request.hostname = "conformance-host".into();
    let process = request.process.get_or_insert_default();
    process.env.push(EnvVar { name: "GREETING".into(), value: b"hello  you".to_vec() });
    process.cwd = "/tmp".into();
    let security = request.security.get_or_insert_default();
    security.uid = Some(1234);
    security.gid = Some(5678);
    let status = stage.run_to_end(request).await?;
    let output = text(&stage.logs(&status.id, 0).await?, LogStream::Stdout);
    let expected = "hello  you\n/tmp\n1234\n5678\nconformance-host\n";
    ensure(output == expected, || format!("{output:?} instead of {expected:?}"))?;
    stage.remove(&status.id).await
}

pub(super) async fn exit(stage: &Stage) -> Outcome {
    for (code, reason) in [(0, "Completed"), (7, "Error")] {
        let status = stage.run_to_end(stage.request(&format!("exit {code}"))).await?;
        ensure(status.exit_code == code && status.reason == reason, || format!("{status:?}"))?;
        let in_order = status.created_unix_ns > 0
            && status.created_unix_ns <= status.started_unix_ns
            && status.started_unix_ns <= status.finished_unix_ns;
        ensure(in_order, || format!("{status:?}"))?;
        ensure(status.pid == 0, || format!("it still has process {}", status.pid))?;
        let again = stage.status(&status.id).await?;
        ensure(again == status, || format!("{status:?} became {again:?}"))?;
        stage.remove(&status.id).await?;
    }
    Ok(())
}

pub(super) async fn logs(stage: &Stage) -> Outcome {
    require_logs(stage).await?;
    let script = "i=0; while [ $i -lt 500 ]; do echo out-$i; echo err-$i >&2; i=$((i+1)); done; \
                  printf 'no newline'";
    let status = stage.run_to_end(stage.request(script)).await?;
    let chunks = stage.logs(&status.id, 0).await?;
    without_gaps(&chunks, 1)?;
    let out: String = (0..500).map(|line| format!("out-{line}\n")).collect();
    let err: String = (0..500).map(|line| format!("err-{line}\n")).collect();
    ensure(text(&chunks, LogStream::Stdout) == format!("{out}no newline"), || {
        "standard output is not what was written".into()
    })?;
    ensure(text(&chunks, LogStream::Stderr) == err, || {
        "standard error is not what was written".into()
    })?;
    let timed = chunks.iter().all(|chunk| chunk.timestamp_unix_ns > 0);
    ensure(timed, || "a chunk has no time".into())?;
    stage.remove(&status.id).await
}

pub(super) async fn logs_resume(stage: &Stage) -> Outcome {
    require_logs(stage).await?;
    // Pauses make several chunks.
    let script = "for i in 1 2 3 4 5; do echo $i; sleep 0.2 2>/dev/null || sleep 1; done";
    let id = stage.run(stage.request(script)).await?;
    let (first, rest) = {
        let first = read_some(stage, &id, 1).await?;
        let last = first.last().map_or(0, |chunk| chunk.sequence);
        (first, stage.logs(&id, last).await?)
    };
    without_gaps(&first, 1)?;
    without_gaps(&rest, first.len() as u64 + 1)?;
    let output = text(&first, LogStream::Stdout) + &text(&rest, LogStream::Stdout);
    ensure(output == "1\n2\n3\n4\n5\n", || format!("{output:?}"))?;
    stage.remove(&id).await
}

pub(super) async fn logs_follow(stage: &Stage) -> Outcome {
    require_logs(stage).await?;
    let id = stage.run(stage.request(&format!("echo begun; {ENDLESS}"))).await?;
    let chunks = read_some(stage, &id, 1).await?;
    let output = text(&chunks, LogStream::Stdout);
    ensure(output == "begun\n", || format!("{output:?}"))?;
    stage.remove(&id).await
}

pub(super) async fn events(stage: &Stage) -> Outcome {
    let before = stage.run(stage.request(ENDLESS)).await?;
    let opened = stage.provider.events(stage.ctx(), ContainerEventsRequest {}).await;
    let mut events = ok("events", opened)?;
    let after = stage.run(stage.request("exit 5")).await?;
    let mut seen: BTreeMap<String, Vec<(ContainerState, i32)>> = BTreeMap::new();
    stage
        .patiently("events of both containers", async {
            loop {
                let Some(event) = events.next().await else {
                    return Err(Stop::Broken(format!("the events ended after {seen:?}")));
                };
                let status = ok("events", event)?.status.unwrap_or_default();
                seen.entry(status.id.clone()).or_default().push((status.state(), status.exit_code));
                let has = |id: &str, state| seen.get(id).is_some_and(|seen| seen.contains(&state));
                if has(&before, (ContainerState::Running, 0))
                    && has(&after, (ContainerState::Exited, 5))
                {
                    return Ok(());
                }
            }
        })
        .await?;
    stage.remove(&before).await?;
    stage.remove(&after).await
}

async fn require_logs(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.logs, "describe denies logs")
}

/// The first chunks, and then a cut, as when the connection breaks. Nothing is acknowledged.
async fn read_some(stage: &Stage, id: &str, count: usize) -> Outcome<Vec<LogChunk>> {
    let (sender, input) = stream::channel(4);
    let start = LogsInputPart::Start(LogsStart { id: id.into(), after: 0 });
    // Fits into the queue, whoever reads.
    let _ = sender.send(Ok(LogsInput { input: Some(start) })).await;
    let opened = ok("logs", stage.provider.logs(stage.ctx(), input).await)?;
    let read = async { Ok(opened.take(count).collect::<Vec<_>>().await) };
    let chunks = stage.patiently("the first chunk", read).await?;
    chunks.into_iter().map(|chunk| ok("logs", chunk)).collect()
}

fn without_gaps(chunks: &[LogChunk], first: u64) -> Outcome {
    let numbers: Vec<u64> = chunks.iter().map(|chunk| chunk.sequence).collect();
    let expected: Vec<u64> = (first..).take(chunks.len()).collect();
    ensure(numbers == expected, || format!("the numbers are {numbers:?}"))
}

fn text(chunks: &[LogChunk], stream: LogStream) -> String {
    let of_stream = chunks.iter().filter(|chunk| chunk.stream() == stream);
    let bytes: Vec<u8> = of_stream.flat_map(|chunk| chunk.data.iter().copied()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
