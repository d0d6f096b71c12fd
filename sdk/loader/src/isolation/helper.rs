//! The helper's side: runs one instance for the host at the other end of standard input, and ends with it.

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr};
use async_ffi::{FfiFuture, FutureExt as _};
use infranetes_sdk::bridge::abi::{
    Endpoint, Endpoint_TO, EndpointBox, OpenFuture, RawReply, RawRequest, StreamBox,
};
use infranetes_sdk::{ErrorKind, ProviderError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, getpid, kill_process};

use super::link::Link;
use super::{LOAD, Order, Running, encode_status};
use crate::error::LoadError;

/// Why a helper could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Standard input is something else.
    #[error("standard input is no socket of a host: hosts start this program, people do not")]
    NoSocket(#[source] io::Error),
    /// The process cannot be set up.
    #[error("the helper cannot be set up")]
    SetUp(#[source] io::Error),
}

/// Runs one plugin instance for the host whose socket is standard input. Returns when the host is gone, or lets the instance go;
/// the program then ends.
///
/// To be called from `main`, before there are other threads. `instance` is the name in messages.
pub fn serve(instance: &str) -> Result<ExitCode, ServeError> {
    let socket = take_socket()?;
    watch(&socket)?;
    socket.set_nonblocking(true).map_err(ServeError::SetUp)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("helper")
        .enable_all()
        .build()
        .map_err(ServeError::SetUp)?;
    runtime.block_on(run(instance, socket))?;
    // The instance's own threads have had their time; nothing of the file's may run any more.
    end_now();
    Ok(ExitCode::SUCCESS)
}

/// Children of the plugin must not inherit the socket, else the host would not see the end of this process.
fn take_socket() -> Result<UnixStream, ServeError> {
    let no_socket = |error: rustix::io::Errno| ServeError::NoSocket(error.into());
    let stdin = io::stdin();
    rustix::net::sockopt::socket_type(&stdin).map_err(no_socket)?;
    let socket = rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3).map_err(no_socket)?;
    let nothing = std::fs::File::open("/dev/null").map_err(ServeError::SetUp)?;
    rustix::stdio::dup2_stdin(nothing).map_err(|error| ServeError::SetUp(error.into()))?;
    Ok(UnixStream::from(socket))
}

/// Ends this process once the host is gone, whatever the plugin's threads do.
fn watch(socket: &UnixStream) -> Result<(), ServeError> {
    let socket = socket.try_clone().map_err(ServeError::SetUp)?;
    let watch = move || {
        let mut gone = [PollFd::new(&socket, PollFlags::empty())];
        while matches!(poll(&mut gone, None), Err(rustix::io::Errno::INTR)) {}
        let until = std::time::Instant::now() + GRACE;
        while let Some(left) = until.checked_duration_since(std::time::Instant::now()) {
            std::thread::park_timeout(left);
        }
        end_now();
    };
    std::thread::Builder::new()
        .name("watch".into())
        .spawn(watch)
        .map(drop)
        .map_err(ServeError::SetUp)
}

/// Without handlers of libraries that a plugin brought along.
fn end_now() {
    // The kernel always lets a process end itself.
    let _ = kill_process(getpid(), Signal::KILL);
}

async fn run(instance: &str, socket: UnixStream) -> Result<(), ServeError> {
    let socket = tokio::net::UnixStream::from_std(socket).map_err(ServeError::SetUp)?;
    let (link, reader) = Link::new(instance, socket);
    let served = Served(Arc::new(State { link: link.clone(), instance: OnceLock::new() }));
    let instance = served.0.clone();
    let local = Endpoint_TO::from_value(served, TD_Opaque);
    link.serve(reader, &local).await;
    link.close(encode_status(&ProviderError::transient("the host lets go of the plugin")));
    instance.end().await;
    Ok(())
}

/// What the host calls: `helper/load`, and then the instance.
struct Served(Arc<State>);

struct State {
    link: Link,
    instance: OnceLock<Instance>,
}

/// `None` once it is let go.
type Instance = Mutex<Option<Arc<EndpointBox>>>;

impl State {
    async fn load(&self, body: &[u8]) -> Result<Vec<u8>, ProviderError> {
        let order: Order = serde_json::from_slice(body).map_err(|source| {
            ProviderError::internal("the host's order is not readable").with_source(source)
        })?;
        let ours = env!("CARGO_PKG_VERSION");
        if order.loader != ours {
            let theirs = &order.loader;
            let problem = format!("this helper is of version {ours}, its host of {theirs}");
            return Err(ProviderError::internal(problem));
        }
        let loader = order.loader().map_err(|source| {
            ProviderError::internal("the host's keys are not readable").with_source(source)
        })?;
        let host = Endpoint_TO::from_value(Other(self.link.clone()), TD_Opaque);
        let (file, endpoint) = loader.open(&order.into_spec(), host).await.map_err(refusal)?;
        self.instance
            .set(Mutex::new(Some(Arc::new(endpoint))))
            .map_err(|_| ProviderError::conflict("this helper runs an instance already"))?;
        let running = Running { manifest: file.manifest, sha256: file.sha256 };
        serde_json::to_vec(&running).map_err(|source| {
            ProviderError::internal("the manifest cannot be told").with_source(source)
        })
    }

    fn instance(&self) -> Result<Arc<EndpointBox>, ProviderError> {
        let instance = self.instance.get().and_then(|instance| {
            instance.lock().unwrap_or_else(PoisonError::into_inner).as_ref().cloned()
        });
        instance.ok_or_else(|| ProviderError::internal("this helper runs no instance"))
    }

    /// Lets the instance go, and gives its destructors some time.
    async fn end(&self) {
        let Some(instance) = self.instance.get() else { return };
        drop(instance.lock().unwrap_or_else(PoisonError::into_inner).take());
        let deadline = tokio::time::Instant::now() + GRACE / 2;
        while plugin_threads() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Threads that the SDK made for the plugin; their end is the end of its destructors.
fn plugin_threads() -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let names = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.filter(|name| name.as_ref().is_ok_and(|name| name.starts_with("p:"))).count()
}

/// The refusal of a load, as an error that crosses: the message and all causes as they are.
fn refusal(error: LoadError) -> ProviderError {
    let kind = match &error {
        LoadError::Start { source, .. } | LoadError::Describe { source, .. } => source.kind,
        LoadError::StartTimeout { .. } => ErrorKind::DeadlineExceeded,
        _ => ErrorKind::Invalid,
    };
    let message = error.to_string();
    let refusal = ProviderError::new(kind, message);
    match error.source() {
        None => refusal,
        Some(source) => refusal.with_source(Causes::of(source)),
    }
}

/// A chain of causes that owns its texts.
#[derive(Debug)]
struct Causes(String, Option<Box<Causes>>);

impl Causes {
    fn of(error: &(dyn Error + 'static)) -> Causes {
        Causes(error.to_string(), error.source().map(|source| Box::new(Causes::of(source))))
    }
}

impl std::fmt::Display for Causes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Causes {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.1.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl Endpoint for Served {
    fn notify(&self, method: RStr<'_>, body: RSlice<'_, u8>) {
        if let Ok(instance) = self.0.instance() {
            instance.notify(method, body);
        }
    }

    fn call(&self, request: RawRequest) -> FfiFuture<RawReply> {
        let state = self.0.clone();
        if request.method.as_str() == LOAD {
            return async move { reply(state.load(&request.body).await) }.into_ffi();
        }
        match state.instance() {
            Ok(instance) => instance.call(request),
            Err(error) => async move { reply(Err(error)) }.into_ffi(),
        }
    }

    fn open(&self, request: RawRequest, input: ROption<StreamBox>) -> OpenFuture {
        match self.0.instance() {
            Ok(instance) => instance.open(request, input),
            Err(error) => async move { RResult::RErr(encode_status(&error).into()) }.into_ffi(),
        }
    }
}

fn reply(result: Result<Vec<u8>, ProviderError>) -> RawReply {
    match result {
        Ok(body) => RResult::ROk(body.into()),
        Err(error) => RResult::RErr(encode_status(&error).into()),
    }
}

/// The other side of a link, as an endpoint: the host, as a plugin in a helper sees it.
struct Other(Link);

impl Endpoint for Other {
    fn notify(&self, method: RStr<'_>, body: RSlice<'_, u8>) {
        self.0.notify(method.as_str(), body.as_slice());
    }

    fn call(&self, request: RawRequest) -> FfiFuture<RawReply> {
        super::keeper::call(self.0.clone(), request)
    }

    fn open(&self, request: RawRequest, input: ROption<StreamBox>) -> OpenFuture {
        super::keeper::open(self.0.clone(), request, input)
    }
}

/// How long the plugin's destructors may take once the host is gone.
const GRACE: Duration = Duration::from_secs(2);
