//! The agent's log: short lines with key=value fields on standard error, which is the console in a guest.
//!
//! Levels are promises: `error` needs somebody to act, `warn` was handled, `info` is what happens to the pod, `debug` is for us.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::times;

/// Writes all lines up to `level` from now on. A second call changes nothing.
pub fn start(level: LevelFilter) {
    let _ = tracing::subscriber::set_global_default(Lines { level });
}

/// Keeps lines back from now on until [`release`]: a console takes an emulated CPU longer than all the rest of a line.
pub fn hold() {
    lock().get_or_insert_default();
}

/// Writes what was held, and every line at once from now on.
pub fn release() {
    if let Some(held) = lock().take() {
        let _ = std::io::stderr().write_all(&held);
    }
}

/// Reads a level: error, warn, info or debug.
pub fn parse_level(text: &str) -> Option<LevelFilter> {
    match text {
        "error" => Some(LevelFilter::ERROR),
        "warn" => Some(LevelFilter::WARN),
        "info" => Some(LevelFilter::INFO),
        "debug" => Some(LevelFilter::DEBUG),
        _ => None,
    }
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| cause.source()).take(CAUSES_MAX) {
        let _ = write!(text, ": {cause}");
    }
    text
}

/// Permits what a stranger can cause at most a few times a second.
#[derive(Debug, Default)]
pub struct Pace {
    last: Option<Instant>,
    suppressed: u32,
}

impl Pace {
    /// Whether it may happen now.
    pub fn permits(&mut self) -> bool {
        if self.last.is_some_and(|last| last.elapsed() < PACE) {
            self.suppressed = self.suppressed.saturating_add(1);
            return false;
        }
        self.last = Some(Instant::now());
        true
    }

    /// How often it was not permitted since this was last asked.
    pub fn suppressed(&mut self) -> u32 {
        std::mem::take(&mut self.suppressed)
    }
}

struct Lines {
    level: LevelFilter,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What the libraries below have to say at debug level drowns our own lines.
        *metadata.level() <= self.level && metadata.target().starts_with("infranetes")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = event.metadata().level().as_str();
        let now_us = times::now_us();
        let text = format!(
            "[{:5}.{:03}] infranetes {level}: {}{}\n",
            now_us / 1_000_000,
            now_us / 1_000 % 1_000,
            line.message,
            line.fields
        );
        match lock().as_mut() {
            Some(held) if held.len() < HELD_BYTES_MAX => held.extend_from_slice(text.as_bytes()),
            // There is nowhere to say that the console is gone.
            _ => drop(std::io::stderr().write_all(text.as_bytes())),
        }
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // Quoted, so that what comes from outside cannot look like a line of ours.
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            let _ = write!(self.fields, " {}={value:?}", field.name());
        }
    }
}

fn lock() -> MutexGuard<'static, Option<Vec<u8>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lines that wait. Standard error is one per process, and so is what is kept back from it.
static HELD: Mutex<Option<Vec<u8>>> = Mutex::new(None);
const HELD_BYTES_MAX: usize = 16 * 1024;
const PACE: Duration = Duration::from_millis(500);
const CAUSES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_causes_one_line_and_the_rest_is_counted() {
        let mut pace = Pace::default();
        assert!(pace.permits());
        assert!(!pace.permits());
        assert!(!pace.permits());
        assert_eq!(pace.suppressed(), 2);
        assert_eq!(pace.suppressed(), 0);
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = crate::listener::ListenError::NotBound {
            address: "tcp://x".into(),
            cause: std::io::Error::other("in use"),
        };
        assert_eq!(chain(&error), "cannot listen on tcp://x: in use");
    }
}
