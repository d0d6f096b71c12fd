//! The process that holds a pod's shared pid namespace.

use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use infranetes_sdk::{ProviderError, Result};
use rustix::thread::UnshareFlags;

use crate::error::io_error;

/// Starts the process when the first container asks for it; it ends with the provider.
pub(crate) struct Pause {
    command: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Pause {
    pub(crate) fn new(command: Vec<String>) -> Self {
        Self { command, child: Mutex::default() }
    }

    /// The process, running.
    pub(crate) fn pid(&self) -> Result<u32> {
        if self.command.is_empty() {
            return Err(ProviderError::unsupported(
                "containers of one pod cannot share their processes: `pause` is not configured",
            ));
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &mut *child
            && matches!(running.try_wait(), Ok(None))
        {
            return Ok(running.id());
        }
        let started =
            start(&self.command).map_err(io_error("cannot start the pod's first process"))?;
        let pid = started.id();
        *child = Some(started);
        Ok(pid)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts it as the first process of a new pid namespace.
fn start(command: &[String]) -> io::Result<Child> {
    let command = command.to_vec();
    // What a thread unshares is for the children of this thread alone.
    let starting = std::thread::Builder::new().name("pause".to_owned()).spawn(move || {
        #[expect(deprecated, reason = "sound: only sharing file descriptors anew would be unsafe")]
        rustix::thread::unshare(UnshareFlags::NEWPID)?;
        Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .spawn()
    })?;
    starting.join().map_err(|_| io::Error::other("the starting thread panicked"))?
}
