//! What a plugin exports: from the raw start call to a running instance.

use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RVec};
use async_ffi::FutureExt as _;
use infranetes_abi::export::Module;
use infranetes_abi::{Endpoint_TO, EndpointBox, StartFuture};

use super::forward;
use super::host::RemoteServices;
use super::remote::Remote;
use super::served::{OwnRuntime, Served};
use super::task::{panicked, run};
use super::wire::{decode, encode_error};
use crate::error::{ProviderError, Result};
use crate::plugin::{Host, LogLevel, Plugin};
use crate::v1;

/// The version of this SDK.
pub const SDK_VERSION: &str = env!("CARGO_PKG_VERSION");
/// The compiler that builds this, for messages.
pub const MANIFEST_RUSTC: &str = env!("INFRANETES_SDK_RUSTC");
/// The target triple that this is built for.
pub const MANIFEST_TARGET: &str = env!("INFRANETES_SDK_TARGET");

/// What `export_provider!` says about a crate.
pub trait Export: 'static {
    /// The author's plugin.
    type Plugin: Plugin;
    /// The package's name.
    const NAME: &'static str;
    /// The package's version.
    const VERSION: &'static str;
}

/// The module of an exported plugin.
pub struct Entry<E>(PhantomData<E>);

impl<E: Export> Module for Entry<E> {
    extern "C" fn start(host: EndpointBox, request: RVec<u8>) -> StartFuture {
        start::<E::Plugin>(E::NAME, E::VERSION, host, &request, true)
    }
}

/// Starts a plugin that is linked into this program, as if it had been loaded. Its `tracing` and `log` lines and its
/// panics stay this program's own.
pub fn start_linked<P: Plugin>(
    name: &'static str,
    version: &'static str,
    host: EndpointBox,
    request: &[u8],
) -> StartFuture {
    start::<P>(name, version, host, request, false)
}

fn start<P: Plugin>(
    name: &'static str,
    version: &'static str,
    host: EndpointBox,
    request: &[u8],
    forwards: bool,
) -> StartFuture {
    // Nothing may unwind out of here.
    let prepared = || prepare::<P>(name, version, host, request, forwards);
    let started = catch_unwind(AssertUnwindSafe(prepared))
        .unwrap_or_else(|payload| Err(panicked("plugin/start", payload.as_ref())));
    async move {
        let endpoint = match started {
            Ok(starting) => starting.await,
            Err(error) => Err(error),
        };
        match endpoint {
            Ok(endpoint) => RResult::ROk(endpoint),
            Err(error) => RResult::RErr(encode_error(&error)),
        }
    }
    .into_ffi()
}

fn prepare<P: Plugin>(
    name: &'static str,
    version: &'static str,
    host: EndpointBox,
    request: &[u8],
    forwards: bool,
) -> Result<impl Future<Output = Result<EndpointBox>> + Send + 'static + use<P>> {
    let request: v1::StartRequest = decode("plugin/start", request)?;
    let services = Arc::new(RemoteServices(Remote::new(host, "the host")));
    if forwards {
        forward::install(&services, LogLevel::parse(&request.log_level));
    }
    let runtime = OwnRuntime::new(make_runtime(&request, services.clone())?);

    let config = parse_config::<P::Config>(&request.config_json)?;
    let state_dir = (!request.state_dir.is_empty()).then(|| PathBuf::from(&request.state_dir));
    let host = Host::new(request.instance, state_dir, services);
    let starting =
        run(runtime.handle(), "plugin/start".into(), async move { P::start(host, config).await });

    Ok(async move {
        let providers = starting.await?;
        let description = v1::PluginDescription {
            name: name.into(),
            version: version.into(),
            sdk_version: SDK_VERSION.into(),
            services: providers.services().into_iter().map(Into::into).collect(),
        };
        let served = Served::new(runtime, providers, description);
        Ok(Endpoint_TO::from_value(served, TD_Opaque))
    })
}

fn parse_config<C: serde::de::DeserializeOwned>(json: &str) -> Result<C> {
    let json = if json.trim().is_empty() { "{}" } else { json };
    serde_json::from_str(json).map_err(|source| {
        let wrong = ProviderError::invalid("the provider's configuration ([config]) is wrong");
        match source.is_data() {
            true => wrong.with_source(WrongField::of(&source)),
            false => wrong.with_source(source),
        }
    })
}

/// What is wrong with a value. Where it stands in JSON is left out, because nobody wrote that: people write TOML.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongField(String);

impl WrongField {
    fn of(error: &serde_json::Error) -> Self {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let text = error.to_string();
        Self(text.strip_suffix(&place).unwrap_or(&text).to_owned())
    }
}

fn make_runtime(
    request: &v1::StartRequest,
    host: Arc<RemoteServices>,
) -> Result<tokio::runtime::Runtime> {
    let threads = request.worker_threads.clamp(1, WORKER_THREADS_MAX);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::try_from(threads).unwrap_or(1))
        .thread_name(format!("p:{}", request.instance))
        .on_thread_start(move || forward::enter_thread(&host))
        .enable_all()
        .build()
        .map_err(|source| {
            ProviderError::transient("the plugin's threads cannot be started").with_source(source)
        })
}

/// More than this is a typing error in a configuration.
const WORKER_THREADS_MAX: u32 = 64;

/// Exports a [`Plugin`](crate::Plugin) from this library, so that a host can load it: `export_provider!(Cloud);`, as in the
/// example of [the crate](crate).
///
/// The crate is a `cdylib`; with `crate-type = ["cdylib", "rlib"]` it can be linked into a program as well, as many
/// providers as one likes: the exported names end with the crate's name. A `cdylib` that links another provider's `rlib`
/// would hold two providers, and loaders refuse it; keep `export_provider!` in a crate of its own there.
///
/// Built with `panic = "abort"` it does not compile: one bug would end the host.
#[macro_export]
macro_rules! export_provider {
    ($plugin:ty) => {
        #[cfg(panic = "abort")]
        compile_error!(
            "a provider must be built with panic = \"unwind\": with \"abort\", one bug in it would end its host"
        );

        const _: () = {
            struct Exported;

            impl $crate::bridge::Export for Exported {
                type Plugin = $plugin;
                const NAME: &'static str = env!("CARGO_PKG_NAME");
                const VERSION: &'static str = env!("CARGO_PKG_VERSION");
            }

            $crate::bridge::abi::export_module!(
                $crate::bridge::Entry<Exported>,
                $crate::bridge::abi::manifest::MAGIC,
                "abi=",
                $crate::bridge::abi::VERSION,
                "\nsdk=",
                $crate::bridge::SDK_VERSION,
                "\nname=",
                env!("CARGO_PKG_NAME"),
                "\nversion=",
                env!("CARGO_PKG_VERSION"),
                "\nsymbol=",
                $crate::bridge::abi::manifest::SYMBOL_PREFIX,
                env!("CARGO_CRATE_NAME"),
                "\nrustc=",
                $crate::bridge::MANIFEST_RUSTC,
                "\ntarget=",
                $crate::bridge::MANIFEST_TARGET,
                "\npanic=",
                if cfg!(panic = "unwind") { "unwind" } else { "abort" },
                "\n\0",
            );
        };
    };
}
