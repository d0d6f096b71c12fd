//! How a run ended: from QEMU's own words while somebody listens, from the exit status, or from what was left.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::client::{QmpEvent, ShutdownReason};
use crate::record::{End, Power, Record};

/// What was heard during a run.
#[derive(Debug)]
pub(crate) struct Seen {
    events: Option<mpsc::Receiver<QmpEvent>>,
    reason: Option<ShutdownReason>,
}

impl Seen {
    pub(crate) fn new(events: Option<mpsc::Receiver<QmpEvent>>) -> Self {
        Self { events, reason: None }
    }

    /// Waits for the next thing that QEMU says; for ever once it says nothing more.
    pub(crate) async fn listen(&mut self) {
        let Some(events) = &mut self.events else { return std::future::pending().await };
        match events.recv().await {
            Some(event) => self.note(event),
            None => self.events = None,
        }
    }

    /// How the run of a process that is gone ended.
    pub(crate) async fn end(
        mut self,
        child: Option<Child>,
        wanted: Power,
        last_words: impl FnOnce() -> Vec<String>,
    ) -> End {
        // What QEMU said last may still be on its way.
        while self.events.is_some() && timeout(LATE, self.listen()).await.is_ok() {}
        let status = match child {
            Some(mut child) => timeout(LATE, child.wait()).await.ok().and_then(Result::ok),
            None => None,
        };
        judge(wanted, self.reason, status, last_words)
    }

    fn note(&mut self, event: QmpEvent) {
        match event {
            QmpEvent::GuestPanicked => self.reason = Some(ShutdownReason::Panic),
            // A panic that was announced is the better reason.
            QmpEvent::Shutdown(_) if self.reason == Some(ShutdownReason::Panic) => {}
            QmpEvent::Shutdown(reason) => self.reason = Some(reason),
        }
    }
}

fn judge(
    wanted: Power,
    reason: Option<ShutdownReason>,
    status: Option<ExitStatus>,
    last_words: impl FnOnce() -> Vec<String>,
) -> End {
    let fine = |message: &str| End { failed: false, message: message.to_owned(), details: vec![] };
    let failed = |message: String| End { failed: true, message, details: last_words() };
    match (wanted, reason) {
        (_, Some(ShutdownReason::PowerOff)) => fine("the guest powered itself off"),
        (Power::Off, _) => fine("the machine was stopped"),
        (Power::On, Some(ShutdownReason::Panic)) => {
            failed("the guest's kernel panicked".to_owned())
        }
        (Power::On, Some(ShutdownReason::Restart)) => failed(
            "the guest restarted itself, or its kernel panicked; the console may say why"
                .to_owned(),
        ),
        (Power::On, Some(ShutdownReason::Host)) => {
            failed("somebody on the node told QEMU to end".to_owned())
        }
        (Power::On, None) => failed(match status {
            Some(status) => status_text(status),
            None => "QEMU ended without a word, as one that is killed does".to_owned(),
        }),
    }
}

/// How a run ended that no daemon saw.
pub(crate) fn unseen(record: &Record, boot_id: &str, last_words: Vec<String>) -> End {
    if let Some(end) = &record.end {
        return end.clone();
    }
    let (failed, message) = match record.wanted {
        Power::Off => (false, "the machine was stopped"),
        Power::On if record.boot_id != boot_id => (true, "the node restarted"),
        Power::On => (true, "QEMU ended while no daemon watched it"),
    };
    let details = if failed { last_words } else { Vec::new() };
    End { failed, message: message.to_owned(), details }
}

/// An exit status as a sentence.
pub(crate) fn status_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("QEMU was killed by signal {signal}"),
        (Some(code), None) => format!("QEMU ended with status {code}"),
        (None, None) => "QEMU ended in an unknown way".to_owned(),
    }
}

/// How long to wait for what is already on its way.
const LATE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_run_is_judged_by_the_best_witness() {
        let killed = Some(ExitStatus::from_raw(9));
        let code = |code: i32| Some(ExitStatus::from_raw(code << 8));
        for (wanted, reason, status, failed, message) in [
            (Power::On, Some(ShutdownReason::PowerOff), code(0), false, "powered itself off"),
            (Power::On, Some(ShutdownReason::Restart), code(0), true, "restarted itself"),
            (Power::On, Some(ShutdownReason::Panic), code(0), true, "panicked"),
            (Power::On, Some(ShutdownReason::Host), code(0), true, "told QEMU to end"),
            (Power::On, None, killed, true, "killed by signal 9"),
            (Power::On, None, code(1), true, "status 1"),
            (Power::On, None, None, true, "without a word"),
            (Power::Off, None, killed, false, "was stopped"),
            (Power::Off, Some(ShutdownReason::Host), code(0), false, "was stopped"),
        ] {
            let end = judge(wanted, reason, status, || vec!["last".to_owned()]);
            assert_eq!(end.failed, failed, "{end:?}");
            assert!(end.message.contains(message), "{end:?}");
            assert_eq!(end.details.is_empty(), !failed);
        }
    }
}
