//! `tracing`, `log` and panics of a loaded plugin go to its host.
//!
//! All three are per library, and one library may run several instances. So threads of a runtime know their instance;
//! lines from threads that the author made go to the instance that started last.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError, Weak};

use tracing::field::{Field, Visit};
use tracing::span;

use super::host::RemoteServices;
use crate::plugin::{HostServices, LogLevel};

use std::sync::Arc;

/// Routes this library's output to hosts; the first call decides nothing about where, only that.
pub(super) fn install(host: &Arc<RemoteServices>, level: LogLevel) {
    *LATEST.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(host);
    set_level(level.max(current_level()));
    INSTALL.call_once(|| {
        // Either fails only where the author installed one of their own, which then wins.
        let _ = log::set_logger(&LOGGER);
        let _ = tracing::subscriber::set_global_default(Lines { spans: AtomicU64::new(1) });
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !send(LogLevel::Error, "panic", &info.to_string()) {
                quiet(info);
            }
        }));
    });
}

/// Marks the current thread as one of `host`'s instance.
pub(super) fn enter_thread(host: &Arc<RemoteServices>) {
    CURRENT.with_borrow_mut(|current| *current = Arc::downgrade(host));
}

/// Lines louder than this are not made.
pub(super) fn set_level(level: LogLevel) {
    LEVEL.store(level as usize, Ordering::Relaxed);
    log::set_max_level(match level {
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warn => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
        LogLevel::Trace => log::LevelFilter::Trace,
    });
    tracing::callsite::rebuild_interest_cache();
}

fn current_level() -> LogLevel {
    match LEVEL.load(Ordering::Relaxed) {
        0 => LogLevel::Error,
        1 => LogLevel::Warn,
        2 => LogLevel::Info,
        3 => LogLevel::Debug,
        _ => LogLevel::Trace,
    }
}

/// Whether there was a host to send it to.
fn send(level: LogLevel, target: &str, message: &str) -> bool {
    // A thread that is ending, or that logs while it enters, has no instance.
    let current = CURRENT
        .try_with(|current| current.try_borrow().ok().and_then(|host| host.upgrade()))
        .ok()
        .flatten();
    let host = current.or_else(|| LATEST.lock().unwrap_or_else(PoisonError::into_inner).upgrade());
    host.map(|host| host.log(level, target, message)).is_some()
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = match record.level() {
            log::Level::Error => LogLevel::Error,
            log::Level::Warn => LogLevel::Warn,
            log::Level::Info => LogLevel::Info,
            log::Level::Debug => LogLevel::Debug,
            log::Level::Trace => LogLevel::Trace,
        };
        if self.enabled(record.metadata()) {
            send(level, record.target(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// A subscriber that makes one line of each event: the message, then `key=value`. Spans carry nothing.
struct Lines {
    spans: AtomicU64,
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && level_of(metadata.level()) <= current_level()
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        let text = format!("{}{}", line.message, line.fields);
        send(level_of(metadata.level()), metadata.target(), text.trim_start());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

fn level_of(level: &tracing::Level) -> LogLevel {
    match *level {
        tracing::Level::ERROR => LogLevel::Error,
        tracing::Level::WARN => LogLevel::Warn,
        tracing::Level::INFO => LogLevel::Info,
        tracing::Level::DEBUG => LogLevel::Debug,
        tracing::Level::TRACE => LogLevel::Trace,
    }
}

thread_local! {
    static CURRENT: RefCell<Weak<RemoteServices>> = const { RefCell::new(Weak::new()) };
}

// Global because what they serve is: a library has one logger, one subscriber and one panic hook.
static LATEST: Mutex<Weak<RemoteServices>> = Mutex::new(Weak::new());
static LEVEL: AtomicUsize = AtomicUsize::new(0);
static INSTALL: Once = Once::new();
static LOGGER: Logger = Logger;
