//! The first process of a pid namespace that a pod's containers share: it waits, and reaps what they leave behind.
//!
//! The container plugin starts the agent's own program for it, so that a guest needs no other.

use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Waits until it is told to end. As the first process of its namespace it takes all others with it.
pub fn run() -> ExitCode {
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGCHLD);
    awaited.add(Signal::SIGTERM);
    awaited.add(Signal::SIGINT);
    if let Err(error) = awaited.thread_block() {
        eprintln!("infranetes-agent: signals cannot be awaited: {error}");
        return ExitCode::FAILURE;
    }
    loop {
        reap();
        match awaited.wait() {
            Ok(Signal::SIGTERM | Signal::SIGINT) => return ExitCode::SUCCESS,
            Ok(_) => {}
            Err(error) => {
                eprintln!("infranetes-agent: signals cannot be awaited: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}
