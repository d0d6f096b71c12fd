//! A helper as a process: its start, its end, and its last words.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};

use super::Helper;

/// A helper that runs; killed when dropped.
pub(super) struct Process {
    child: Child,
    last_words: LastWords,
}

/// What a process said at last, bounded.
type LastWords = Arc<Mutex<VecDeque<String>>>;

impl Process {
    /// Starts a helper, and gives this side's end of its socket.
    pub(super) fn start(helper: &Helper, instance: &str) -> io::Result<(Process, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut child = Command::new(&helper.program)
            .arg0(&helper.name)
            .args(&helper.arguments)
            .arg(instance)
            .current_dir("/")
            // Signals of the host's terminal are for the host, which then ends the helper.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let last_words = LastWords::default();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(listen(instance.to_owned(), stderr, last_words.clone()));
        }
        Ok((Process { child, last_words }, UnixStream::from_std(ours)?))
    }

    /// The process id, while it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end, and kills it if that does not come by itself; says how it ended.
    pub(super) async fn end(mut self, patience: Duration) -> String {
        let status = match tokio::time::timeout(patience, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => match self.child.kill().await {
                Ok(()) => return format!("had to be killed after {} s", patience.as_secs_f32()),
                Err(error) => Err(error),
            },
        };
        let how = match status {
            Ok(status) => outcome(status),
            Err(error) => format!("ended in an unknown way ({error})"),
        };
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        match words.is_empty() {
            true => how,
            false => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                format!("{how}; its last words: {}", words.join(" / "))
            }
        }
    }
}

fn outcome(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => match SIGNALS.iter().find(|(number, _)| *number == signal) {
            Some((_, name)) => format!("was ended by signal {signal} ({name})"),
            None => format!("was ended by signal {signal}"),
        },
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// Keeps the last lines. A child of the plugin may hold the pipe for longer than the helper lives; nothing waits for its end.
async fn listen(instance: String, stderr: ChildStderr, last_words: LastWords) {
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // Line by line, but never more of one than can be shown.
        let read = (&mut lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(bytes) if bytes > 0) {
            return;
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if text.is_empty() {
            continue;
        }
        tracing::debug!(instance, text, "standard error of a plugin's process");
        let mut words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() == LINES_MAX {
            words.pop_front();
        }
        words.push_back(text);
    }
}

/// Those that end a process by its own fault, and the usual ones of others. Numbers that are the same on all of Linux's hardware
/// that this is built for.
const SIGNALS: [(i32, &str); 9] = [
    (2, "SIGINT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (11, "SIGSEGV"),
    (15, "SIGTERM"),
];
const LINES_MAX: usize = 3;
const LINE_BYTES_MAX: u64 = 240;
