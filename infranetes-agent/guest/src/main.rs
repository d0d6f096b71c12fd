//! The agent of the guest image: the oci provider is part of it, so that it can be linked without shared libraries. A dynamic linker
//! and a plugin file cost a machine that boots more than all else that the agent does before its sandbox is ready.

use std::process::ExitCode;

use futures::FutureExt;
use infranetes_agent::{plugins, program};
use infranetes_provider_oci::Oci;

fn main() -> ExitCode {
    program::run(|dir, state| {
        async move { plugins::link::<Oci>("oci", &dir, &state).await }.boxed()
    })
}
