//! The process of a machine: found again by number and start time, held by a file descriptor that can never mean another
//! process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::record::ProcessRecord;

/// A living process, or one that ended and that we still hold.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: AsyncFd<OwnedFd>,
    pub(crate) record: ProcessRecord,
}

impl Process {
    /// Takes hold of a process; `None` if it is gone.
    pub(crate) fn hold(record: ProcessRecord) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(record.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Asked after the descriptor is open, the start time is that of the process that we hold.
        if start_time(record.pid) != Some(record.start_time) {
            return Ok(None);
        }
        #[expect(
            deprecated,
            reason = "its successor is unsafe code; an owned descriptor keeps the promise that it wants"
        )]
        let pidfd = AsyncFd::new(pidfd)?;
        Ok(Some(Self { pidfd, record }))
    }

    /// Waits until it ended.
    pub(crate) async fn ended(&self) {
        // A descriptor that cannot be waited for any more is one whose process cannot be known: treat it as ended.
        let _ = self.pidfd.readable().await;
    }

    /// Waits until it ended, at most so long. False if it did not.
    pub(crate) async fn ended_within(&self, limit: Duration) -> bool {
        timeout(limit, self.ended()).await.is_ok()
    }

    /// Kills it. Ended already is success.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// When a process started, in clock ticks since the node booted; `None` if it is gone or only waits to be reaped.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat)
}

/// The name of a process may hold anything, so fields are counted from the last parenthesis.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(START_TIME_AFTER_STATE)?.parse().ok()
}

/// The id of the node's boot.
pub(crate) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// Whether we may become other users.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Field 22 of `stat`, where the state is field 3.
const START_TIME_AFTER_STATE: usize = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_read_whatever_the_name_is() {
        for (stat, expected) in [
            ("5 (sh) S 1 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 8399 1 2", Some(8399)),
            ("5 (a) b) S) R 1 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 77 1 2", Some(77)),
            ("5 (sh) Z 1 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 8399 1 2", None),
            ("5 (sh) S 1", None),
            ("", None),
        ] {
            assert_eq!(parse_stat(stat), expected, "{stat}");
        }
    }

    #[tokio::test]
    async fn a_reused_number_is_not_mistaken_for_the_process() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let start_time = start_time(pid).expect("it lives");
        assert!(Process::hold(ProcessRecord { pid, start_time }).expect("held").is_some());
        let other = ProcessRecord { pid, start_time: start_time + 1 };
        assert!(Process::hold(other).expect("looked").is_none());
    }
}
