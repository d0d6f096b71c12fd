//! Output in bulk: of a container into its log, of a command to who asked for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use infranetes_cri::api::v1 as cri;

use super::Side;
use super::calls::pod;
use crate::client::container;
use crate::streams::{Session, Wanted};
use crate::wait::until;

/// MB a second, from the container's start until all of it is in the file.
pub(super) async fn log(side: &mut Side, megabytes: u16) -> Result<f64> {
    let bytes = u64::from(megabytes) * 1_000_000;
    written(side, &writer(megabytes), bytes).await
}

/// As [`log`], of a program that writes each of so many lines by itself.
pub(super) async fn log_line_by_line(side: &mut Side, lines: u32) -> Result<f64> {
    written(side, &lines_of(lines), bytes_of(lines)).await
}

/// MB a second of what a command writes.
async fn written(side: &mut Side, command: &str, bytes: u64) -> Result<f64> {
    let mut client = side.client.clone();
    let pod = pod(side, "log")?;
    let sandbox = client.run_pod(&pod).await?;
    let config = container("writer", &side.image, &["sh", "-c", command]);
    let id = client.create_container(&sandbox, &pod, config).await?;
    let started = Instant::now();
    let request = cri::StartContainerRequest { container_id: id.clone() };
    client.runtime.start_container(request).await?;
    let path = std::path::Path::new(&pod.log_directory).join("writer.log");
    let lines = bytes / LINE_BYTES as u64;
    // Each line has a time, a stream and a tag before it: at least this.
    let least = bytes + lines * "2026-01-01T00:00:00Z stdout F ".len() as u64;
    let (mut last, mut still) = (0, Instant::now());
    until(LOG_LIMIT, "the whole log is written", async || {
        let length = std::fs::metadata(&path).map_or(0, |file| file.len());
        if length != last {
            (last, still) = (length, Instant::now());
        }
        Ok(length >= least && still.elapsed() > SETTLED)
    })
    .await?;
    let took = still.duration_since(started);
    client.wait_container(&id, cri::ContainerState::ContainerExited, LOG_LIMIT).await?;
    client.remove_pod(&sandbox).await?;
    std::fs::remove_file(&path)?;
    Ok(bytes as f64 / 1_000_000.0 / took.as_secs_f64())
}

/// MB a second of a command's standard output over a link, as `kubectl exec` reads it.
pub(super) async fn stream(side: &mut Side, megabytes: u16) -> Result<f64> {
    let mut client = side.client.clone();
    let pod = pod(side, "stream")?;
    let sandbox = client.run_pod(&pod).await?;
    let config = container("main", &side.image, &["sleep", "600"]);
    let id = client.run_container(&sandbox, &pod, config).await?;
    let (command, expected) = (writer(megabytes), u64::from(megabytes) * 1_000_000);
    let wanted = Wanted { stderr: false, ..Wanted::OUTPUT };
    let url = client.exec_link(&id, &["sh", "-c", &command], wanted).await?;
    let started = Instant::now();
    let mut session = Session::open(&url, wanted).await?;
    let mut stdout = session.stdout.take().context("standard output was asked for")?;
    let mut bytes = 0;
    while let Some(piece) = tokio::time::timeout(LOG_LIMIT, stdout.next()).await?? {
        bytes += piece.len() as u64;
    }
    let took = started.elapsed();
    ensure!(bytes == expected, "{bytes} bytes came");
    drop(session);
    client.remove_pod(&sandbox).await?;
    Ok(bytes as f64 / 1_000_000.0 / took.as_secs_f64())
}

/// A command that writes so much, in lines, as fast as it is read. What makes lines one by one (`yes`) comes to 15 MB a second
/// on an emulated CPU, so the lines are made once and written again and again.
pub(super) fn writer(megabytes: u16) -> String {
    let line = "x".repeat(LINE_BYTES - 1);
    format!(
        "yes {line} | head -c 1000000 > /tmp/lines; \
         while [ $# -lt {megabytes} ]; do set -- \"$@\" /tmp/lines; done; cat \"$@\""
    )
}

/// A command that writes so many lines, each by itself.
pub(super) fn lines_of(lines: u32) -> String {
    let line = "x".repeat(LINE_BYTES - 1);
    format!("i=0; while [ $i -lt {lines} ]; do echo {line}; i=$((i+1)); done")
}

/// The length of that.
pub(super) fn bytes_of(lines: u32) -> u64 {
    u64::from(lines) * LINE_BYTES as u64
}

/// MB a second of ExecSync.
pub(super) async fn exec(side: &mut Side) -> Result<f64> {
    let mut client = side.client.clone();
    let pod = pod(side, "exec")?;
    let sandbox = client.run_pod(&pod).await?;
    let config = container("main", &side.image, &["sleep", "600"]);
    let id = client.run_container(&sandbox, &pod, config).await?;
    let command = writer(EXEC_MB);
    let started = Instant::now();
    for _ in 0..EXECS {
        let result = client.exec(&id, &["sh", "-c", &command]).await?;
        ensure!(result.stdout.len() == EXEC_BYTES, "{} bytes came", result.stdout.len());
    }
    let took = started.elapsed();
    client.remove_pod(&sandbox).await?;
    Ok((EXECS * EXEC_BYTES) as f64 / 1_000_000.0 / took.as_secs_f64())
}

/// Of one line, its end included.
const LINE_BYTES: usize = 100;
/// Below what one answer of CRI may have.
const EXEC_MB: u16 = 8;
const EXEC_BYTES: usize = EXEC_MB as usize * 1_000_000;
const EXECS: usize = 3;
const LOG_LIMIT: Duration = Duration::from_secs(300);
/// A file that does not grow for so long is complete.
const SETTLED: Duration = Duration::from_millis(700);
