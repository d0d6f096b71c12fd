//! Where a program's output comes from, read in large pieces if there is much of it.
//!
//! Whoever waits at a pipe is woken by each of its writes, and on one CPU runs at once: then all of the way to the node is gone for a
//! line or a page, with two changes of process. So a reader that was woken for little twice in a row lets some more come
//! in before it looks again. The first output is never held back, nor is any for longer than [`PAUSE_MAX`]; a program that
//! writes more than the pipe holds meanwhile waits, as it would for any reader.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep_until};

use crate::console::Console;

/// Output of one stream.
pub(crate) struct Source {
    from: From,
    pace: Pace,
}

enum From {
    Pipe(Box<dyn AsyncRead + Send + Unpin>),
    Console(Arc<Console>),
}

impl Source {
    /// Of a pipe, which is made larger.
    pub(crate) fn pipe(pipe: impl AsyncRead + AsFd + Send + Unpin + 'static) -> Self {
        // One that stays small is only slower.
        let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE_BYTES);
        Self { from: From::Pipe(Box::new(pipe)), pace: Pace::default() }
    }

    /// Of a terminal, before which somebody may sit: nothing is held back.
    pub(crate) fn console(console: Arc<Console>) -> Self {
        Self { from: From::Console(console), pace: Pace::default() }
    }

    /// What has come, once there is something; nothing at the end. Cancel-safe.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let pipe = match &mut self.from {
            From::Console(console) => return console.read(buffer).await,
            From::Pipe(pipe) => pipe,
        };
        if let Some(due) = self.pace.due {
            sleep_until(due).await;
        }
        let count = pipe.read(buffer).await?;
        self.pace.took(count == buffer.len(), Instant::now());
        Ok(count)
    }
}

/// When to look again.
#[derive(Debug, Default)]
struct Pace {
    /// When somebody last looked.
    last: Option<Instant>,
    pause: Duration,
    due: Option<Instant>,
}

impl Pace {
    fn took(&mut self, all_there_was_room_for: bool, now: Instant) {
        let soon = self.last.replace(now).is_some_and(|last| now - last < SOON);
        self.pause = match (soon, all_there_was_room_for) {
            // There is more already.
            (_, true) | (false, _) => Duration::ZERO,
            (true, false) => (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
        };
        self.due = (!self.pause.is_zero()).then(|| now + self.pause);
    }
}

/// What a program writes while its reader pauses. The kernel takes memory for what is in a pipe, not for its size.
const PIPE_BYTES: usize = 256 << 10;
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Nobody notices, and it is no more than what one stream's order against the other's is worth: they are two pipes.
const PAUSE_MAX: Duration = Duration::from_millis(4);
/// Output that comes in such distances is much.
const SOON: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn source() -> (std::io::PipeWriter, Source) {
        let (reader, writer) = std::io::pipe().unwrap();
        let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).unwrap();
        (writer, Source::pipe(reader))
    }

    #[tokio::test]
    async fn lines_that_follow_each_other_come_together_and_none_is_lost() {
        let (mut writer, mut source) = source();
        let writing = std::thread::spawn(move || {
            for number in 0..5000 {
                writeln!(writer, "{number}").unwrap();
            }
        });
        let (mut all, mut buffer, mut reads) = (Vec::new(), vec![0; 32 << 10], 0);
        loop {
            match source.read(&mut buffer).await.unwrap() {
                0 => break,
                count => all.extend_from_slice(&buffer[..count]),
            }
            reads += 1;
        }
        writing.join().unwrap();
        let expected: String = (0..5000).map(|number| format!("{number}\n")).collect();
        assert_eq!(String::from_utf8(all).unwrap(), expected);
        assert!(reads < 2500, "{reads} reads");
    }

    #[test]
    fn what_comes_now_and_then_is_never_held_back() {
        let mut pace = Pace::default();
        let begin = Instant::now();
        for step in 0..100 {
            pace.took(false, begin + SOON * step);
            assert_eq!(pace.due, None);
        }
    }

    #[test]
    fn pauses_grow_to_their_bound_and_end_when_there_is_more_than_one_read_takes() {
        let mut pace = Pace::default();
        let now = Instant::now();
        pace.took(false, now);
        let pauses: Vec<Duration> = (0..4)
            .map(|_| {
                pace.took(false, now);
                pace.due.unwrap() - now
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 4].map(Duration::from_millis));
        pace.took(true, now);
        assert_eq!(pace.due, None);
    }
}
