//! The places where an engine touches what outlives it. Each can be its last.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// Counts every passage, and ends the engine's life at the chosen one.
#[derive(Clone, Debug)]
pub struct Seams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    begin: Instant,
    passed: AtomicU64,
    crash_at: AtomicU64,
    crashed: AtomicBool,
    crash: Notify,
    transcript: Mutex<Vec<String>>,
}

impl Seams {
    /// Seams of a world that begins now.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            begin: Instant::now(),
            passed: AtomicU64::new(0),
            crash_at: AtomicU64::new(u64::MAX),
            crashed: AtomicBool::new(false),
            crash: Notify::new(),
            transcript: Mutex::default(),
        }))
    }

    /// Another engine starts; it lives for this many passages, or until the end.
    pub fn new_life(&self, passages: Option<u64>) {
        let at = passages.map_or(u64::MAX, |more| self.passed() + more);
        self.0.crash_at.store(at, Ordering::SeqCst);
        self.0.crashed.store(false, Ordering::SeqCst);
    }

    /// How many passages there were in all lives.
    pub fn passed(&self) -> u64 {
        self.0.passed.load(Ordering::SeqCst)
    }

    /// Whether the engine of now is dead.
    pub fn has_crashed(&self) -> bool {
        self.0.crashed.load(Ordering::SeqCst)
    }

    /// Passes; or crashes here, and never returns. A dead engine does not pass anywhere.
    pub async fn pass(&self, what: &str) {
        if !self.has_crashed() {
            let number = self.0.passed.fetch_add(1, Ordering::SeqCst) + 1;
            self.note(&format!("#{number} {what}"));
            if number < self.0.crash_at.load(Ordering::SeqCst) {
                return;
            }
            self.note("CRASH");
            self.0.crashed.store(true, Ordering::SeqCst);
            self.0.crash.notify_waiters();
        }
        std::future::pending().await
    }

    /// Returns once the engine of now is dead.
    pub async fn crash(&self) {
        loop {
            let notified = self.0.crash.notified();
            if self.has_crashed() {
                return;
            }
            notified.await;
        }
    }

    /// Writes a line into the transcript.
    pub fn note(&self, line: &str) {
        let at = self.0.begin.elapsed().as_millis();
        let mut transcript = self.0.transcript.lock().unwrap_or_else(PoisonError::into_inner);
        transcript.push(format!("{at:>8} ms  {line}"));
    }

    /// All lines so far.
    pub fn transcript(&self) -> Vec<String> {
        self.0.transcript.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for Seams {
    fn default() -> Self {
        Self::new()
    }
}
