//! A provider that misbehaves on demand, for the loader's tests: the id of a request says how.

use std::time::Duration;

use infranetes_sdk::container::{ExecExit, ExecInput, ExecInputPart, ExecOutput, ExecOutputPart};
use infranetes_sdk::pod::{
    ConsoleChunk, ConsoleRequest, GetRequest, ListRequest, ListResponse, Machine,
};
use infranetes_sdk::volume::{Volume, VolumeRef};
use infranetes_sdk::{
    BoxStream, CallContext, ContainerProvider, Host, LogLevel, Plugin, PodProvider, ProviderError,
    Providers, Result, RetryAdvice, StreamExt, VolumeProvider, async_trait, export_provider,
    stream,
};
use serde::Deserialize;

/// How starting goes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    start: String,
    #[serde(default)]
    secret: String,
    /// As long as there is such a file, starting ends the process.
    #[serde(default)]
    crash_while: std::path::PathBuf,
}

#[derive(Clone)]
struct Trouble {
    host: Host,
}

/// Tells the host that a destructor ran.
struct Witness(Host, &'static str);

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.metric(self.1, 1.0);
    }
}

/// Panics when it is dropped, after it told the host.
struct Bomb(Host);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.metric("bomb_dropped", 1.0);
        panic!("a destructor went wrong");
    }
}

/// Its destructor panics.
struct BadEnd(#[expect(dead_code, reason = "it is there to be dropped")] Bomb);

impl PodProvider for BadEnd {}

#[async_trait]
impl Plugin for Trouble {
    type Config = Config;

    async fn start(host: Host, config: Config) -> Result<Providers> {
        if config.crash_while.exists() {
            std::process::abort();
        }
        match config.start.as_str() {
            "crash" => std::process::abort(),
            "hang" => std::future::pending().await,
            "block" => block(Duration::from_secs(3)),
            "panic" => panic!("start went wrong"),
            "error" => {
                return Err(ProviderError::credentials("the cloud does not know us")
                    .with_source(std::io::Error::other("401"))
                    .with_provider_code("AuthFailure"));
            }
            "secret" => {
                let secret = host.secret(&config.secret).await?;
                if secret.expose_str()? == "12345" {
                    host.metric("secret_known", 1.0);
                }
            }
            "nothing" => return Ok(Providers::default()),
            "bad end" => return Ok(Providers::default().with_pods(BadEnd(Bomb(host)))),
            "wait" => {
                let _witness = Witness(host.clone(), "start_dropped");
                host.metric("start_waits", 1.0);
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        host.log(LogLevel::Info, "trouble starts");
        tracing::warn!(answer = 42, "from tracing");
        log::info!("from log");
        let this = Self { host };
        Ok(Providers::default()
            .with_pods(this.clone())
            .with_containers(this.clone())
            .with_volumes(this))
    }
}

#[async_trait]
impl PodProvider for Trouble {
    async fn get(&self, context: CallContext, request: GetRequest) -> Result<Machine> {
        match request.id.as_str() {
            "panic" => panic!("index out of range"),
            "sleep" => {
                let _witness = Witness(self.host.clone(), "get_dropped");
                self.host.metric("get_started", 1.0);
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            "nap" => tokio::time::sleep(Duration::from_millis(100)).await,
            "block" => block(Duration::from_secs(2)),
            "block for ever" => block(Duration::from_secs(3600)),
            "crash" => std::process::abort(),
            "exit" => {
                eprintln!("there is no way out");
                std::process::exit(3)
            }
            "overflow" => overflow(0),
            "orphan" => {
                // Inherits what it can, and outlives the process.
                let child = std::process::Command::new("sleep").arg("20").spawn();
                let id = child.map_or(0, |child| child.id());
                return Ok(Machine { id: request.id, name: id.to_string(), ..Machine::default() });
            }
            "process" => {
                let name = std::process::id().to_string();
                return Ok(Machine { id: request.id, name, ..Machine::default() });
            }
            "large" => {
                let name = "x".repeat(20 << 20);
                return Ok(Machine { id: request.id, name, ..Machine::default() });
            }
            "large error" => return Err(ProviderError::quota("y".repeat(4 << 20))),
            "flood" => {
                for line in 0..20_000 {
                    self.host.log(LogLevel::Info, &format!("line {line} {}", "z".repeat(10)));
                }
                self.host.log(LogLevel::Info, &"w".repeat(1 << 20));
            }
            "one line" => self.host.log(LogLevel::Info, "one line"),
            "bad metric" => self.host.metric("panic", 1.0),
            "bad drop" => {
                let _bomb = Bomb(self.host.clone());
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            "spawn" => {
                let spawned =
                    tokio::spawn(async { std::thread::current().name().map(str::to_owned) });
                let name = spawned.await.ok().flatten().unwrap_or_default();
                return Ok(Machine { id: request.id, name, ..Machine::default() });
            }
            "context" => {
                let left = context.remaining().map_or(0, |left| left.as_millis());
                let name = format!("{} {} {left}", context.request_id, context.traceparent);
                return Ok(Machine { id: request.id, name, ..Machine::default() });
            }
            "throttled" => {
                return Err(ProviderError::throttled("the cloud is busy")
                    .with_retry(RetryAdvice::After(Duration::from_millis(1500)))
                    .with_provider_code("SlowDown")
                    .with_source(
                        ProviderError::transient("call the API")
                            .with_source(std::io::Error::other("status 429")),
                    ));
            }
            _ => {}
        }
        Ok(Machine { id: request.id, ..Machine::default() })
    }

    async fn list(&self, _: CallContext, _: ListRequest) -> Result<ListResponse> {
        tracing::debug!("a debug line");
        Ok(ListResponse::default())
    }

    async fn console(
        &self,
        _: CallContext,
        request: ConsoleRequest,
    ) -> Result<BoxStream<ConsoleChunk>> {
        let (id, host) = (request.id, self.host.clone());
        if id == "panic early" {
            panic!("the console did not open");
        }
        if id == "bad drop" {
            let bomb = Bomb(host);
            return Ok(Box::pin(futures::stream::unfold(bomb, |bomb| async {
                Some((Ok(ConsoleChunk { data: vec![1] }), bomb))
            })));
        }
        if id == "refused" {
            return Err(ProviderError::not_found("no such console"));
        }
        let witness = Witness(host.clone(), "console_dropped");
        let chunks = futures::stream::unfold((0_u64, witness), move |(count, witness)| {
            let (id, host) = (id.clone(), host.clone());
            async move {
                host.metric("chunk_made", 1.0);
                match (id.as_str(), count) {
                    ("three", 3) => return None,
                    ("error", 3) => {
                        return Some((
                            Err(ProviderError::transient("cut off")),
                            (count + 1, witness),
                        ));
                    }
                    ("panic", 3) => panic!("the console exploded"),
                    ("large", 1) => {
                        let data = vec![0; 20 << 20];
                        return Some((Ok(ConsoleChunk { data }), (count + 1, witness)));
                    }
                    ("idle", 1) => std::future::pending().await,
                    _ => {}
                }
                let data = count.to_le_bytes().to_vec();
                Some((Ok(ConsoleChunk { data }), (count + 1, witness)))
            }
        });
        Ok(Box::pin(chunks))
    }
}

#[async_trait]
impl ContainerProvider for Trouble {
    /// Echoes its input, and exits when that is closed.
    async fn exec(
        &self,
        _: CallContext,
        mut input: BoxStream<ExecInput>,
    ) -> Result<BoxStream<ExecOutput>> {
        let (sender, output) = stream::channel(4);
        tokio::spawn(async move {
            let mut bytes = 0;
            while let Some(Ok(item)) = input.next().await {
                match item.input {
                    Some(ExecInputPart::Stdin(data)) => {
                        bytes += data.len();
                        let output = Some(ExecOutputPart::Stdout(data));
                        if sender.send(Ok(ExecOutput { output })).await.is_err() {
                            return;
                        }
                    }
                    Some(ExecInputPart::StdinClosed(_)) => break,
                    _ => {}
                }
            }
            let code = i32::try_from(bytes).unwrap_or(-1);
            let output = Some(ExecOutputPart::Exit(ExecExit { code, timed_out: false }));
            // The reader may be gone.
            let _ = sender.send(Ok(ExecOutput { output })).await;
        });
        Ok(output)
    }
}

#[async_trait]
impl VolumeProvider for Trouble {
    async fn get(&self, _: CallContext, request: VolumeRef) -> Result<Volume> {
        Ok(Volume { id: request.id, ..Volume::default() })
    }
}

#[expect(unconditional_recursion, reason = "the point is to run out of stack")]
fn overflow(depth: u64) {
    std::hint::black_box([depth; 512]);
    overflow(std::hint::black_box(depth + 1));
    std::hint::black_box(depth);
}

#[expect(clippy::disallowed_methods, reason = "the point is to block a thread")]
fn block(time: Duration) {
    std::thread::sleep(time);
}

export_provider!(Trouble);
