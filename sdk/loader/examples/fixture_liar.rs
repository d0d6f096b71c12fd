//! A library whose manifest fits and whose types do not: the linker accepts it, the layout check must not.

use infranetes_sdk::bridge::abi::abi_stable;
use infranetes_sdk::bridge::abi::abi_stable::StableAbi;
use infranetes_sdk::bridge::abi::abi_stable::library::{
    __call_root_module_loader, CheckTypeLayout, LibHeader, RootModule, RootModuleResult,
};
use infranetes_sdk::bridge::abi::abi_stable::prefix_type::PrefixTypeTrait;
use infranetes_sdk::bridge::abi::abi_stable::sabi_types::VersionStrings;
use infranetes_sdk::bridge::abi::abi_stable::std_types::RVec;
use infranetes_sdk::bridge::{self, abi};

/// The right name, another shape.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
#[sabi(missing_field(option))]
pub struct PluginModule {
    /// Starts with other arguments.
    #[sabi(last_prefix_field)]
    pub start: extern "C" fn(u64, RVec<u8>) -> u64,
}

impl RootModule for PluginModuleRef {
    const BASE_NAME: &'static str = "infranetes_provider";
    const NAME: &'static str = "infranetes_provider";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new(abi::VERSION);

    abi_stable::declare_root_module_statics! {PluginModuleRef}
}

extern "C" fn start(_: u64, _: RVec<u8>) -> u64 {
    panic!("a library whose layout is refused must never run")
}

fn module() -> PluginModuleRef {
    PluginModule { start }.leak_into_prefix()
}

extern "C" fn constructor() -> RootModuleResult {
    __call_root_module_loader(module)
}

#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "exports what a plugin exports")]
static INFRANETES_PROVIDER_V1_liar: LibHeader =
    // SAFETY: the constructor gives the type that is named.
    unsafe {
        LibHeader::from_constructor::<PluginModuleRef>(constructor, CheckTypeLayout::Yes)
    };

const PARTS: &[&str] = &[
    abi::manifest::MAGIC,
    "abi=1.0.0\nsdk=0.1.0\nname=liar\nversion=0.1.0\nsymbol=INFRANETES_PROVIDER_V1_liar\ntarget=",
    bridge::MANIFEST_TARGET,
    "\npanic=unwind\n\0",
];

#[used]
#[unsafe(link_section = ".infranetes")]
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "exports what a plugin exports")]
static INFRANETES_MANIFEST_V1_liar: [u8; abi::manifest::length(PARTS)] =
    abi::manifest::concat(PARTS);
