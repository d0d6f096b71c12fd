//! What a command is doing, for the person who waits.

use std::time::Instant;

/// Numbered steps of a command, each with the time it took.
#[derive(Debug)]
pub(crate) struct Progress {
    command: &'static str,
    steps: usize,
    done: usize,
    started: Instant,
}

impl Progress {
    pub(crate) fn new(command: &'static str, steps: usize) -> Progress {
        Progress { command, steps, done: 0, started: Instant::now() }
    }

    /// Begins the next step.
    pub(crate) fn step(&mut self, what: &str) {
        self.done += 1;
        let Progress { command, steps, done, started } = self;
        println!(
            "{command} [{done}/{steps}] {what} ({:.1} s so far)",
            started.elapsed().as_secs_f32()
        );
    }

    /// Says something about the step under way.
    pub(crate) fn note(&self, what: &str) {
        println!("{}       {what}", self.command);
    }

    /// Says that all is done.
    pub(crate) fn done(&self, what: &str) {
        println!("{} done: {what} ({:.1} s)", self.command, self.started.elapsed().as_secs_f32());
    }
}
