//! The first process of a pid namespace that a pod's containers share: it waits, and reaps what they leave behind.
//!
//! The container plugin starts the agent's own program for it, so that a guest needs no other. A pod whose users are others
//! in the machine needs one more step, because only a process with one thread can leave its user namespace:
//!
//! ```text
//!  --pause --user-namespace ── unshares users, says "ready" ◄── the plugin writes the maps, and a byte
//!        └── unshares the pid namespace ── starts --pause in it, says its number, and waits for its end
//! ```

use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
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

/// Holds a user namespace, and a pid namespace that belongs to it.
pub fn run_with_users() -> ExitCode {
    match hold_users() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("infranetes-agent: the pod's users cannot be held: {error}");
            ExitCode::FAILURE
        }
    }
}

fn hold_users() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    say("ready")?;
    io::stdin().read_exact(&mut [0])?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let mut first = Command::new("/proc/self/exe")
        .arg("--pause")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    say(&first.id().to_string())?;
    first.wait().map(drop)
}

fn say(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}
