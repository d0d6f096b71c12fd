//! Lists and status while a side holds many pods that run, and the memory that this takes.

use anyhow::{Context, Result};
use futures::StreamExt;
use serde::Serialize;

use super::Side;
use super::calls::{Samples, pod, reads};
use crate::client::container;
use crate::footprint::{processes_with, resident_bytes};

/// Resident memory in MiB.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Memory {
    /// The daemon.
    pub(super) daemon: f64,
    /// With all that it needs beside the pods' own programs: shims there, agents here. Shared pages count for each.
    pub(super) all: f64,
}

/// Makes the pods, asks, and removes them.
pub(super) async fn hold(side: &mut Side, count: u16) -> Result<(Samples, Memory)> {
    let made: Vec<Result<(String, String)>> = futures::stream::iter(0..count)
        .map(|number| make(side, number))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let made: Vec<_> = made.into_iter().collect::<Result<_>>()?;
    let (sandbox, id) = made.first().context("no pods")?;
    let mut samples = Samples::default();
    let mut client = side.client.clone();
    for _ in 0..ROUNDS {
        reads(&mut client, side, sandbox, id, &mut samples).await?;
    }
    let memory = memory(side)?;
    let removed: Vec<Result<(), tonic::Status>> = futures::stream::iter(&made)
        .map(|(sandbox, _)| {
            let mut client = side.client.clone();
            async move { client.remove_pod(sandbox).await }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    removed.into_iter().collect::<Result<(), _>>()?;
    Ok((samples, memory))
}

async fn make(side: &Side, number: u16) -> Result<(String, String)> {
    let mut client = side.client.clone();
    let pod = pod(side, &format!("many-{number}"))?;
    let sandbox = client.run_pod(&pod).await?;
    let mut config = container("main", &side.image, &["sleep", "6000"]);
    config.labels = [("io.kubernetes.container.name".to_owned(), "main".to_owned())].into();
    let id = client.run_container(&sandbox, &pod, config).await?;
    Ok((sandbox, id))
}

fn memory(side: &Side) -> Result<Memory> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let daemon = resident_bytes(side.pid).context("the daemon's memory is not readable")?;
    let of_side = processes_with(&side.dir.display().to_string());
    let all: u64 = of_side.iter().filter_map(|(pid, _)| resident_bytes(*pid)).sum();
    Ok(Memory { daemon: mib(daemon), all: mib(all) })
}

const AT_ONCE: usize = 4;
const ROUNDS: usize = 10;
