//! Whether the other side's types are laid out as ours.

use std::fmt;

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{
    AbiInstability, AbiInstabilityErrors, ExpectedFound, check_layout_compatibility,
};
use abi_stable::type_layout::{TLFieldOrFunction, TypeLayout};

use crate::PluginModuleRef;

/// Where two layouts differ: "where: what was found instead of what was expected", a few of them.
#[derive(Debug)]
pub struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

/// Checks the layout of a plugin's module against ours, in both directions.
///
/// One direction is not enough: abi_stable accepts only a plugin that has at least the host's methods, and would refuse
/// an older one although its missing methods have defaults. So a plugin is good when it extends us, or we extend it.
pub fn check_layout(theirs: &'static TypeLayout) -> Result<(), Mismatch> {
    compare(<PluginModuleRef as StableAbi>::LAYOUT, theirs)
}

fn compare(ours: &'static TypeLayout, theirs: &'static TypeLayout) -> Result<(), Mismatch> {
    let Err(errors) = check_layout_compatibility(ours, theirs) else { return Ok(()) };
    if check_layout_compatibility(theirs, ours).is_ok() {
        return Ok(());
    }
    Err(Mismatch(summary(&errors)))
}

/// abi_stable's own text for one mismatch is several hundred lines; this is one.
fn summary(errors: &AbiInstabilityErrors) -> String {
    let mut lines = Vec::new();
    for error in &errors.errors {
        let mut places = error.stack_trace.iter().rev().map(|place| name_of(&place.found));
        // What stands in a tuple has only a number.
        let place = places.find(|name| name.parse::<u32>().is_err()).unwrap_or("the module");
        for what in &error.errs {
            let line = format!("{place}: {}", describe(what));
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines.truncate(LINES_MAX);
    lines.join("; ")
}

fn name_of(place: &TLFieldOrFunction) -> &str {
    match place {
        TLFieldOrFunction::Field(field) => field.name(),
        TLFieldOrFunction::Function(function) => function.name.as_str(),
    }
}

fn describe(what: &AbiInstability) -> String {
    fn versus<T: fmt::Display>(name: &str, v: &ExpectedFound<T>) -> String {
        format!("{name} {} instead of {}", v.found, v.expected)
    }
    match what {
        AbiInstability::Size(v) => versus("size", v),
        AbiInstability::Alignment(v) => versus("alignment", v),
        AbiInstability::Name(v) => versus("type", v),
        AbiInstability::Package(v) => versus("package", v),
        AbiInstability::PackageVersion(v) => versus("package version", v),
        AbiInstability::FieldCountMismatch(v) => {
            format!("{} fields instead of {}", v.found, v.expected)
        }
        AbiInstability::UnexpectedField(v) => {
            format!("field {:?} instead of {:?}", v.found.name(), v.expected.name())
        }
        AbiInstability::MismatchedPrefixSize(v) => {
            format!("{} fixed methods instead of {}", v.found, v.expected)
        }
        other => {
            let text = format!("{other:?}");
            text.split(['(', '{', ' ']).next().unwrap_or("another layout").to_owned()
        }
    }
}

/// Differences that a message lists; the rest follows from the first ones.
const LINES_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;

    /// The same names, one field more in what crosses by value.
    #[expect(unreachable_pub, dead_code, reason = "as the real ones")]
    mod liar {
        use super::super::super::*;

        #[repr(C)]
        #[derive(StableAbi)]
        pub struct RawRequest {
            pub method: RString,
            pub header: RVec<u8>,
            pub body: RVec<u8>,
            pub extra: u64,
        }

        #[sabi_trait]
        pub trait Endpoint: Send + Sync + 'static {
            fn notify(&self, method: RStr<'_>, body: RSlice<'_, u8>);
            fn call(&self, request: RawRequest) -> FfiFuture<RawReply>;
            #[sabi(last_prefix_field)]
            fn open(&self, request: RawRequest, input: ROption<StreamBox>) -> OpenFuture;
        }

        #[repr(C)]
        #[derive(StableAbi)]
        #[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
        #[sabi(missing_field(option))]
        pub struct PluginModule {
            #[sabi(last_prefix_field)]
            pub start: extern "C" fn(Endpoint_TO<RBox<()>>, RVec<u8>) -> StartFuture,
        }
    }

    /// The next minor version: one method and one field appended.
    #[expect(unreachable_pub, dead_code, reason = "as the real ones")]
    mod newer {
        use super::super::super::*;

        #[repr(C)]
        #[derive(StableAbi)]
        #[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
        #[sabi(missing_field(option))]
        pub struct PluginModule {
            #[sabi(last_prefix_field)]
            pub start: extern "C" fn(EndpointBox, RVec<u8>) -> StartFuture,
            pub probe: extern "C" fn() -> u32,
        }
    }

    #[test]
    fn our_own_layout_is_accepted() {
        check_layout(<PluginModuleRef as StableAbi>::LAYOUT).expect("the same types");
    }

    #[test]
    fn a_newer_minor_is_accepted() {
        check_layout(<newer::PluginModuleRef as StableAbi>::LAYOUT).expect("an appended field");
    }

    #[test]
    fn a_newer_host_accepts_a_plugin_of_today() {
        let newer = <newer::PluginModuleRef as StableAbi>::LAYOUT;
        compare(newer, <PluginModuleRef as StableAbi>::LAYOUT).expect("a field less");
        compare(newer, <liar::PluginModuleRef as StableAbi>::LAYOUT).expect_err("another struct");
    }

    #[test]
    fn another_struct_under_the_same_name_is_refused_in_one_line() {
        let error = check_layout(<liar::PluginModuleRef as StableAbi>::LAYOUT)
            .expect_err("one field more")
            .to_string();
        assert!(error.contains("4 fields instead of 3"), "{error}");
        assert!(error.contains("size 104 instead of 96"), "{error}");
        assert!(error.len() < 400 && !error.contains('\n'), "{error}");
    }
}
