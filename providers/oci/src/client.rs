//! Speaks to the OCI runtime: the command lines of `crun` and `runc`.
//!
//! A container and an exec each are a runtime process in the foreground, our own child: it stays the parent of what it runs
//! and answers with its exit code, so that nobody else can reap the status away, and no shim is needed. That costs about
//! 0.3 MiB of private memory each. The agent reaps only zombies that are left over for a while (see its reaper), and the
//! runtime's are collected at once.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use infranetes_sdk::{ErrorKind, ProviderError, Result};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::convert::spec::Resources;
use crate::error::io_error;

/// The runtime, and where it keeps its state.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    program: PathBuf,
    state: PathBuf,
}

/// The files of one run, be it of a container or in one.
#[derive(Debug, Clone)]
pub(crate) struct RunFiles {
    /// Written by the runtime once the process exists.
    pub(crate) pid: PathBuf,
    /// What the runtime says when something fails.
    pub(crate) log: PathBuf,
}

/// What the runtime said.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RuntimeSaid(String);

/// How the standard streams are given.
pub(crate) enum Streams<'a> {
    /// Pipes; without input it is `/dev/null`.
    Pipes { stdin: bool },
    /// A terminal, whose other end arrives at this socket.
    Terminal { socket: &'a Path },
}

impl Runtime {
    pub(crate) fn new(program: PathBuf, state: PathBuf) -> Self {
        Self { program, state }
    }

    /// Starts a container in the foreground.
    pub(crate) fn run(
        &self,
        id: &str,
        bundle: &Path,
        files: &RunFiles,
        streams: &Streams<'_>,
    ) -> Result<Child> {
        let mut command = self.command(files);
        command.arg("run").arg("--bundle").arg(bundle).arg("--pid-file").arg(&files.pid);
        self.spawn(command, id, &[], streams)
    }

    /// Starts a process in a container; `process` is a file of the specification's form.
    pub(crate) fn exec(
        &self,
        id: &str,
        process: &Path,
        files: &RunFiles,
        streams: &Streams<'_>,
    ) -> Result<Child> {
        let mut command = self.command(files);
        command.arg("exec").arg("--process").arg(process).arg("--pid-file").arg(&files.pid);
        self.spawn(command, id, &[], streams)
    }

    /// Changes limits.
    pub(crate) async fn update(&self, id: &str, resources: &Resources) -> Result<()> {
        let file = self.state.join(format!("{id}.update"));
        let text = serde_json::to_vec(resources).map_err(std::io::Error::from);
        let written = text.and_then(|text| std::fs::write(&file, text));
        written.map_err(io_error("cannot write the new limits"))?;
        let mut command = self.bare();
        command.arg("update").arg("--resources").arg(&file).arg(id);
        let updated = self.finish(command, "the runtime cannot change the limits").await;
        let _ = std::fs::remove_file(&file);
        updated
    }

    /// Sends a signal that has no name.
    pub(crate) async fn kill(&self, id: &str, signal: i32) -> Result<()> {
        let mut command = self.bare();
        command.arg("kill").arg(id).arg(signal.to_string());
        self.finish(command, "the runtime cannot send the signal").await
    }

    /// Removes what the runtime knows of a container; nothing is success.
    pub(crate) async fn delete(&self, id: &str) -> Result<()> {
        if !self.state.join(id).exists() {
            return Ok(());
        }
        let mut command = self.bare();
        command.args(["delete", "--force"]).arg(id);
        self.finish(command, "the runtime cannot delete the container").await
    }

    fn bare(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn command(&self, files: &RunFiles) -> Command {
        let mut command = self.bare();
        command.arg("--log").arg(&files.log).args(["--log-format", "json"]);
        command
    }

    fn spawn(
        &self,
        mut command: Command,
        id: &str,
        args: &[&str],
        streams: &Streams<'_>,
    ) -> Result<Child> {
        match streams {
            Streams::Pipes { stdin } => {
                command.stdin(if *stdin { Stdio::piped() } else { Stdio::null() });
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            Streams::Terminal { socket } => {
                command.arg("--console-socket").arg(socket);
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        command.arg(id).args(args);
        // Signals for our process group are not for containers; and a child that is dropped is still waited for.
        command.process_group(0).kill_on_drop(false);
        command.spawn().map_err(|error| self.not_started(error))
    }

    async fn finish(&self, mut command: Command, failed: &str) -> Result<()> {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let output = timeout(COMMAND_TIMEOUT, command.output())
            .await
            .map_err(|_| ProviderError::deadline_exceeded(failed))?
            .map_err(|error| self.not_started(error))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ProviderError::internal(failed).with_source(RuntimeSaid(said)))
    }

    fn not_started(&self, error: std::io::Error) -> ProviderError {
        let program = self.program.display();
        if error.kind() == std::io::ErrorKind::NotFound {
            return ProviderError::new(
                ErrorKind::Unsupported,
                format!("the OCI runtime {program} is not installed in this machine"),
            )
            .with_source(error);
        }
        io_error(format!("cannot start the OCI runtime {program}"))(error)
    }
}

impl RunFiles {
    /// The process, once the runtime wrote it down.
    pub(crate) fn read_pid(&self) -> Option<u32> {
        std::fs::read_to_string(&self.pid).ok()?.trim().parse().ok()
    }

    /// The last error that the runtime logged.
    pub(crate) fn error(&self) -> Option<String> {
        let text = std::fs::read_to_string(&self.log).ok()?;
        let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        lines.filter(|line| line.level == "error").map(|line| line.msg).next()
    }

    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.pid);
        let _ = std::fs::remove_file(&self.log);
    }
}

/// A line of the runtime's log.
#[derive(Deserialize)]
struct Line {
    msg: String,
    level: String,
}

/// What the runtime wrote where the program's errors go, when executing it failed after all else was in place: by then its log
/// is out of reach.
pub(crate) fn said_at_the_last_moment(stderr: &[u8]) -> Option<String> {
    let text = str::from_utf8(stderr).ok()?.trim();
    if let Ok(line) = serde_json::from_str::<Line>(text) {
        // crun. Programs write JSON, too: only this sentence counts.
        return Some(line.msg).filter(|said| said.starts_with("exec container process"));
    }
    // runc.
    (text.starts_with("exec /") && text.ends_with(": exec format error")).then(|| text.to_owned())
}

/// The exit code of a program that the runtime could not run, as shells have it.
///
/// Runtimes say it in words alone; these are those of `crun` and `runc`. What else they could not do is not the program's: 128.
pub(crate) fn failed_exec_code(said: &str) -> i32 {
    let said = said.to_ascii_lowercase();
    if !["executable", "exec container process", "exec: ", "exec /"]
        .iter()
        .any(|of| said.contains(of))
    {
        128
    } else if said.contains("no such file") || said.contains("not found") {
        127
    } else if said.contains("permission denied")
        || said.contains("exec format error")
        || said.contains("is a directory")
    {
        126
    } else {
        128
    }
}

/// The error of a program that could not be run.
pub(crate) fn cannot_run(said: String) -> ProviderError {
    ProviderError::invalid("the container's program cannot be run").with_source(RuntimeSaid(said))
}

/// The error of a runtime that could not do its part.
pub(crate) fn runtime_failed(said: String) -> ProviderError {
    ProviderError::internal("the runtime cannot run the program").with_source(RuntimeSaid(said))
}

/// 128 + signal for a killed one.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_be_run_is_told_from_a_runtime_that_fails() {
        for (said, code) in [
            ("executable file `/nosuch` not found in $PATH: No such file or directory", 127),
            ("executable file `/etc` is a directory", 126),
            ("exec container process `/bin/arm`: Exec format error", 126),
            ("exec container process `/a`: Permission denied", 126),
            (
                "exec container process (missing dynamic library?) `/a`: No such file or directory",
                127,
            ),
            (
                "runc create failed: unable to start container process: exec: \"x\": executable file not found in $PATH",
                127,
            ),
            ("exec /x: exec format error", 126),
            ("open executable: Permission denied", 126),
            ("open `/sys/fs/cgroup/hugetlb/p/c`: No such file or directory", 128),
            ("open `/proc/sys/kernel/shmmax`: Permission denied", 128),
            ("mount `/a` to `b`: Permission denied", 128),
            ("cannot set memory+swap limit", 128),
        ] {
            assert_eq!(failed_exec_code(said), code, "{said}");
        }
    }
}
