//! How a run ended: by the exit status while a daemon watched, else by what was left.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::record::{End, Power, Record};

/// How a run ended that was watched; without a status it is one that an earlier daemon had started.
pub(crate) fn judge(wanted: Power, status: Option<ExitStatus>, last_lines: Vec<String>) -> End {
    match (wanted, status) {
        (Power::Off, _) => fine("the machine was stopped"),
        (Power::On, Some(status)) if status.success() => fine("the agent ended as it was asked to"),
        (Power::On, Some(status)) => failed(status_text(status), last_lines),
        (Power::On, None) => failed(
            "the agent ended; how is not known, because an earlier daemon had started it"
                .to_owned(),
            last_lines,
        ),
    }
}

/// How a run ended that no daemon saw.
pub(crate) fn unseen(record: &Record, boot_id: &str, last_lines: Vec<String>) -> End {
    match (&record.end, record.wanted) {
        (Some(end), _) => end.clone(),
        (None, Power::Off) => fine("the machine was stopped"),
        (None, Power::On) if record.boot_id != boot_id => {
            failed("the node restarted".to_owned(), Vec::new())
        }
        (None, Power::On) => {
            failed("the agent ended while no daemon watched it".to_owned(), last_lines)
        }
    }
}

/// An exit status as the beginning of a sentence.
pub(crate) fn status_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("the agent was killed by signal {signal}"),
        // So the keeper tells it of its child.
        (Some(code @ 129..=192), None) => format!("the agent was killed by signal {}", code - 128),
        (Some(code), None) => format!("the agent ended with status {code}"),
        (None, None) => "the agent ended in an unknown way".to_owned(),
    }
}

fn fine(message: &str) -> End {
    End { failed: false, message: message.to_owned(), details: Vec::new() }
}

/// The last line of the console is mostly the reason.
fn failed(message: String, last_lines: Vec<String>) -> End {
    let message = match last_lines.last() {
        Some(last) => format!("{message}; it said last: {last}"),
        None => message,
    };
    End { failed: true, message, details: last_lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_run_is_judged_by_wish_and_status() {
        let status = |code: i32| Some(ExitStatus::from_raw(code << 8));
        for (wanted, status, expected_failed, message) in [
            (Power::On, status(0), false, "as it was asked to"),
            (Power::On, status(1), true, "status 1; it said last: why"),
            (Power::On, status(137), true, "killed by signal 9"),
            (Power::On, Some(ExitStatus::from_raw(9)), true, "killed by signal 9"),
            (Power::On, None, true, "is not known"),
            (Power::Off, Some(ExitStatus::from_raw(9)), false, "was stopped"),
            (Power::Off, None, false, "was stopped"),
        ] {
            let end = judge(wanted, status, vec!["why".to_owned()]);
            assert_eq!(end.failed, expected_failed, "{end:?}");
            assert!(end.message.contains(message), "{end:?}");
        }
    }

    #[test]
    fn the_end_of_an_unwatched_run_is_judged_by_what_is_left() {
        let record = crate::record::tests::record();
        let judge = |record: &Record, boot: &str| unseen(record, boot, Vec::new());
        assert!(judge(&record, "boot").message.contains("no daemon watched"));
        assert!(judge(&record, "other").message.contains("node restarted"));
        let off = Record { wanted: Power::Off, ..record.clone() };
        assert!(!judge(&off, "other").failed);
        let end = fine("known");
        assert_eq!(judge(&Record { end: Some(end.clone()), ..record }, "boot"), end);
    }
}
