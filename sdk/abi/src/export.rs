//! The plugin's side: the static that a host finds.

use abi_stable::library::{
    __call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult,
};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::RVec;

use crate::{EndpointBox, PluginModule, PluginModuleRef, StartFuture};

/// What a plugin is, as far as the ABI knows.
pub trait Module: 'static {
    /// Starts an instance. Must not panic.
    extern "C" fn start(host: EndpointBox, request: RVec<u8>) -> StartFuture;
}

/// The header to export for `M`.
pub const fn header<M: Module>() -> LibHeader {
    // SAFETY: `constructor` gives a `PluginModuleRef`, which is the type named here.
    unsafe {
        LibHeader::from_constructor::<PluginModuleRef>(constructor::<M>, CheckTypeLayout::Yes)
    }
}

extern "C" fn constructor<M: Module>() -> RootModuleResult {
    __call_root_module_loader(module::<M>)
}

fn module<M: Module>() -> PluginModuleRef {
    PluginModule { start: M::start }.leak_into_prefix()
}

/// Exports a header and a manifest under names of the calling crate's own.
///
/// The names end with the crate's name, so that several providers link into one program (as `rlib`s) without a clash;
/// a loader reads the name from the manifest. Used by `export_provider!` of the SDK.
#[doc(hidden)]
#[macro_export]
macro_rules! export_module {
    ($module:ty, $($part:expr),+ $(,)?) => {
        const _: () = {
            const PARTS: &[&str] = &[$($part),+];

            // SAFETY: the name ends with the crate's own name, which nothing else defines.
            #[unsafe(export_name = concat!("INFRANETES_PROVIDER_V1_", env!("CARGO_CRATE_NAME")))]
            #[expect(unsafe_code, reason = "a plugin is found by its exported symbols")]
            static HEADER: $crate::abi_stable::library::LibHeader =
                $crate::export::header::<$module>();

            // SAFETY: as above; and plain bytes may live in any data section.
            #[used]
            #[unsafe(link_section = ".infranetes")]
            #[unsafe(export_name = concat!("INFRANETES_MANIFEST_V1_", env!("CARGO_CRATE_NAME")))]
            #[expect(unsafe_code, reason = "hosts read the manifest before any code runs")]
            static MANIFEST: [u8; $crate::manifest::length(PARTS)] =
                $crate::manifest::concat(PARTS);
        };
    };
}
