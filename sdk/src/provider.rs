//! The provider traits. Each is written once, as a table of methods from which the trait, the plugin's dispatcher and
//! the host's proxy are made.

pub(crate) mod container;
pub(crate) mod pod;
pub(crate) mod volume;

pub use container::{ContainerProvider, RemoteContainers};
pub use pod::{PodProvider, RemotePods};
pub use volume::{RemoteVolumes, VolumeProvider};

/// Makes a provider trait, its dispatcher (`call`, `open`) and its proxy from a table of its methods.
///
/// `rpc` methods take a message and answer one; `stream` methods take a message and answer a stream; `duplex` methods
/// take a stream and answer a stream. A method without a body of its own answers `Unsupported`.
macro_rules! provider {
    (
        $(#[$trait_doc:meta])*
        trait $trait:ident = $service:literal, proxy $proxy:ident;
        rpc { $( $(#[$rpc_doc:meta])* $rpc:ident($rpc_in:ident) -> $rpc_out:ident; )* }
        stream { $( $(#[$stream_doc:meta])* $stream:ident($stream_in:ident) -> $stream_out:ident; )* }
        duplex { $( $(#[$duplex_doc:meta])* $duplex:ident($duplex_in:ident) -> $duplex_out:ident; )* }
    ) => {
        $(#[$trait_doc])*
        #[async_trait::async_trait]
        pub trait $trait: Send + Sync + 'static {
            $(
                $(#[$rpc_doc])*
                async fn $rpc(
                    &self,
                    ctx: $crate::CallContext,
                    request: $crate::v1::$rpc_in,
                ) -> $crate::Result<$crate::v1::$rpc_out> {
                    let _ = (ctx, request);
                    Err($crate::provider::unsupported(concat!($service, "/", stringify!($rpc))))
                }
            )*
            $(
                $(#[$stream_doc])*
                async fn $stream(
                    &self,
                    ctx: $crate::CallContext,
                    request: $crate::v1::$stream_in,
                ) -> $crate::Result<$crate::BoxStream<$crate::v1::$stream_out>> {
                    let _ = (ctx, request);
                    Err($crate::provider::unsupported(concat!($service, "/", stringify!($stream))))
                }
            )*
            $(
                $(#[$duplex_doc])*
                async fn $duplex(
                    &self,
                    ctx: $crate::CallContext,
                    input: $crate::BoxStream<$crate::v1::$duplex_in>,
                ) -> $crate::Result<$crate::BoxStream<$crate::v1::$duplex_out>> {
                    let _ = (ctx, input);
                    Err($crate::provider::unsupported(concat!($service, "/", stringify!($duplex))))
                }
            )*
        }

        /// Runs a method that answers once.
        pub(crate) async fn call(
            provider: &dyn $trait,
            method: &str,
            ctx: $crate::CallContext,
            body: &[u8],
        ) -> $crate::Result<Vec<u8>> {
            match method {
                $(
                    stringify!($rpc) => {
                        let request = $crate::bridge::decode(concat!($service, "/", stringify!($rpc)), body)?;
                        let reply = provider.$rpc(ctx, request).await?;
                        Ok(prost::Message::encode_to_vec(&reply))
                    }
                )*
                _ => Err($crate::provider::unknown($service, method)),
            }
        }

        /// Opens a method that answers a stream.
        pub(crate) async fn open(
            provider: &dyn $trait,
            method: &str,
            ctx: $crate::CallContext,
            body: &[u8],
            input: Option<$crate::BoxStream<Vec<u8>>>,
        ) -> $crate::Result<$crate::BoxStream<Vec<u8>>> {
            let _ = (provider, &ctx, body, &input);
            match method {
                $(
                    stringify!($stream) => {
                        let request = $crate::bridge::decode(concat!($service, "/", stringify!($stream)), body)?;
                        Ok($crate::bridge::encode_stream(provider.$stream(ctx, request).await?))
                    }
                )*
                $(
                    stringify!($duplex) => {
                        const METHOD: &str = concat!($service, "/", stringify!($duplex));
                        let input = input.ok_or_else(|| $crate::provider::no_input(METHOD))?;
                        let input = $crate::bridge::decode_stream(METHOD, input);
                        Ok($crate::bridge::encode_stream(provider.$duplex(ctx, input).await?))
                    }
                )*
                _ => Err($crate::provider::unknown($service, method)),
            }
        }

        #[doc = concat!("A [`", stringify!($trait), "`] on the other side of the boundary.")]
        #[derive(Clone)]
        pub struct $proxy($crate::bridge::Remote);

        impl $proxy {
            /// Calls go to `remote`.
            pub fn new(remote: $crate::bridge::Remote) -> Self {
                Self(remote)
            }
        }

        #[async_trait::async_trait]
        impl $trait for $proxy {
            $(
                async fn $rpc(
                    &self,
                    ctx: $crate::CallContext,
                    request: $crate::v1::$rpc_in,
                ) -> $crate::Result<$crate::v1::$rpc_out> {
                    self.0.call(concat!($service, "/", stringify!($rpc)), &ctx, &request).await
                }
            )*
            $(
                async fn $stream(
                    &self,
                    ctx: $crate::CallContext,
                    request: $crate::v1::$stream_in,
                ) -> $crate::Result<$crate::BoxStream<$crate::v1::$stream_out>> {
                    self.0.stream(concat!($service, "/", stringify!($stream)), &ctx, &request).await
                }
            )*
            $(
                async fn $duplex(
                    &self,
                    ctx: $crate::CallContext,
                    input: $crate::BoxStream<$crate::v1::$duplex_in>,
                ) -> $crate::Result<$crate::BoxStream<$crate::v1::$duplex_out>> {
                    self.0.duplex(concat!($service, "/", stringify!($duplex)), &ctx, input).await
                }
            )*
        }
    };
}
pub(crate) use provider;

/// What a host newer than this SDK may ask for.
pub(crate) fn unknown(service: &str, method: &str) -> crate::ProviderError {
    crate::bridge::unknown(&format!("{service}/{method}"))
}

/// What a host that opens a duplex method without its input gets.
pub(crate) fn no_input(method: &str) -> crate::ProviderError {
    crate::ProviderError::invalid(format!("{method} needs a stream of input"))
}

/// What a method answers that a provider leaves out.
pub(crate) fn unsupported(method: &str) -> crate::ProviderError {
    crate::ProviderError::unsupported(format!("this provider does not do {method}"))
}
