//! The processes that hold what a pod's containers share: a pid namespace, and users that are others in the machine.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use infranetes_sdk::v1::UserNamespace;
use infranetes_sdk::{ProviderError, Result};
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use crate::error::io_error;

/// Starts a process when the first container asks for it; it ends with the provider.
pub(crate) struct Pause {
    command: Vec<String>,
    running: Mutex<Vec<Running>>,
}

/// What runs for one mapping of users; without one, for the machine's own.
struct Running {
    users: Option<UserNamespace>,
    child: Child,
    /// The first process of the namespace: the child itself, or one of its.
    first: u32,
}

impl Pause {
    pub(crate) fn new(command: Vec<String>) -> Self {
        Self { command, running: Mutex::default() }
    }

    /// The first process of the pod's pid namespace. It has the pod's users, and so has that namespace.
    pub(crate) fn pid(&self, users: Option<UserNamespace>) -> Result<u32> {
        if self.command.is_empty() {
            return Err(ProviderError::unsupported(
                "containers of one pod cannot share processes or users: `pause` is not configured",
            ));
        }
        let mut all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain_mut(|one| matches!(one.child.try_wait(), Ok(None)));
        if let Some(running) = all.iter().find(|one| one.users == users) {
            return Ok(running.first);
        }
        let started = match users {
            None => start(&self.command),
            Some(users) => start_with_users(&self.command, users),
        };
        let started = started.map_err(io_error("cannot start the pod's first process"))?;
        let first = started.first;
        all.push(started);
        Ok(first)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        let mut all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        for running in all.iter_mut() {
            running.end();
        }
    }
}

impl Running {
    fn end(&mut self) {
        // It was not waited for: its parent is still there, so the number is still its.
        if let Ok(None) = self.child.try_wait()
            && self.first != self.child.id()
            && let Some(first) = Pid::from_raw(self.first.cast_signed())
        {
            let _ = rustix::process::kill_process(first, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts it as the first process of a new pid namespace.
fn start(command: &[String]) -> io::Result<Running> {
    let command = command.to_vec();
    // What a thread unshares is for the children of this thread alone.
    let starting = std::thread::Builder::new().name("pause".to_owned()).spawn(move || {
        #[expect(deprecated, reason = "sound: only sharing file descriptors anew would be unsafe")]
        rustix::thread::unshare(UnshareFlags::NEWPID)?;
        program(&command).stdin(Stdio::null()).stdout(Stdio::null()).spawn()
    })?;
    let child = starting.join().map_err(|_| io::Error::other("the starting thread panicked"))??;
    Ok(Running { users: None, first: child.id(), child })
}

/// A user namespace is left by a process with one thread alone: the program does it by itself, and waits for its maps, which
/// only somebody outside may write.
fn start_with_users(command: &[String], users: UserNamespace) -> io::Result<Running> {
    let mut child = program(command)
        .arg("--user-namespace")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    match map_users(&mut child, users) {
        Ok(first) => Ok(Running { users: Some(users), child, first }),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// The number of the first process of the pid namespace.
fn map_users(child: &mut Child, users: UserNamespace) -> io::Result<u32> {
    let gone = || io::Error::other("the process ended before it had its users");
    let mut said = BufReader::new(child.stdout.take().ok_or_else(gone)?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    if line != "ready\n" {
        return Err(gone());
    }
    let map = |file: &str, first: u32, count: u32| {
        fs::write(format!("/proc/{}/{file}", child.id()), format!("0 {first} {count}\n"))
    };
    map("uid_map", users.first_uid, users.uid_count)?;
    map("gid_map", users.first_gid, users.gid_count)?;
    child.stdin.take().ok_or_else(gone)?.write_all(b"\n")?;
    line.clear();
    said.read_line(&mut line)?;
    line.trim().parse().map_err(|_| gone())
}

fn program(command: &[String]) -> Command {
    let mut program = Command::new(&command[0]);
    program.args(&command[1..]).stderr(Stdio::null()).env_clear();
    program
}
