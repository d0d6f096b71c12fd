//! What exec, attach and port-forward are to be connected to.

use infranetes_core::ids::{ContainerId, SandboxId};
use infranetes_core::session::duplex::ExecStart;

use super::{Refusal, exec_args};
use crate::api::v1;
use crate::streaming::{Outputs, Target};

type Result<T> = std::result::Result<T, Refusal>;

/// The command of an exec in this container.
pub fn exec_target(request: v1::ExecRequest, container: ContainerId) -> Result<Target> {
    let v1::ExecRequest { cmd, tty, stdin, stdout, stderr, .. } = request;
    let outputs = outputs(tty, stdin, stdout, stderr)?;
    let start = ExecStart { container, args: exec_args(cmd)?, tty, stdin, timeout: None };
    Ok(Target::Exec { start, outputs })
}

/// The streams of an attach to this container.
pub fn attach_target(request: &v1::AttachRequest, container: ContainerId) -> Result<Target> {
    let v1::AttachRequest { tty, stdin, stdout, stderr, .. } = *request;
    let outputs = outputs(tty, stdin, stdout, stderr)?;
    Ok(Target::Attach { container, stdin, tty, outputs })
}

/// The ports of a forward to this sandbox; SPDY's clients name them later.
pub fn port_forward_target(request: &v1::PortForwardRequest, sandbox: SandboxId) -> Result<Target> {
    if request.port.len() > PORTS_MAX {
        return Err(Refusal::invalid("port", format!("at most {PORTS_MAX} ports can be named")));
    }
    let port = |port: &i32| match u16::try_from(*port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(Refusal::invalid("port", format!("{port} is not between 1 and 65535"))),
    };
    let ports = request.port.iter().map(port).collect::<Result<_>>()?;
    Ok(Target::PortForward { sandbox, ports })
}

/// As CRI wants it: something has to be streamed, and a terminal has one output.
fn outputs(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<Outputs> {
    if tty && stderr {
        return Err(Refusal::invalid("stderr", "a terminal has no standard error of its own"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Refusal::invalid("stdout", "one of stdin, stdout and stderr has to be true"));
    }
    Ok(Outputs { stdout, stderr })
}

/// As many as WebSocket's channels have room for.
const PORTS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_streamed_has_to_make_sense() {
        let id = || ContainerId::from_random([1; 32]);
        let attach = |tty, stdin, stdout, stderr| {
            let container_id = id().to_string();
            attach_target(&v1::AttachRequest { container_id, tty, stdin, stdout, stderr }, id())
        };
        assert!(attach(false, false, false, false).is_err());
        assert!(attach(true, true, true, true).is_err());
        let outputs = Outputs { stdout: true, stderr: false };
        let expected = Target::Attach { container: id(), stdin: true, tty: true, outputs };
        assert_eq!(attach(true, true, true, false), Ok(expected));

        let exec = |cmd: &[&str]| {
            let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
            exec_target(v1::ExecRequest { cmd, stdout: true, ..Default::default() }, id())
        };
        assert!(exec(&["true"]).is_ok());
        assert!(exec(&[]).is_err());

        let sandbox = || SandboxId::from_random([1; 32]);
        let forward = |port: Vec<i32>| {
            port_forward_target(&v1::PortForwardRequest { port, ..Default::default() }, sandbox())
        };
        assert!(forward(vec![]).is_ok() && forward(vec![80, 65535]).is_ok());
        for wrong in [vec![0], vec![-1], vec![65536], vec![80; PORTS_MAX + 1]] {
            assert!(forward(wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
