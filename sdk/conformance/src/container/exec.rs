//! Promises about programs that run in a running container.

use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use infranetes_sdk::container::{
    ExecInput, ExecInputPart, ExecOutputPart, ExecStart, StatsRequest,
};
use infranetes_sdk::{ErrorKind, stream};

use super::stage::Stage;
use crate::check::{Outcome, Stop, ensure, eventually, fails, ok, require};
use crate::cut::Cut;

/// What a program did.
#[derive(Debug, Default)]
struct Ran {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    code: Option<i32>,
    timed_out: bool,
}

pub(super) async fn exit_codes(stage: &Stage) -> Outcome {
    for code in [0, 1, 7, 255] {
        let ran = run(stage, &format!("exit {code}"), None).await?;
        ensure(ran.code == Some(code), || format!("exit {code} became {ran:?}"))?;
    }
    Ok(())
}

pub(super) async fn streams(stage: &Stage) -> Outcome {
    let ran = run(stage, "printf out; printf err >&2; exit 3", None).await?;
    let apart = ran.stdout == b"out" && ran.stderr == b"err" && ran.code == Some(3);
    ensure(apart, || format!("{ran:?}"))?;
    let lines = "i=0; while [ $i -lt 2000 ]; do echo line-$i; i=$((i+1)); done";
    let ran = run(stage, lines, None).await?;
    let expected: String = (0..2000).map(|line| format!("line-{line}\n")).collect();
    ensure(ran.stdout == expected.as_bytes(), || {
        format!("{} bytes of {} came", ran.stdout.len(), expected.len())
    })
}

pub(super) async fn stdin(stage: &Stage) -> Outcome {
    let input: Vec<u8> = (0..200_000_u32).map(|byte| (byte % 251) as u8).collect();
    let ran = run(stage, "cat", Some(&input)).await?;
    ensure(ran.stdout == input && ran.code == Some(0), || {
        format!("{} bytes of {} came back, code {:?}", ran.stdout.len(), input.len(), ran.code)
    })
}

pub(super) async fn unknown_program(stage: &Stage) -> Outcome {
    let id = require_exec(stage).await?;
    let start = ExecStart {
        container_id: id,
        args: vec!["/no/such/program".into()],
        ..ExecStart::default()
    };
    let ran = exec(stage, start, None).await?;
    ensure(ran.code == Some(127), || format!("{ran:?}"))
}

pub(super) async fn timeout(stage: &Stage) -> Outcome {
    let id = require_exec(stage).await?;
    let start = ExecStart {
        container_id: id,
        args: stage.shell("sleep 100 & echo begun; wait"),
        timeout_ms: 500,
        ..ExecStart::default()
    };
    let ran = exec(stage, start, None).await?;
    let killed = ran.timed_out && ran.code.is_some_and(|code| code != 0);
    ensure(killed && ran.stdout == b"begun\n", || format!("{ran:?}"))
}

pub(super) async fn dropped(stage: &Stage) -> Outcome {
    let id = require_exec(stage).await?;
    let start = ExecStart {
        container_id: id,
        args: stage.shell("echo $$; exec sleep 1000"),
        ..ExecStart::default()
    };
    let (_stdin, input) = open_input(start).await;
    let mut output = ok("exec", stage.provider.exec(stage.ctx(), input).await)?;
    let first = stage.patiently("the first output", async { Ok(output.next().await) }).await?;
    let Some(Ok(first)) = first else {
        return Err(Stop::Broken(format!("the output began with {first:?}")));
    };
    let Some(ExecOutputPart::Stdout(pid)) = first.output else {
        return Err(Stop::Broken(format!("the output began with {first:?}")));
    };
    let pid = String::from_utf8_lossy(&pid).trim().to_owned();
    drop(output);
    eventually("the end of the program", stage.limits().settle, || async {
        match run(stage, &format!("kill -0 {pid}"), None).await {
            Ok(ran) if ran.code != Some(0) => Ok(()),
            other => Err(format!("kill -0 {pid} answers {other:?}")),
        }
    })
    .await
}

/// The deadline bounds the opening. What was opened before is dropped, which kills its program.
pub(super) async fn late(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.stats, "describe denies stats, which count processes")?;
    let id = require_exec(stage).await?;
    let before = processes(stage, &id).await?;
    for patience in [0, 1, 5, 40] {
        let start = ExecStart {
            container_id: id.clone(),
            args: stage.shell("echo $$; exec sleep 1000"),
            ..ExecStart::default()
        };
        let (_stdin, input) = open_input(start).await;
        let exec = |context| stage.provider.exec(context, input);
        let patience = Duration::from_millis(patience);
        Cut::Late.off("exec", stage.limits(), patience, exec).await?;
    }
    eventually("the end of the programs", stage.limits().settle, || async {
        match processes(stage, &id).await {
            Ok(now) if now <= before => Ok(()),
            other => Err(format!("{before} processes were there, now {other:?}")),
        }
    })
    .await
}

async fn processes(stage: &Stage, id: &str) -> Outcome<u64> {
    let request = StatsRequest { id: id.to_owned() };
    let stats = ok("stats", stage.provider.stats(stage.ctx(), request).await)?.stats;
    Ok(stats.iter().map(|stats| stats.processes).sum())
}

pub(super) async fn concurrent(stage: &Stage) -> Outcome {
    let started = tokio::time::Instant::now();
    let runs = (0..10).map(|code| async move {
        let ran = run(stage, &format!("sleep 1; exit {code}"), None).await?;
        ensure(ran.code == Some(code), || format!("exit {code} became {ran:?}"))
    });
    join_all(runs).await.into_iter().collect::<Outcome>()?;
    let took = started.elapsed();
    ensure(took < Duration::from_secs(8), || format!("ten sleeps of one second took {took:?}"))
}

pub(super) async fn exited(stage: &Stage) -> Outcome {
    require(stage.capabilities().await?.exec, "describe denies exec")?;
    let status = stage.run_to_end(stage.request("exit 0")).await?;
    let start = ExecStart {
        container_id: status.id.clone(),
        args: stage.shell("exit 0"),
        ..ExecStart::default()
    };
    let (_stdin, input) = open_input(start).await;
    // The refusal may be the answer to opening, or the first item.
    let result = match stage.provider.exec(stage.ctx(), input).await {
        Err(error) => Err(error),
        Ok(mut output) => output.next().await.unwrap_or_else(|| Ok(Default::default())),
    };
    fails("exec", ErrorKind::Conflict, result)?;
    stage.remove(&status.id).await
}

async fn require_exec(stage: &Stage) -> Outcome<String> {
    require(stage.capabilities().await?.exec, "describe denies exec")?;
    stage.require_main().await
}

/// Runs a script in the main container.
async fn run(stage: &Stage, script: &str, stdin: Option<&[u8]>) -> Outcome<Ran> {
    let id = require_exec(stage).await?;
    let start = ExecStart {
        container_id: id,
        args: stage.shell(script),
        stdin: stdin.is_some(),
        ..ExecStart::default()
    };
    exec(stage, start, stdin).await
}

type Input = tokio::sync::mpsc::Sender<infranetes_sdk::Result<ExecInput>>;

async fn open_input(start: ExecStart) -> (Input, infranetes_sdk::BoxStream<ExecInput>) {
    let (sender, input) = stream::channel(4);
    // Fits into the queue, whoever reads.
    let _ = sender.send(Ok(ExecInput { input: Some(ExecInputPart::Start(start)) })).await;
    (sender, input)
}

async fn exec(stage: &Stage, start: ExecStart, stdin: Option<&[u8]>) -> Outcome<Ran> {
    let (sender, input) = open_input(start).await;
    let mut output = ok("exec", stage.provider.exec(stage.ctx(), input).await)?;
    let feed = async {
        let chunks = stdin.unwrap_or_default().chunks(16 << 10);
        let parts = chunks.map(|chunk| ExecInputPart::Stdin(chunk.to_vec()));
        for part in parts.chain(stdin.map(|_| ExecInputPart::StdinClosed(true))) {
            if sender.send(Ok(ExecInput { input: Some(part) })).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let mut ran = Ran::default();
        while let Some(item) = output.next().await {
            ensure(ran.code.is_none(), || "something came after the exit".into())?;
            match ok("exec", item)?.output {
                Some(ExecOutputPart::Stdout(data)) => ran.stdout.extend(data),
                Some(ExecOutputPart::Stderr(data)) => ran.stderr.extend(data),
                Some(ExecOutputPart::Exit(exit)) => {
                    ran.code = Some(exit.code);
                    ran.timed_out = exit.timed_out;
                }
                None => {}
            }
        }
        ensure(ran.code.is_some(), || format!("the output ended without an exit: {ran:?}"))?;
        Ok(ran)
    };
    stage.patiently("the end of the program", async { futures::join!(feed, read).1 }).await
}
