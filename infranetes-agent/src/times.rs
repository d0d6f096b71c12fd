//! When things happened, on the clock that started with the machine's kernel.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};

/// The agent's part of a boot timeline, in microseconds of `CLOCK_BOOTTIME`; 0 means that it has not happened.
#[derive(Debug)]
pub struct BootTimes {
    started_us: u64,
    listening_us: AtomicU64,
    enrolled_us: AtomicU64,
}

impl BootTimes {
    /// The agent starts now.
    pub fn starting() -> Self {
        Self {
            started_us: now_us(),
            listening_us: AtomicU64::new(0),
            enrolled_us: AtomicU64::new(0),
        }
    }

    /// It listens now.
    pub fn listening(&self) {
        self.listening_us.store(now_us(), Ordering::Relaxed);
    }

    /// It is enrolled now.
    pub fn enrolled(&self) {
        self.enrolled_us.store(now_us(), Ordering::Relaxed);
    }

    /// When it started.
    pub fn started_us(&self) -> u64 {
        self.started_us
    }

    /// When it listened.
    pub fn listening_us(&self) -> u64 {
        self.listening_us.load(Ordering::Relaxed)
    }

    /// When it was enrolled.
    pub fn enrolled_us(&self) -> u64 {
        self.enrolled_us.load(Ordering::Relaxed)
    }
}

/// Microseconds since the kernel started; 0 where the clock is missing.
pub fn now_us() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000;
        u64::try_from(micros).unwrap_or(0)
    })
}
