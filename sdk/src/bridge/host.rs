//! Host services through the boundary: the host's side, and the plugin's view of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

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
use crate::error::{ProviderError, Result};
use crate::plugin::{HostServices, LogLevel, Secret};
use crate::v1;

/// A host's services, as an endpoint for a plugin.
pub struct HostEndpoint {
    runtime: Handle,
    services: Arc<dyn HostServices>,
}

impl HostEndpoint {
    /// Runs calls of the plugin on `runtime`.
    pub fn new(runtime: Handle, services: Arc<dyn HostServices>) -> Self {
        Self { runtime, services }
    }

    /// The form that crosses the boundary.
    pub fn into_raw(self) -> EndpointBox {
        Endpoint_TO::from_value(self, TD_Opaque)
    }
}

impl Endpoint for HostEndpoint {
    fn notify(&self, method: RStr<'_>, body: RSlice<'_, u8>) {
        let (method, body) = (method.as_str(), body.as_slice());
        let told = AssertUnwindSafe(|| tell(self.services.as_ref(), method, body));
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

fn tell(services: &dyn HostServices, method: &str, body: &[u8]) {
    match method {
        "host/log" => {
            if let Ok(record) = v1::LogRecord::decode(body) {
                let level = LogLevel::parse(&record.level);
                services.log(level, &record.target, &record.message);
            }
        }
        "host/metric" => {
            if let Ok(sample) = v1::MetricSample::decode(body) {
                services.metric(&sample.name, sample.value);
            }
        }
        // A plugin may be newer than this host.
        _ => {}
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

/// How long a plugin waits for a secret.
const SECRET_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
