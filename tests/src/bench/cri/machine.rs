//! The log of a container in a virtual machine, and beside it what that machine can do at all.
//!
//! On an emulated CPU a program that writes, a pipe and a plain connection have ends of their own. They are measured in the same machine,
//! with the same data: what is left between them and the log is ours.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::Side;
use super::calls::pod;
use super::flow::{self, lines_of};
use crate::client::{Client, container};

/// MB a second in one machine.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Rates {
    /// Of a log, from the container's start until all of it is in the node's file.
    pub(super) log: f64,
    /// Of a log whose program writes every line by itself.
    log_line_by_line: f64,
    /// Of a command's output over a link.
    link: f64,
    /// What writes the log, into a pipe from which another process of the container reads.
    pipe: f64,
    /// The same, into a plain connection to the node: no encryption, nobody who keeps anything.
    plain_connection: f64,
    /// A program that writes every line by itself, into such a pipe.
    pipe_line_by_line: f64,
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "virtual machine: log {:.1} MB/s, link {:.1}, a pipe in it {:.1}, a plain connection {:.1}; \
             line by line: log {:.1} MB/s, pipe {:.1}",
            self.log,
            self.link,
            self.pipe,
            self.plain_connection,
            self.log_line_by_line,
            self.pipe_line_by_line,
        )
    }
}

/// Measures a machine of its own.
pub(super) async fn measure(side: &mut Side, megabytes: u16) -> Result<Rates> {
    let mut client = side.client.clone();
    client.pull(&side.image).await?;
    let mut rates = Rates::default();
    for _ in 0..TURNS {
        ceilings(side, &mut client, megabytes, &mut rates).await?;
        let log = flow::log(side, megabytes).await?;
        rates.log = rates.log.max(log);
        let log = flow::log_line_by_line(side, LINES).await?;
        rates.log_line_by_line = rates.log_line_by_line.max(log);
        rates.link = rates.link.max(flow::stream(side, megabytes).await?);
    }
    Ok(rates)
}

async fn ceilings(
    side: &Side,
    client: &mut Client,
    megabytes: u16,
    rates: &mut Rates,
) -> Result<()> {
    let pod = pod(side, "ceilings")?;
    let sandbox = client.run_pod(&pod).await?;
    let sleeper = container("main", &side.image, &["sleep", "600"]);
    let id = client.run_container(&sandbox, &pod, sleeper).await?;
    let write = flow::writer(megabytes);
    let bytes = u64::from(megabytes) * 1_000_000;

    let into_pipe = format!("({write}) | cat > /dev/null");
    let took = time(client, &id, &["sh", "-c", &into_pipe]).await?;
    rates.pipe = rates.pipe.max(rate(bytes, took));
    let into_pipe = format!("({}) | cat > /dev/null", lines_of(LINES));
    let took = time(client, &id, &["sh", "-c", &into_pipe]).await?;
    rates.pipe_line_by_line = rates.pipe_line_by_line.max(rate(flow::bytes_of(LINES), took));

    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let port = port.to_string();
    let connect = ["nc", NODE, &port, "-e", "sh", "-c", &write];
    let (took, _) = tokio::try_join!(received(&listener, bytes), time(client, &id, &connect))?;
    rates.plain_connection = rates.plain_connection.max(rate(bytes, took));
    client.remove_pod(&sandbox).await?;
    Ok(())
}

/// How long a command takes in a container.
async fn time(client: &mut Client, id: &str, command: &[&str]) -> Result<Duration> {
    let started = Instant::now();
    let result = client.exec(id, command).await?;
    let took = started.elapsed();
    let said = String::from_utf8_lossy(&result.stderr).into_owned();
    ensure!(result.exit_code == 0, "{command:?} ended with {}: {said}", result.exit_code);
    Ok(took)
}

/// From a connection's first byte to its last.
async fn received(listener: &TcpListener, expected: u64) -> Result<Duration> {
    let (mut stream, _) = timeout(LIMIT, listener.accept()).await.context("nobody connects")??;
    let mut buffer = vec![0; 256 * 1024];
    let (mut bytes, mut started) = (0, None);
    while bytes < expected {
        let count = timeout(LIMIT, stream.read(&mut buffer)).await.context("it stands")??;
        ensure!(count > 0, "{bytes} of {expected} bytes came");
        started.get_or_insert_with(Instant::now);
        bytes += count as u64;
    }
    Ok(started.map(|started| started.elapsed()).unwrap_or_default())
}

fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / 1_000_000.0 / took.as_secs_f64()
}

/// The node, as QEMU's user-mode network has it.
const NODE: &str = "10.0.2.2";
/// That a program writes one by one.
const LINES: u32 = 20_000;
/// The best of these: what else this machine does only slows.
const TURNS: usize = 2;
const LIMIT: Duration = Duration::from_secs(120);
