//! The plugin's side: routes calls to the author's providers, on the plugin's own runtime.

use std::sync::Arc;

use abi_stable::std_types::{ROption, RResult, RSlice, RStr};
use async_ffi::{FfiFuture, FutureExt as _};
use infranetes_abi::{Endpoint, OpenFuture, RawReply, RawRequest, StreamBox};
use prost::Message;
use tokio::runtime::{Handle, Runtime};

use super::entry::SDK_VERSION;
use super::forward;
use super::stream::{incoming, outgoing};
use super::task::{run, within};
use super::wire::{decode, encode_error, encode_reply};
use crate::context::CallContext;
use crate::error::{ProviderError, Result};
use crate::plugin::{LogLevel, Providers};
use crate::provider;
use crate::stream::BoxStream;
use crate::v1;

/// An instance of a plugin: its providers and the threads that run them. Ends when dropped.
pub(super) struct Served {
    routes: Option<Arc<Routes>>,
    // Declared last, so that it outlives the providers.
    runtime: OwnRuntime,
}

impl Served {
    pub(super) fn new(
        runtime: OwnRuntime,
        providers: Providers,
        description: v1::PluginDescription,
    ) -> Self {
        Self { routes: Some(Arc::new(Routes { providers, description })), runtime }
    }

    fn routes(&self) -> Arc<Routes> {
        // Only `drop` takes it.
        self.routes.clone().unwrap_or_default()
    }
}

impl Endpoint for Served {
    fn notify(&self, method: RStr<'_>, body: RSlice<'_, u8>) {
        if method.as_str() == "plugin/log_level" {
            if let Ok(record) = v1::LogRecord::decode(body.as_slice()) {
                forward::set_level(LogLevel::parse(&record.level));
            }
        }
    }

    fn call(&self, request: RawRequest) -> FfiFuture<RawReply> {
        let routes = self.routes();
        let work = run(self.runtime.handle(), request.method.to_string(), async move {
            let (method, context) = parse_head(&request)?;
            within(&context.clone(), routes.call(method, context, &request.body)).await
        });
        async move { encode_reply(work.await) }.into_ffi()
    }

    fn open(&self, request: RawRequest, input: ROption<StreamBox>) -> OpenFuture {
        let routes = self.routes();
        let label = request.method.to_string();
        let runtime = self.runtime.handle().clone();
        let work = run(self.runtime.handle(), label.clone(), async move {
            let (method, context) = parse_head(&request)?;
            let input = input.into_option().map(|input| incoming("the input", input));
            let opening = routes.open(method, context.clone(), &request.body, input);
            Ok(outgoing(&runtime, label, within(&context, opening).await?))
        });
        async move {
            match work.await {
                Ok(stream) => RResult::ROk(stream),
                Err(error) => RResult::RErr(encode_error(&error)),
            }
        }
        .into_ffi()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The author's destructors run on the plugin's own threads: here they could unwind into the host.
        let routes = self.routes.take();
        self.runtime.handle().spawn(async move { drop(routes) });
    }
}

/// The author's providers by method.
#[derive(Default)]
struct Routes {
    providers: Providers,
    description: v1::PluginDescription,
}

impl Routes {
    async fn call(&self, method: &str, context: CallContext, body: &[u8]) -> Result<Vec<u8>> {
        let Providers { pods, containers, volumes } = &self.providers;
        match method.split_once('/') {
            Some(("pod", name)) => {
                provider::pod::call(given(pods, "pod")?, name, context, body).await
            }
            Some(("container", name)) => {
                provider::container::call(given(containers, "container")?, name, context, body)
                    .await
            }
            Some(("volume", name)) => {
                provider::volume::call(given(volumes, "volume")?, name, context, body).await
            }
            Some(("plugin", "describe")) => Ok(self.description.encode_to_vec()),
            _ => Err(unknown(method)),
        }
    }

    async fn open(
        &self,
        method: &str,
        context: CallContext,
        body: &[u8],
        input: Option<BoxStream<Vec<u8>>>,
    ) -> Result<BoxStream<Vec<u8>>> {
        let Providers { pods, containers, volumes } = &self.providers;
        match method.split_once('/') {
            Some(("pod", name)) => {
                provider::pod::open(given(pods, "pod")?, name, context, body, input).await
            }
            Some(("container", name)) => {
                let containers = given(containers, "container")?;
                provider::container::open(containers, name, context, body, input).await
            }
            Some(("volume", name)) => {
                provider::volume::open(given(volumes, "volume")?, name, context, body, input).await
            }
            _ => Err(unknown(method)),
        }
    }
}

fn given<'a, P: ?Sized>(provider: &'a Option<Arc<P>>, service: &str) -> Result<&'a P> {
    provider.as_deref().ok_or_else(|| {
        ProviderError::unsupported(format!("this plugin provides no {service} service"))
    })
}

/// What a host newer than this SDK may ask for.
pub(crate) fn unknown(method: &str) -> ProviderError {
    ProviderError::unsupported(format!(
        "this plugin was built with infranetes-sdk {SDK_VERSION}, which has no {method}"
    ))
}

fn parse_head(request: &RawRequest) -> Result<(&str, CallContext)> {
    let method = request.method.as_str();
    let header: v1::CallHeader = decode(method, &request.header)?;
    Ok((method, header.into()))
}

/// A runtime whose threads end in the background when it is dropped, so that dropping never blocks the host.
pub(super) struct OwnRuntime(Option<Runtime>, Handle);

impl OwnRuntime {
    pub(super) fn new(runtime: Runtime) -> Self {
        let handle = runtime.handle().clone();
        Self(Some(runtime), handle)
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
