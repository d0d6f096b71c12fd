//! The provider traits. Each is written once, as a table of methods from which the trait, the plugin's dispatcher and
//! the host's proxy are made.

mod container;
mod pod;
mod volume;

pub use container::ContainerProvider;
pub use pod::PodProvider;
pub use volume::VolumeProvider;

/// Makes a provider trait from a table of its methods.
///
/// `rpc` methods take a message and answer one; `stream` methods take a message and answer a stream; `duplex` methods
/// take a stream and answer a stream. A method without a body of its own answers `Unsupported`.
macro_rules! provider {
    (
        $(#[$trait_doc:meta])*
        trait $trait:ident = $service:literal;
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
    };
}
pub(crate) use provider;

pub(crate) fn unsupported(method: &str) -> crate::ProviderError {
    crate::ProviderError::unsupported(format!("this provider does not do {method}"))
}
