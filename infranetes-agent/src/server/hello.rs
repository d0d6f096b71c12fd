//! The first words of a session: versions and who is there.

use infranetes_agent_protocol::v1::{BootTimes, HelloRequest, HelloResponse};
use infranetes_agent_protocol::{OLDEST_PROTOCOL, PROTOCOL};
use tonic::Status;

use crate::machine::Machine;
use crate::times::now_us;

/// The hello of an enrolment: what `enrol` does stands between the look at versions and the answer.
pub(crate) fn first_hello(
    machine: &Machine,
    request: &HelloRequest,
    enrol: impl FnOnce() -> Result<(), Status>,
) -> Result<HelloResponse, Status> {
    let version = agreed(request)?;
    enrol()?;
    let _ = machine.first_version.set(version);
    Ok(response(machine, version, String::new()))
}

/// The version that both speak, and the answer.
pub(super) async fn answer(
    machine: &Machine,
    request: &HelloRequest,
) -> Result<(u32, HelloResponse), Status> {
    let version = agreed(request)?;
    let binding = machine.binding.lock().await;
    let sandbox_id = binding.as_ref().map(|bound| bound.sandbox_id.clone()).unwrap_or_default();
    Ok((version, response(machine, version, sandbox_id)))
}

fn agreed(request: &HelloRequest) -> Result<u32, Status> {
    common_version(request.oldest_protocol, request.protocol).ok_or_else(|| {
        Status::failed_precondition(format!(
            "no common protocol: the agent speaks {OLDEST_PROTOCOL} to {PROTOCOL}, the node {} to {}",
            request.oldest_protocol, request.protocol
        ))
    })
}

fn response(machine: &Machine, version: u32, sandbox_id: String) -> HelloResponse {
    let uname = nix::sys::utsname::uname().ok();
    let text = |part: Option<&std::ffi::OsStr>| {
        part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
    };
    HelloResponse {
        protocol: version,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: machine.boot_id.clone(),
        sandbox_id,
        kernel_release: text(uname.as_ref().map(|uname| uname.release())),
        architecture: text(uname.as_ref().map(|uname| uname.machine())),
        times: Some(BootTimes {
            agent_started_us: machine.times.started_us(),
            listening_us: machine.times.listening_us(),
            enrolled_us: machine.times.enrolled_us(),
            now_us: now_us(),
        }),
        capabilities: Vec::new(),
    }
}

fn common_version(oldest: u32, newest: u32) -> Option<u32> {
    let version = newest.min(PROTOCOL);
    (version >= oldest.max(OLDEST_PROTOCOL)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_both_know_is_spoken() {
        let cases = [
            (1, 1, Some(1)),
            (1, PROTOCOL + 3, Some(PROTOCOL)),
            (PROTOCOL + 1, PROTOCOL + 3, None),
            (0, 0, None),
            (2, 1, None),
        ];
        for (oldest, newest, expected) in cases {
            assert_eq!(common_version(oldest, newest), expected, "{oldest} to {newest}");
        }
    }
}
