//! Takes away dead processes that nobody waits for.
//!
//! What a container leaves behind becomes a child of this process. So do processes whose end a container provider wants to
//! know, which lives in this process, too: a zombie is therefore left alone for `PATIENCE`, within which whoever waits for
//! it has long taken its status.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::signal::unix::{SignalKind, signal};

/// Makes the orphans below this process its children, also when it is not the first process.
pub fn adopt() -> nix::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// Reaps until dropped.
pub async fn run() -> std::io::Result<()> {
    let mut deaths = signal(SignalKind::child())?;
    let mut waiting = Waiting::default();
    loop {
        if waiting.first_seen.is_empty() && deaths.recv().await.is_none() {
            return Ok(());
        }
        tokio::time::sleep(PATIENCE).await;
        waiting.sweep();
    }
}

#[derive(Default)]
struct Waiting {
    first_seen: HashMap<Pid, Instant>,
}

impl Waiting {
    fn sweep(&mut self) {
        let zombies = zombies();
        self.first_seen.retain(|pid, _| zombies.contains(pid));
        for pid in zombies {
            let seen = *self.first_seen.entry(pid).or_insert_with(Instant::now);
            if seen.elapsed() >= PATIENCE {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                self.first_seen.remove(&pid);
            }
        }
    }
}

fn zombies() -> Vec<Pid> {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    if matches!(waitid(Id::All, peek), Ok(WaitStatus::StillAlive) | Err(_)) {
        return Vec::new();
    }
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| is_dead_child(&stat, getpid()))
    })
    .map(Pid::from_raw)
    .collect()
}

/// Whether /proc/PID/stat is that of a zombie of `parent`. The name in it may contain anything, parentheses too.
fn is_dead_child(stat: &str, parent: Pid) -> bool {
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ');
    fields.next() == Some("Z") && fields.next() == Some(parent.to_string().as_str())
}

/// How long a zombie is left to whoever waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_children_of_ours_are_taken() {
        let us = Pid::from_raw(1);
        assert!(is_dead_child("12 (sh) Z 1 12", us));
        assert!(is_dead_child("12 (a) Z 7 (b) Z 1 12", us));
        assert!(!is_dead_child("12 (a) S 1 12", us));
        assert!(!is_dead_child("12 (a) Z 7 12", us));
        assert!(!is_dead_child("", us));
    }

    #[test]
    fn a_zombie_that_somebody_may_wait_for_is_left_alone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !zombies().contains(&pid) {
            assert!(Instant::now() < deadline, "the child did not become a zombie");
            std::thread::yield_now();
        }
        let mut waiting = Waiting::default();
        waiting.sweep();
        assert!(waiting.first_seen.contains_key(&pid));
        assert!(child.wait().unwrap().success());
        waiting.sweep();
        assert!(waiting.first_seen.is_empty());
    }
}
