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
use crate::unhurried::unhurried;

/// Waits until no plugin reads this file. Each may end its work first, because what was begun and not ended is what many
/// plugins cannot take back; after `grace` it is killed.
pub(crate) async fn end(stdin: &Path, grace: Duration) -> Result<(), CniError> {
    let began = Instant::now();
    loop {
        let Some(pid) = unhurried(|| reader_of(stdin)) else { return Ok(()) };
        if began.elapsed() >= grace + KILL_LIMIT {
            return Err(CniError::Orphan(pid.as_raw()));
        }
        // Gone meanwhile is what is wanted. Only one that leads its group was started by us.
        if began.elapsed() >= grace && getpgid(Some(pid)) == Ok(pid) {
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

/// How long a plugin of an earlier process may go on.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
const KILL_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn reader(path: &Path, seconds: &str) -> tokio::process::Child {
        fs::write(path, "").unwrap();
        let mut command = tokio::process::Command::new("sleep");
        command.arg(seconds).process_group(0).kill_on_drop(true);
        command.stdin(File::open(path).unwrap()).spawn().unwrap()
    }

    #[tokio::test]
    async fn who_reads_the_file_is_ended_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut ours = reader(&dir.path().join("ours"), "1000");
        let mut other = reader(&dir.path().join("other"), "1000");
        let reaped = tokio::spawn(async move { ours.wait().await });
        end(&dir.path().join("ours"), Duration::ZERO).await.unwrap();
        assert!(!reaped.await.unwrap().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().await.unwrap();
    }

    #[tokio::test]
    async fn who_ends_in_time_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut ours = reader(&dir.path().join("ours"), "0.2");
        let reaped = tokio::spawn(async move { ours.wait().await });
        end(&dir.path().join("ours"), Duration::from_secs(60)).await.unwrap();
        assert!(reaped.await.unwrap().unwrap().success());
    }
}
