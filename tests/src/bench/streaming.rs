//! What hostile clients of the streaming server can take of the daemon's memory.
//!
//! A fifth of the clients each: read nothing of an endless output; stop in the middle of a request; send headers that are small
//! on the wire only; send input that nobody takes, whatever the windows are; open streams without end. Memory is that of the
//! daemon alone; what the kernel holds for its sockets has a bound of its own (`streaming/http.rs`).

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use infranetes_cri::streaming::spdy::Headers;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Output, Target};
use crate::case::{self, Case};
use crate::client::{Client, container};
use crate::footprint::resident_bytes;
use crate::streams::{self, Session, Wanted};

/// How to run it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many clients there are.
    #[arg(long, default_value_t = 200)]
    pub clients: usize,
    /// How long they go on, in seconds.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Where the figures go.
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Default, Serialize)]
struct Figures {
    clients: usize,
    idle_mib: f64,
    most_mib: f64,
    after_mib: f64,
    /// The slowest command of a client who does nothing wrong, in the same container, whose commands all begin one by one.
    slowest_exec_ms: f64,
}

/// Runs the benchmark.
pub async fn run(options: &Options) -> Result<()> {
    let mut figures = Figures { clients: options.clients, ..Figures::default() };
    case::run("process", async |case| measure(case, options, &mut figures).await).await?;
    let Figures { idle_mib, most_mib, after_mib, slowest_exec_ms, .. } = figures;
    println!("daemon: {idle_mib:.1} MiB idle, at most {most_mib:.1} MiB, {after_mib:.1} MiB after");
    let target = |name: &str, measured, at_most, unit| Target {
        name: name.to_owned(),
        measured,
        at_most,
        unit,
    };
    println!("the slowest command of another client in the pod took {slowest_exec_ms:.0} ms");
    let most = GROWTH_MIB * options.clients as f64;
    let targets = [
        target("growth while it lasts", most_mib - idle_mib, most, "MiB"),
        target("growth that stays", after_mib - idle_mib, most, "MiB"),
    ];
    options.output.conclude("streaming", &targets, &figures)
}

async fn measure(case: &mut Case, options: &Options, figures: &mut Figures) -> Result<()> {
    let mut client = case.client();
    client.pull(&case.image).await?;
    let pod = case.pod("hostile");
    let sandbox = client.run_pod(&pod).await?;
    let sleeper = container("sleeper", &case.image, &["sleep", "6000"]);
    let id = client.run_container(&sandbox, &pod, sleeper).await?;
    client.exec(&id, &["true"]).await?;
    let pid = case.daemon.pid().context("the daemon has ended")?;
    let mib = || {
        let bytes = resident_bytes(pid).context("the daemon's memory is not readable")?;
        Ok::<_, anyhow::Error>(bytes as f64 / f64::from(1 << 20))
    };
    figures.idle_mib = mib()?;
    let bomb = Bytes::from(header_bomb()?);
    let mut hostile = JoinSet::new();
    for number in 0..options.clients {
        let (client, sandbox, id) = (client.clone(), sandbox.clone(), id.clone());
        let bomb = bomb.clone();
        hostile.spawn(async move { harm(number, client, &sandbox, &id, &bomb).await });
    }
    let until = Instant::now() + Duration::from_secs(options.seconds);
    while Instant::now() < until {
        let begun = Instant::now();
        let said = timeout(LIMIT, client.exec(&id, &["echo", "here"])).await??;
        ensure!(said.stdout == b"here\n", "another client is disturbed: {said:?}");
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        figures.slowest_exec_ms = figures.slowest_exec_ms.max(took);
        figures.most_mib = figures.most_mib.max(mib()?);
        sleep(SAMPLE).await;
    }
    hostile.shutdown().await;
    timeout(LIMIT, client.exec(&id, &["true"])).await??;
    figures.after_mib = mib()?;
    Ok(())
}

/// Does harm until it is cut off or told to stop, and begins anew where that is cheap.
async fn harm(
    number: usize,
    mut client: Client,
    sandbox: &str,
    id: &str,
    bomb: &[u8],
) -> Result<()> {
    match number % 5 {
        0 => {
            let link = client.exec_link(id, &["yes"], Wanted::OUTPUT).await?;
            let _stuck = Session::open(&link, Wanted::OUTPUT).await?;
            std::future::pending().await
        }
        1 => loop {
            let link = client.exec_link(id, &["true"], Wanted::OUTPUT).await?;
            let mut stream = TcpStream::connect(streams::host_of(&link)?).await?;
            stream.write_all(b"POST /exec HTTP/1.1\r\nHost: x\r\nX-").await?;
            // It is cut off; writing finds out.
            while stream.write_all(b"x").await.is_ok() {
                sleep(SAMPLE).await;
            }
        },
        2 => loop {
            let link = client.port_forward_link(sandbox, &[]).await?;
            let headers = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n";
            let (mut stream, _) = streams::request(&link, "POST", headers).await?;
            while stream.write_all(bomb).await.is_ok() {
                sleep(SAMPLE).await;
            }
        },
        3 => {
            let wanted = Wanted { stdin: true, ..Wanted::OUTPUT };
            let link = client.exec_link(id, &["sleep", "6000"], wanted).await?;
            let mut session = Session::open(&link, wanted).await?;
            let mut stdin = session.take_stdin().context("wanted")?;
            while stdin.send(Bytes::from_static(&[0; 32 << 10])).await.is_ok() {}
            std::future::pending().await
        }
        _ => {
            let link = client.port_forward_link(sandbox, &[]).await?;
            let (connection, _) = streams::connect(&link, &["portforward.k8s.io"]).await?;
            let mut kept = Vec::new();
            for request in 0_u64.. {
                let request = request.to_string();
                let headers: Headers =
                    [("streamType", "data"), ("port", "7"), ("requestID", request.as_str())]
                        .into_iter()
                        .collect();
                match timeout(LIMIT, connection.open(headers)).await? {
                    Ok(stream) => kept.push(stream),
                    // Refused: there are enough.
                    Err(_) => sleep(SAMPLE / 10).await,
                }
            }
            Ok(())
        }
    }
}

/// A SYN_STREAM whose headers are a few KiB on the wire and many MiB unpacked.
fn header_bomb() -> Result<Vec<u8>> {
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&1_u32.to_be_bytes())?;
    packed.write_all(&(8_u32 << 20).to_be_bytes())?;
    packed.write_all(&vec![b'x'; 8 << 20])?;
    let packed = packed.finish()?;
    let mut frame = vec![0x80, 3, 0, 1];
    let length = u32::try_from(10 + packed.len())?;
    frame.extend_from_slice(&length.to_be_bytes());
    // Stream 1, which belongs to none, of no priority.
    frame.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&packed);
    Ok(frame)
}

const LIMIT: Duration = Duration::from_secs(60);
const SAMPLE: Duration = Duration::from_millis(200);
/// For each client: the windows of a session and of a connection, what is on its way between them, and the compressor.
const GROWTH_MIB: f64 = 1.5;
