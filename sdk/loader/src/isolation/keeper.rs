//! The host's side: an instance that outlives the processes that run it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr, RVec};
use async_ffi::{FfiFuture, FutureExt as _};
use infranetes_sdk::bridge::HostEndpoint;
use infranetes_sdk::bridge::abi::{
    Endpoint, Endpoint_TO, EndpointBox, OpenFuture, RawReply, RawRequest, StreamBox,
};
use infranetes_sdk::{CallContext, ProviderError, RetryAdvice, v1};
use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::link::{Link, LinkEnd};
use super::process::Process;
use super::{Helper, LOAD, Order, Running, encode_status};
use crate::error::LoadError;
use crate::start::{LoadedFile, Loader, PluginSpec, chain};

/// An instance in a process of its own, and how that process is.
pub(crate) struct Isolated {
    instance: String,
    state: Mutex<State>,
    /// The last `plugin/log_level` that was told; a new process has to hear it, too.
    log_level: Mutex<Option<Vec<u8>>>,
}

enum State {
    Up { link: Link, process: Option<u32> },
    Down { problem: String, next: Instant },
}

/// Starts a helper with an instance, and keeps it running until the endpoint is dropped.
pub(crate) async fn start(
    loader: &Loader,
    helper: &Helper,
    spec: &PluginSpec,
) -> Result<(LoadedFile, EndpointBox, Arc<Isolated>), LoadError> {
    let launch = Launch { loader: loader.clone(), helper: helper.clone(), spec: spec.clone() };
    let (first, running) = launch.start().await?;
    let file = LoadedFile { manifest: running.manifest, sha256: running.sha256 };
    let (endpoint, isolated) = keep(launch, first.state(), Some(first));
    Ok((file, endpoint, isolated))
}

/// As [`start`], of an instance that did not start: it is down with this problem, and is tried again.
pub(crate) fn start_later(
    loader: &Loader,
    helper: &Helper,
    spec: &PluginSpec,
    problem: String,
) -> (EndpointBox, Arc<Isolated>) {
    let launch = Launch { loader: loader.clone(), helper: helper.clone(), spec: spec.clone() };
    let state = State::Down { problem, next: Instant::now() + PAUSE_MIN };
    keep(launch, state, None)
}

fn keep(launch: Launch, state: State, first: Option<Up>) -> (EndpointBox, Arc<Isolated>) {
    let isolated = Arc::new(Isolated {
        instance: launch.spec.instance.clone(),
        state: Mutex::new(state),
        log_level: Mutex::default(),
    });
    let (keep, kept) = watch::channel(());
    tokio::spawn(run(isolated.clone(), launch, first, kept));
    let endpoint = Kept { isolated: isolated.clone(), _keep: keep };
    (Endpoint_TO::from_value(endpoint, TD_Opaque), isolated)
}

impl Isolated {
    /// Why it does not run, if it does not.
    pub(crate) fn problem(&self) -> Option<String> {
        match &*self.state() {
            State::Up { .. } => None,
            State::Down { problem, .. } => Some(problem.clone()),
        }
    }

    /// The process that runs it, if one does.
    pub(crate) fn process(&self) -> Option<u32> {
        match &*self.state() {
            State::Up { process, .. } => *process,
            State::Down { .. } => None,
        }
    }

    fn link(&self) -> Result<Link, Vec<u8>> {
        match &*self.state() {
            State::Up { link, .. } => Ok(link.clone()),
            State::Down { problem, next } => {
                let pause = next.saturating_duration_since(Instant::now());
                Err(encode_status(
                    &ProviderError::transient(problem.clone())
                        .with_retry(RetryAdvice::After(pause)),
                ))
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_down(&self, problem: String, pause: Duration) {
        *self.state() = State::Down { problem, next: Instant::now() + pause };
    }

    fn is_up(&self, up: &Up) {
        let level = self.log_level.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(body) = level {
            up.link.notify(LOG_LEVEL, &body);
        }
        *self.state() = up.state();
    }
}

/// A helper that runs the instance.
struct Up {
    link: Link,
    process: Process,
    /// Why the connection ended, once it did.
    ended: oneshot::Receiver<LinkEnd>,
    since: Instant,
}

impl Up {
    fn state(&self) -> State {
        State::Up { link: self.link.clone(), process: self.process.id() }
    }
}

/// Waits for the process's end, and starts the next; until nobody wants the instance any more.
async fn run(
    isolated: Arc<Isolated>,
    launch: Launch,
    first: Option<Up>,
    mut kept: watch::Receiver<()>,
) {
    let mut pause = PAUSE_MIN;
    let mut running = first;
    loop {
        if let Some(mut up) = running.take() {
            let limit = launch.loader.hang_timeout;
            let end = tokio::select! {
                end = &mut up.ended => end.map_or(End::Closed, End::of),
                () = hangs(up.link.clone(), limit) => End::Hung(limit),
                _ = kept.changed() => return up.let_go().await,
            };
            if up.since.elapsed() > STEADY {
                pause = PAUSE_MIN;
            }
            let (link, outcome) = up.bury(end).await;
            let problem = format!("the process of the plugin {} {outcome}", isolated.instance);
            tracing::error!(instance = isolated.instance, problem, again_in = ?pause, "a plugin's process ended");
            isolated.is_down(problem.clone(), pause);
            link.close(encode_status(&ProviderError::transient(problem)));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = kept.changed() => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
        let started = tokio::select! {
            started = launch.start() => started,
            _ = kept.changed() => return,
        };
        match started {
            Ok((up, _)) => {
                let process = up.process.id();
                tracing::info!(instance = isolated.instance, process, "the plugin runs again");
                isolated.is_up(&up);
                running = Some(up);
            }
            Err(error) => {
                let problem = chain(&error);
                tracing::error!(instance = isolated.instance, problem, again_in = ?pause, "a plugin does not start again");
                isolated.is_down(problem, pause);
            }
        }
    }
}

/// Why a process is buried.
enum End {
    /// It closed the socket, by ending or else.
    Closed,
    /// What it sent cannot be understood, or nothing can be sent to it.
    Broken(LinkEnd),
    /// It gives no sign of life.
    Hung(Duration),
}

impl End {
    fn of(end: LinkEnd) -> End {
        match end {
            LinkEnd::Closed => End::Closed,
            end => End::Broken(end),
        }
    }
}

impl Up {
    /// Nobody wants the instance any more: its destructors get their time, then the process ends.
    async fn let_go(self) {
        self.link.finish();
        let _ = tokio::time::timeout(LET_GO, self.ended).await;
        self.process.end(LET_GO).await;
        self.link.close(encode_status(&ProviderError::transient("the plugin was let go")));
    }

    /// Says how the process ended, and ends it if it did not.
    async fn bury(self, end: End) -> (Link, String) {
        let patience = if matches!(end, End::Closed) { END } else { Duration::ZERO };
        let outcome = self.process.end(patience).await;
        let outcome = match end {
            End::Closed => outcome,
            End::Broken(end) => format!("was ended: {}", chain(&end)),
            End::Hung(limit) => {
                format!("was killed: its threads answered nothing for {} s", limit.as_secs_f32())
            }
        };
        (self.link, outcome)
    }
}

/// Ends when the plugin's own threads answered nothing for so long, although all they are asked is what they provide.
/// Deadlines end the calls; this ends what would let all further ones run into theirs.
async fn hangs(link: Link, limit: Duration) {
    loop {
        let context = CallContext::new("alive").with_timeout(limit);
        let header = v1::CallHeader::from(&context).encode_to_vec();
        let method = "plugin/describe".into();
        let request = RawRequest { method, header: header.into(), body: RVec::new() };
        // Any answer is one.
        if tokio::time::timeout(limit, link.call(request)).await.is_err() {
            return;
        }
        tokio::time::sleep(limit / 4).await;
    }
}

/// How a helper is started; kept for the next time.
struct Launch {
    loader: Loader,
    helper: Helper,
    spec: PluginSpec,
}

impl Launch {
    async fn start(&self) -> Result<(Up, Running), LoadError> {
        let spec = &self.spec;
        let (process, socket) = Process::start(&self.helper, &spec.instance).map_err(|source| {
            LoadError::NoHelper { program: self.helper.program.clone(), source }
        })?;
        let (link, reader) = Link::new(&spec.instance, socket);
        let local = HostEndpoint::new(Handle::current(), spec.services.clone()).into_raw();
        let (end, mut ended) = oneshot::channel();
        let reading = link.clone();
        tokio::spawn(async move {
            let why = reading.serve(reader, &local).await;
            // The keeper may have gone.
            let _ = end.send(why);
        });
        let limit = self.loader.start_timeout + MARGIN;
        let loaded = tokio::select! {
            loaded = tokio::time::timeout(limit, self.load(&link)) => loaded,
            _ = &mut ended => {
                let outcome = process.end(END).await;
                return Err(LoadError::HelperEnded { path: spec.path.clone(), outcome });
            }
        };
        match loaded {
            Ok(Ok(running)) => Ok((Up { link, process, ended, since: Instant::now() }, running)),
            Ok(Err(error)) => {
                process.end(Duration::ZERO).await;
                Err(error)
            }
            Err(_) => {
                process.end(Duration::ZERO).await;
                let (path, instance) = (spec.path.clone(), spec.instance.clone());
                Err(LoadError::StartTimeout { path, instance, limit: self.loader.start_timeout })
            }
        }
    }

    async fn load(&self, link: &Link) -> Result<Running, LoadError> {
        let refused = |error| LoadError::Isolated(Box::new(error));
        let unreadable = |source: serde_json::Error| {
            refused(
                ProviderError::internal("the helper's answer is not readable").with_source(source),
            )
        };
        let order = Order::new(&self.spec, &self.loader);
        let body = serde_json::to_vec(&order).map_err(unreadable)?;
        let header = v1::CallHeader::from(&CallContext::new(LOAD)).encode_to_vec();
        let request = RawRequest { method: LOAD.into(), header: header.into(), body: body.into() };
        match link.call(request).await {
            Ok(answer) => serde_json::from_slice(&answer).map_err(unreadable),
            Err(status) => Err(refused(crate::start::read_status(&status))),
        }
    }
}

/// The endpoint of an isolated instance: the last clone of what uses it keeps the process running.
struct Kept {
    isolated: Arc<Isolated>,
    _keep: watch::Sender<()>,
}

impl Endpoint for Kept {
    fn notify(&self, method: RStr<'_>, body: RSlice<'_, u8>) {
        if method.as_str() == LOG_LEVEL {
            let mut level = self.isolated.log_level.lock().unwrap_or_else(PoisonError::into_inner);
            *level = Some(body.to_vec());
        }
        if let Ok(link) = self.isolated.link() {
            link.notify(method.as_str(), body.as_slice());
        }
    }

    fn call(&self, request: RawRequest) -> FfiFuture<RawReply> {
        match self.isolated.link() {
            Ok(link) => call(link, request),
            Err(status) => async move { RResult::RErr(status.into()) }.into_ffi(),
        }
    }

    fn open(&self, request: RawRequest, input: ROption<StreamBox>) -> OpenFuture {
        match self.isolated.link() {
            Ok(link) => open(link, request, input),
            Err(status) => async move { RResult::RErr(status.into()) }.into_ffi(),
        }
    }
}

/// A call over a link, in the form that crosses.
pub(super) fn call(link: Link, request: RawRequest) -> FfiFuture<RawReply> {
    async move {
        match link.call(request).await {
            Ok(body) => RResult::ROk(body.into()),
            Err(status) => RResult::RErr(status.into()),
        }
    }
    .into_ffi()
}

/// A stream over a link, in the form that crosses.
pub(super) fn open(link: Link, request: RawRequest, input: ROption<StreamBox>) -> OpenFuture {
    async move {
        match link.open(request, input.into_option()).await {
            Ok(items) => RResult::ROk(items),
            Err(status) => RResult::RErr(status.into()),
        }
    }
    .into_ffi()
}

const LOG_LEVEL: &str = "plugin/log_level";
/// The first pause before a process is started again; each next one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A process that ran for so long was well: its end begins with the shortest pause again.
const STEADY: Duration = Duration::from_secs(60);
/// From the end of the socket to the end of the process.
const END: Duration = Duration::from_secs(5);
/// How long the destructors of an instance that nobody wants any more may take.
const LET_GO: Duration = Duration::from_secs(3);
/// Vetting and linking, beside the plugin's own start.
const MARGIN: Duration = Duration::from_secs(10);
