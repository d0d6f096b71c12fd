//! Host services through the boundary: the host's side, and the plugin's view of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr};
use async_ffi::{FfiFuture, FutureExt as _};
use async_trait::async_trait;
use infranetes_abi::{
    Endpoint, Endpoint_TO, EndpointBox, OpenFuture, RawReply, RawRequest, StreamBox,
};
use prost::Message;
use tokio::runtime::Handle;

use super::remote::Remote;
use super::task::{run, within};
use super::wire::{decode, encode_error, encode_reply};
use crate::context::CallContext;
use crate::error::{ProviderError, Result, shortened};
use crate::plugin::{HostServices, LogLevel, Secret};
use crate::v1;

/// A host's services, as an endpoint for a plugin.
pub struct HostEndpoint {
    runtime: Handle,
    services: Arc<dyn HostServices>,
    lines: Mutex<Lines>,
}

/// Log lines of one second.
struct Lines {
    since: Instant,
    taken: u32,
    left_out: u64,
}

impl HostEndpoint {
    /// Runs calls of the plugin on `runtime`.
    pub fn new(runtime: Handle, services: Arc<dyn HostServices>) -> Self {
        let lines = Lines { since: Instant::now(), taken: 0, left_out: 0 };
        Self { runtime, services, lines: Mutex::new(lines) }
    }

    /// The form that crosses the boundary.
    pub fn into_raw(self) -> EndpointBox {
        Endpoint_TO::from_value(self, TD_Opaque)
    }
}

impl Endpoint for HostEndpoint {
    fn notify(&self, method: RStr<'_>, body: RSlice<'_, u8>) {
        let (method, body) = (method.as_str(), body.as_slice());
        let told = AssertUnwindSafe(|| self.tell(method, body));
        if catch_unwind(told).is_err() {
            tracing::error!(method, "a host service panicked");
        }
    }

    fn call(&self, request: RawRequest) -> FfiFuture<RawReply> {
        let services = self.services.clone();
        let work = run(&self.runtime, request.method.to_string(), async move {
            let method = request.method.as_str();
            let context = CallContext::from(decode::<v1::CallHeader>(method, &request.header)?);
            within(&context, answer(services.as_ref(), method, &request.body)).await
        });
        async move { encode_reply(work.await) }.into_ffi()
    }

    fn open(&self, request: RawRequest, _input: ROption<StreamBox>) -> OpenFuture {
        let error = unknown(request.method.as_str());
        async move { RResult::RErr(encode_error(&error)) }.into_ffi()
    }
}

impl HostEndpoint {
    fn tell(&self, method: &str, body: &[u8]) {
        match method {
            "host/log" => {
                if let Ok(record) = v1::LogRecord::decode(body) {
                    self.log(record);
                }
            }
            "host/metric" => {
                if let Ok(sample) = v1::MetricSample::decode(body) {
                    self.services.metric(&sample.name, sample.value);
                }
            }
            // A plugin may be newer than this host.
            _ => {}
        }
    }

    /// A plugin that logs without end fills neither the host's disk nor its memory.
    fn log(&self, record: v1::LogRecord) {
        let left_out = {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let mut left_out = 0;
            if now.duration_since(lines.since) >= Duration::from_secs(1) {
                left_out = lines.left_out;
                *lines = Lines { since: now, taken: 0, left_out: 0 };
            }
            lines.taken += 1;
            if lines.taken > LINES_A_SECOND {
                lines.left_out += 1;
                return;
            }
            left_out
        };
        if left_out > 0 {
            let text =
                format!("{left_out} log lines of this plugin were left out: it wrote too many");
            self.services.log(LogLevel::Warn, &record.target, &text);
        }
        let text = shortened(record.message, LINE_BYTES_MAX);
        self.services.log(LogLevel::parse(&record.level), &record.target, &text);
    }
}

async fn answer(services: &dyn HostServices, method: &str, body: &[u8]) -> Result<Vec<u8>> {
    match method {
        "host/secret" => {
            let request: v1::SecretRequest = decode(method, body)?;
            let secret = services.secret(&request.name).await?;
            Ok(v1::SecretResponse { value: secret.expose().to_vec() }.encode_to_vec())
        }
        _ => Err(unknown(method)),
    }
}

fn unknown(method: &str) -> ProviderError {
    ProviderError::unsupported(format!("this host has no {method}"))
}

/// The host, as a loaded plugin reaches it.
#[derive(Clone)]
pub(super) struct RemoteServices(pub(super) Remote);

#[async_trait]
impl HostServices for RemoteServices {
    fn log(&self, level: LogLevel, target: &str, message: &str) {
        let record = v1::LogRecord {
            level: level.as_str().into(),
            target: target.into(),
            message: message.into(),
        };
        self.0.notify("host/log", &record);
    }

    fn metric(&self, name: &str, value: f64) {
        self.0.notify("host/metric", &v1::MetricSample { name: name.into(), value });
    }

    async fn secret(&self, name: &str) -> Result<Secret> {
        let request = v1::SecretRequest { name: name.into() };
        let context = CallContext::new("").with_timeout(SECRET_TIMEOUT);
        let response: v1::SecretResponse = self.0.call("host/secret", &context, &request).await?;
        Ok(Secret::new(response.value))
    }
}

/// More log lines of one plugin are counted, and left out.
const LINES_A_SECOND: u32 = 1000;
const LINE_BYTES_MAX: usize = 8192;
/// How long a plugin waits for a secret.
const SECRET_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
