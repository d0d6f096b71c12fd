//! Processes of a machine: found again by number and start time, held by a descriptor that can never mean another process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::record::ProcessRecord;

/// A process that lives, or that ended while we held it.
#[derive(Debug)]
pub(crate) struct Held {
    pidfd: AsyncFd<OwnedFd>,
    pub(crate) record: ProcessRecord,
}

impl Held {
    /// Takes hold of a process; `None` if it is gone.
    pub(crate) fn of(record: ProcessRecord) -> io::Result<Option<Self>> {
        let Some(pidfd) = open(record.pid)? else { return Ok(None) };
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
        // A descriptor that cannot be waited for is one whose process cannot be known: treat it as ended.
        let _ = self.pidfd.readable().await;
    }

    /// Waits until it ended, at most so long. False if it did not.
    pub(crate) async fn ended_within(&self, limit: Duration) -> bool {
        timeout(limit, self.ended()).await.is_ok()
    }

    /// Sends it a signal. Ended already is success.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        gone_is_fine(pidfd_send_signal(self.pidfd.get_ref(), signal))
    }
}

/// The process of a number that we were told just now.
pub(crate) fn identify(pid: i32) -> Option<ProcessRecord> {
    start_time(pid).map(|start_time| ProcessRecord { pid, start_time })
}

/// The only child of a process; `None` where there is none, or the kernel does not say.
pub(crate) fn child_of(pid: i32) -> Option<ProcessRecord> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    identify(children.split_ascii_whitespace().next()?.parse().ok()?)
}

/// Kills the process of a number if it is still one that `is_ours` knows.
pub(crate) fn kill_if(pid: i32, is_ours: impl Fn(i32) -> bool) -> io::Result<()> {
    match open(pid)? {
        Some(pidfd) if is_ours(pid) => gone_is_fine(pidfd_send_signal(&pidfd, Signal::KILL)),
        _ => Ok(()),
    }
}

/// The id of the node's boot.
pub(crate) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// Whether we may make namespaces.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn open(pid: i32) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn gone_is_fine(sent: rustix::io::Result<()>) -> io::Result<()> {
    match sent {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// When a process started, in clock ticks since the node booted; `None` if it is gone or only waits to be reaped.
fn start_time(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name of a process may hold anything, so fields are counted from the last parenthesis.
fn parse_stat(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(START_TIME_AFTER_STATE)?.parse().ok(),
    }
}

/// Field 22 of `stat`, where the state is field 3.
const START_TIME_AFTER_STATE: usize = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_read_whatever_the_name_is() {
        let rest = "1 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 8399 1 2";
        for (name_and_state, expected) in [
            ("(agent) S", Some(8399)),
            ("(a) R (b) S", Some(8399)),
            ("() D", Some(8399)),
            ("(agent) Z", None),
            ("agent S", None),
        ] {
            assert_eq!(parse_stat(&format!("5 {name_and_state} {rest}")), expected);
        }
        assert_eq!(parse_stat("5 (agent) S 1"), None);
    }

    #[tokio::test]
    async fn a_reused_number_is_not_mistaken_for_the_process() {
        let own = i32::try_from(std::process::id()).expect("a number");
        let record = identify(own).expect("it lives");
        assert!(Held::of(record).expect("looked").is_some());
        let other = ProcessRecord { start_time: record.start_time + 1, ..record };
        assert!(Held::of(other).expect("looked").is_none());
    }

    #[tokio::test]
    async fn a_process_is_watched_to_its_end_and_killed_only_if_it_is_ours() {
        let mut child = tokio::process::Command::new("sleep")
            .arg("1000")
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let pid = i32::try_from(child.id().expect("a number")).expect("a number");
        let held = Held::of(identify(pid).expect("it lives")).expect("held").expect("it lives");
        kill_if(pid, |_| false).expect("left alone");
        assert!(!held.ended_within(Duration::from_millis(50)).await);
        kill_if(pid, |_| true).expect("killed");
        assert!(held.ended_within(Duration::from_secs(10)).await);
        child.wait().await.expect("reaped");
        held.signal(Signal::TERM).expect("gone already is success");
    }
}
