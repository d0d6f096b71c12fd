//! From chunks of output to lines of CRI's log format. Pure.

use std::time::{Duration, SystemTime};

use crate::session::{LogChunk, LogStream};

/// What of both streams waits for its end of line.
#[derive(Default)]
pub(super) struct Lines {
    stdout: Pending,
    stderr: Pending,
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    /// When the newest of them was written.
    timestamp: Option<SystemTime>,
}

impl Lines {
    /// Writes the lines that a chunk completes, and the pieces of lines that are too long.
    pub(super) fn take(&mut self, chunk: &LogChunk, out: &mut Vec<u8>) {
        let prefix = Prefix::new(chunk.timestamp, chunk.stream);
        let pending = self.of(chunk.stream);
        pending.timestamp = Some(chunk.timestamp);
        for piece in chunk.data.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            // Nearly every line comes in one piece, and need not wait anywhere.
            if complete && pending.bytes.is_empty() && text.len() <= LINE_BYTES_MAX {
                prefix.line(Tag::Full, text, out);
                continue;
            }
            pending.bytes.extend_from_slice(text);
            while pending.bytes.len() > LINE_BYTES_MAX {
                let rest = pending.bytes.split_off(LINE_BYTES_MAX);
                prefix.line(Tag::Partial, &pending.bytes, out);
                pending.bytes = rest;
            }
            if complete {
                prefix.line(Tag::Full, &pending.bytes, out);
                pending.bytes.clear();
            }
        }
    }

    /// Writes what waits for its end of line, as partial lines. What comes later goes on with them.
    pub(super) fn rest(&mut self, out: &mut Vec<u8>) {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let pending = self.of(stream);
            if let Some(timestamp) = pending.timestamp.filter(|_| !pending.bytes.is_empty()) {
                Prefix::new(timestamp, stream).line(Tag::Partial, &pending.bytes, out);
                pending.bytes.clear();
            }
        }
    }

    fn of(&mut self, stream: LogStream) -> &mut Pending {
        match stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
        }
    }
}

#[derive(Clone, Copy)]
enum Tag {
    Full,
    Partial,
}

/// Time and stream: the same for all lines of a chunk.
struct Prefix(String);

impl Prefix {
    fn new(timestamp: SystemTime, stream: LogStream) -> Self {
        let stream = match stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        Self(format!("{} {stream} ", rfc3339(timestamp)))
    }

    fn line(&self, tag: Tag, text: &[u8], out: &mut Vec<u8>) {
        let tag = match tag {
            Tag::Full => b"F ",
            Tag::Partial => b"P ",
        };
        out.extend_from_slice(self.0.as_bytes());
        out.extend_from_slice(tag);
        out.extend_from_slice(text);
        out.push(b'\n');
    }
}

/// `2006-01-02T15:04:05.999999999Z`; a time before 1970 is 1970.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// The date of a day since 1970-01-01. Counted in years that begin in March, so that the leap day is a year's last, and in
/// eras of 400 years, which all have the same number of days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_FROM_MARCH_0000;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// As containerd: longer lines come in pieces.
const LINE_BYTES_MAX: usize = 16 * 1024;
const DAYS_PER_ERA: u64 = 146_097;
const DAYS_FROM_MARCH_0000: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(lines: &mut Lines, stream: LogStream, data: &[u8]) -> String {
        let timestamp = SystemTime::UNIX_EPOCH + Duration::new(1_136_239_445, 999_999_999);
        let chunk = LogChunk { sequence: 1, stream, timestamp, data: data.to_vec() };
        let mut out = Vec::new();
        lines.take(&chunk, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn rest(lines: &mut Lines) -> String {
        let mut out = Vec::new();
        lines.rest(&mut out);
        String::from_utf8(out).unwrap()
    }

    const T: &str = "2006-01-02T22:04:05.999999999Z";

    #[test]
    fn chunks_become_lines() {
        use LogStream::{Stderr, Stdout};
        // Chunks, what they complete, what is left.
        type Case = (&'static [(LogStream, &'static str)], &'static str, &'static str);
        let cases: &[Case] = &[
            (&[(Stdout, "a\nb\n")], "T stdout F a\nT stdout F b\n", ""),
            (&[(Stdout, "a"), (Stdout, "b\n")], "T stdout F ab\n", ""),
            (&[(Stdout, "\n\n")], "T stdout F \nT stdout F \n", ""),
            (&[(Stdout, "a"), (Stderr, "x\n"), (Stdout, "\n")], "T stderr F x\nT stdout F a\n", ""),
            (&[(Stdout, "a"), (Stderr, "x")], "", "T stdout P a\nT stderr P x\n"),
            (&[(Stdout, "a b\tc\r\n")], "T stdout F a b\tc\r\n", ""),
            (&[(Stdout, "")], "", ""),
        ];
        for (chunks, written, rest) in cases {
            let mut lines = Lines::default();
            let out: String = chunks
                .iter()
                .map(|(stream, text)| feed(&mut lines, *stream, text.as_bytes()))
                .collect();
            assert_eq!(out, written.replace('T', T), "{chunks:?}");
            assert_eq!(self::rest(&mut lines), rest.replace('T', T), "{chunks:?}");
            assert!(self::rest(&mut lines).is_empty());
        }
    }

    #[test]
    fn a_flushed_piece_goes_on_as_the_same_line() {
        let mut lines = Lines::default();
        feed(&mut lines, LogStream::Stdout, b"half");
        assert!(!rest(&mut lines).is_empty());
        assert_eq!(feed(&mut lines, LogStream::Stdout, b"\n"), format!("{T} stdout F \n"));
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let mut lines = Lines::default();
        let exact = vec![b'x'; LINE_BYTES_MAX];
        let text = feed(&mut lines, LogStream::Stdout, &[&exact[..], b"\n"].concat());
        assert_eq!(text, format!("{T} stdout F {}\n", "x".repeat(LINE_BYTES_MAX)));
        let long = vec![b'x'; 2 * LINE_BYTES_MAX + 1];
        let text = feed(&mut lines, LogStream::Stdout, &[&long[..], b"\n"].concat());
        let tags: Vec<_> = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        assert!(text.ends_with(" F x\n"));
    }

    #[test]
    fn dates_are_right_at_their_edges() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ];
        for (secs, text) in cases {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(secs)), text);
        }
    }
}
