//! Plugins that outlived the daemon that ran them. Another plugin for the same sandbox must not work beside one.
//!
//! A plugin's standard input is a file that belongs to its sandbox alone, so whoever has it open as such is one. The plugin
//! leads a process group, in which are the plugins that it runs itself.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};
use tokio::time::{Instant, sleep};

use crate::error::CniError;

/// Ends all plugins that read this file, and waits until they are gone.
pub(crate) async fn end(stdin: &Path) -> Result<(), CniError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let Some(pid) = reader_of(stdin) else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(CniError::Orphan(pid.as_raw()));
        }
        // Gone meanwhile is what is wanted. Only one that leads its group was started by us.
        if getpgid(Some(pid)) == Ok(pid) {
            tracing::warn!(pid = pid.as_raw(), "a CNI plugin of an earlier process is killed");
            let _ = killpg(pid, Signal::SIGKILL);
        }
        sleep(POLL).await;
    }
}

fn reader_of(stdin: &Path) -> Option<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let reads = |pid: &i32| fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|at| at == stdin);
    pids.find(reads).map(Pid::from_raw)
}

const LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[tokio::test]
    async fn who_reads_the_file_is_ended_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let sleeper = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            let mut command = tokio::process::Command::new("sleep");
            command.arg("1000").process_group(0).kill_on_drop(true);
            command.stdin(File::open(path).unwrap()).spawn().unwrap()
        };
        let (mut ours, mut other) = (sleeper("ours"), sleeper("other"));
        let reaped = tokio::spawn(async move { ours.wait().await });
        end(&dir.path().join("ours")).await.unwrap();
        assert!(!reaped.await.unwrap().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().await.unwrap();
    }
}
