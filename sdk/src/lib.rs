//! Write a provider for infranetes: the traits, their types and the plugin export.

/// Version 1 of the messages that cross the plugin boundary.
#[expect(missing_docs, reason = "generated from the commented definitions in `proto/`")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/infranetes.provider.v1.rs"));
}
