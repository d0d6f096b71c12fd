//! The agent of the guest image: the oci provider is part of it, so that it can be linked without shared libraries. A dynamic linker,
//! its libraries and a plugin file cost an emulated machine some 50 ms at each boot.

use std::process::ExitCode;

use futures::FutureExt;
use infranetes_agent::{plugins, program};
use infranetes_provider_oci::Oci;

fn main() -> ExitCode {
    program::run(|dir, state| {
        async move { plugins::link::<Oci>("oci", &dir, &state).await }.boxed()
    })
}
