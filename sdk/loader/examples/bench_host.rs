//! The host of `cargo xtask bench abi`: `bench_host PLUGIN.so` times one call by four ways side by side, and prints figures as
//! JSON. `bench_host host INSTANCE` is its own helper, `bench_host probe …` its own probe, `bench_host tonic SOCKET` the other end of gRPC.
//!
//! The ways take turns in small batches, so that a busy machine slows all of them alike.

mod bench_plugin;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench_plugin::Bench;
use hyper_util::rt::TokioIo;
use infranetes_loader::isolation::{self, Helper, Isolation};
use infranetes_loader::{LoadedPlugin, Loader, PluginSpec, probe_opened, sha256_of};
use infranetes_sdk::pod::{ConsoleRequest, GetRequest, Machine};
use infranetes_sdk::{CallContext, PodProvider, StreamExt};
use serde_json::{Value, json};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::{Channel, Endpoint, Server};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["host", instance] => isolation::serve(instance).map(drop)?,
        ["probe", "--opened", path] => probe_opened(Path::new(path)).map(drop)?,
        ["tonic", socket] => runtime()?.block_on(serve_tonic(Path::new(socket)))?,
        [plugin] => println!("{:#}", runtime()?.block_on(measure(PathBuf::from(plugin)))?),
        _ => return Err("usage: bench_host PLUGIN.so".into()),
    }
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

async fn measure(plugin: PathBuf) -> Outcome<Value> {
    let load = load_times(&plugin).await?;
    let inside = loader().load(spec(&plugin)).await?;
    let outside = loader().load(spec(&plugin).with_isolation(Isolation::Process)).await?;
    let linked: Arc<dyn PodProvider> = Arc::new(Bench);
    let (inside, outside) = (pods(&inside)?, pods(&outside)?);
    let directory = tempfile::tempdir()?;
    let (mut tonic, _server) = Tonic::start(&directory.path().join("bench.sock")).await?;

    let mut times: [Vec<f64>; 4] = Default::default();
    for batch in 0..BATCHES + WARM_UP {
        let batch_times = [
            timed(async || call(&linked).await).await?,
            timed(async || call(&inside).await).await?,
            timed(async || call(&outside).await).await?,
            timed(async || tonic.call().await).await?,
        ];
        if batch >= WARM_UP {
            times.iter_mut().zip(batch_times).for_each(|(all, one)| all.extend(one));
        }
    }
    let [direct, inside_us, outside_us, tonic_us] = times.map(spread);
    Ok(json!({
        "calls": BATCHES * CALLS,
        "direct_us": direct,
        "in_process_us": inside_us,
        "out_of_process_us": outside_us,
        "tonic_us": tonic_us,
        "in_process_64_at_once_us": at_once(&inside).await?,
        "out_of_process_64_at_once_us": at_once(&outside).await?,
        "chunk_in_process_us": chunks(&inside).await?,
        "chunk_out_of_process_us": chunks(&outside).await?,
        "chunk_bytes": 16 << 10,
        "load_ms": load,
        "plugin_bytes": std::fs::metadata(&plugin)?.len(),
    }))
}

/// Loading a file that nothing vouches for, one with a pinned digest, one that is probed first, and one into a process.
async fn load_times(plugin: &Path) -> Outcome<Value> {
    let digest = sha256_of(&std::fs::read(plugin)?);
    let probing = || loader().with_probe_command("/proc/self/exe", ["probe".into()]);
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..LOADS {
        let specs = [
            (loader(), spec(plugin)),
            (loader(), spec(plugin).with_sha256(&digest)),
            (probing(), spec(plugin)),
            (loader(), spec(plugin).with_isolation(Isolation::Process)),
        ];
        for (all, (loader, spec)) in times.iter_mut().zip(specs) {
            let started = Instant::now();
            loader.load(spec).await?;
            all.push(micros(started) / 1000.0);
        }
    }
    let [plain, pinned, probed, isolated] = times.map(spread);
    Ok(json!({ "plain": plain, "pinned": pinned, "probed": probed, "isolated": isolated }))
}

fn loader() -> Loader {
    Loader::new().with_helper(Helper::this_program().with_argument("host"))
}

fn spec(plugin: &Path) -> PluginSpec {
    PluginSpec::new("bench", plugin)
}

fn pods(plugin: &LoadedPlugin) -> Outcome<Arc<dyn PodProvider>> {
    Ok(plugin.pods().ok_or("the plugin provides no machines")?)
}

fn request() -> GetRequest {
    GetRequest { id: "i-0123456789abcdef0123456789abcdef01234567".into() }
}

fn context() -> CallContext {
    CallContext::new("bench-request").with_timeout(Duration::from_secs(10))
}

async fn call(pods: &Arc<dyn PodProvider>) -> Outcome<()> {
    pods.get(context(), request()).await?;
    Ok(())
}

/// One batch, in microseconds a call. Each call is timed alone.
async fn timed(mut call: impl AsyncFnMut() -> Outcome<()>) -> Outcome<Vec<f64>> {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let started = Instant::now();
        call().await?;
        times.push(micros(started));
    }
    Ok(times)
}

async fn at_once(pods: &Arc<dyn PodProvider>) -> Outcome<f64> {
    let started = Instant::now();
    for _ in 0..BATCHES {
        let calls = (0..64).map(|_| call(pods));
        futures::future::join_all(calls).await.into_iter().collect::<Outcome<Vec<()>>>()?;
    }
    Ok(micros(started) / (BATCHES * 64) as f64)
}

async fn chunks(pods: &Arc<dyn PodProvider>) -> Outcome<f64> {
    let mut stream = pods.console(context(), ConsoleRequest::default()).await?;
    let started = Instant::now();
    for _ in 0..CHUNKS {
        stream.next().await.ok_or("the stream ended")??;
    }
    Ok(micros(started) / f64::from(CHUNKS))
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

fn spread(mut times: Vec<f64>) -> Value {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    json!({ "min": at(0.0), "median": at(0.5), "p99": at(0.99) })
}

/// The same provider in another process, behind gRPC over a unix socket, as one would do without an ABI.
struct Tonic(tonic::client::Grpc<Channel>);

impl Tonic {
    async fn start(path: &Path) -> Outcome<(Tonic, tokio::process::Child)> {
        let mut server = tokio::process::Command::new("/proc/self/exe");
        let server = server.arg("tonic").arg(path).kill_on_drop(true).spawn()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while tokio::net::UnixStream::connect(path).await.is_err() {
            if Instant::now() > deadline {
                return Err("the gRPC server does not listen".into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let path = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://bench.invalid");
        let channel = endpoint.connect_with_connector(connector).await?;
        Ok((Tonic(tonic::client::Grpc::new(channel)), server))
    }

    async fn call(&mut self) -> Outcome<()> {
        self.0.ready().await?;
        let mut call = tonic::Request::new(request());
        call.set_timeout(Duration::from_secs(10));
        let path = http::uri::PathAndQuery::from_static("/bench.Bench/Get");
        let codec = tonic_prost::ProstCodec::<GetRequest, Machine>::default();
        self.0.unary(call, path, codec).await?;
        Ok(())
    }
}

async fn serve_tonic(path: &Path) -> Outcome<()> {
    let listener = tokio::net::UnixListener::bind(path)?;
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    Ok(Server::builder().serve_with_incoming(Get(Arc::new(Bench)), incoming).await?)
}

#[derive(Clone)]
struct Get(Arc<dyn PodProvider>);

impl Service<http::Request<tonic::body::Body>> for Get {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = Unary(self.0.clone());
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<Machine, GetRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(service, request).await)
        })
    }
}

struct Unary(Arc<dyn PodProvider>);

impl tonic::server::UnaryService<GetRequest> for Unary {
    type Response = Machine;
    type Future = BoxFuture<tonic::Response<Machine>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<GetRequest>) -> Self::Future {
        let provider = self.0.clone();
        Box::pin(async move {
            let answer =
                provider.get(CallContext::new("bench-request"), request.into_inner()).await;
            answer.map(tonic::Response::new).map_err(|error| tonic::Status::internal(error.message))
        })
    }
}

const BATCHES: usize = 60;
const WARM_UP: usize = 3;
const CALLS: usize = 100;
const CHUNKS: u32 = 20_000;
const LOADS: usize = 15;
