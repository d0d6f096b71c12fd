//! A small QMP client: the control socket of one QEMU.
//!
//! One task owns the connection. Commands have deadlines, lines a greatest length, queues a bound; events that nobody
//! takes in time are dropped, because the end of the process tells the essential.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::error::QmpError;

/// A connection to one QEMU. Cheap to clone; the connection closes with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Qmp {
    commands: mpsc::Sender<Command>,
}

/// What QEMU says by itself, as far as we care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QmpEvent {
    /// The machine is about to end.
    Shutdown(ShutdownReason),
    /// The guest's kernel says that it panicked.
    GuestPanicked,
}

/// How far a migration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Migration {
    None,
    Active,
    Completed,
    Failed(String),
}

impl Migration {
    pub(crate) fn goes_on(&self) -> bool {
        *self == Self::Active
    }
}

/// Why a machine is about to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShutdownReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest wanted to restart, on purpose or because its kernel panicked.
    Restart,
    /// The guest panicked.
    Panic,
    /// We, or a signal, told QEMU to quit.
    Host,
}

struct Command {
    name: &'static str,
    line: Vec<u8>,
    answer: oneshot::Sender<Result<Value, QmpError>>,
}

impl Qmp {
    /// Connects, checks that the other side is process `pid`, and negotiates.
    pub(crate) async fn connect(
        socket: &Path,
        pid: i32,
        limit: Duration,
    ) -> Result<(Self, mpsc::Receiver<QmpEvent>), QmpError> {
        let connecting = async {
            let stream = UnixStream::connect(socket).await?;
            let peer = stream.peer_cred()?;
            if peer.pid() != Some(pid) {
                return Err(QmpError::Stranger);
            }
            let (reader, writer) = stream.into_split();
            let mut lines = Lines::new(reader);
            match lines.next().await?.ok_or(QmpError::Closed)? {
                Line::Greeting => Ok((lines, writer)),
                _ => Err(QmpError::Garbage),
            }
        };
        let (lines, writer) =
            timeout(limit, connecting).await.map_err(|_| QmpError::Timeout(limit))??;
        let (commands, queue) = mpsc::channel(COMMANDS);
        let (events, receiver) = mpsc::channel(EVENTS);
        tokio::spawn(Connection { lines, writer, events, waiting: None }.run(queue));
        let qmp = Self { commands };
        qmp.execute("qmp_capabilities", json!({}), limit).await?;
        Ok((qmp, receiver))
    }

    /// Presses the power button.
    pub(crate) async fn power_down(&self) -> Result<(), QmpError> {
        self.execute("system_powerdown", json!({}), LIMIT).await.map(drop)
    }

    /// Ends QEMU at once.
    pub(crate) async fn quit(&self) -> Result<(), QmpError> {
        self.execute("quit", json!({}), LIMIT).await.map(drop)
    }

    /// Lets the guest stand still.
    pub(crate) async fn stop(&self) -> Result<(), QmpError> {
        self.execute("stop", json!({}), LIMIT).await.map(drop)
    }

    /// Lets it go on; one that runs does already.
    pub(crate) async fn go_on(&self) -> Result<(), QmpError> {
        self.execute("cont", json!({}), LIMIT).await.map(drop)
    }

    /// What the guest does, in QEMU's word: "running", "paused", "inmigrate", …
    pub(crate) async fn status(&self) -> Result<String, QmpError> {
        let status = self.execute("query-status", json!({}), LIMIT).await?;
        Ok(status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Begins to send the machine's state to an address, as fast as it goes.
    pub(crate) async fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        let arguments = json!({ "max-bandwidth": BANDWIDTH });
        self.execute("migrate-set-parameters", arguments, LIMIT).await?;
        self.execute("migrate", json!({ "uri": uri }), LIMIT).await.map(drop)
    }

    /// Begins to take a machine's state in, in a QEMU that waits for one.
    pub(crate) async fn migrate_incoming(&self, uri: &str) -> Result<(), QmpError> {
        self.execute("migrate-incoming", json!({ "uri": uri }), LIMIT).await.map(drop)
    }

    /// Ends a migration that goes on.
    pub(crate) async fn cancel_migration(&self) -> Result<(), QmpError> {
        self.execute("migrate_cancel", json!({}), LIMIT).await.map(drop)
    }

    /// How far a migration is.
    pub(crate) async fn migration(&self) -> Result<Migration, QmpError> {
        let said = self.execute("query-migrate", json!({}), LIMIT).await?;
        let text = |key: &str| said.get(key).and_then(Value::as_str);
        Ok(match text("status") {
            None | Some("none") => Migration::None,
            Some("completed") => Migration::Completed,
            Some(ended @ ("failed" | "cancelled")) => {
                Migration::Failed(text("error-desc").unwrap_or(ended).to_owned())
            }
            Some(_) => Migration::Active,
        })
    }

    /// QEMU's version with that of its package, which may have patches.
    pub(crate) async fn version(&self) -> Result<String, QmpError> {
        let said = self.execute("query-version", json!({}), LIMIT).await?;
        let number = |name: &str| said.pointer(&format!("/qemu/{name}")).and_then(Value::as_u64);
        let [major, minor, micro] =
            ["major", "minor", "micro"].map(|name| number(name).unwrap_or_default());
        let package = said.get("package").and_then(Value::as_str).unwrap_or_default();
        Ok(format!("{major}.{minor}.{micro} {package}").trim_end().to_owned())
    }

    /// The port of this node that the user-mode network forwards to `guest_port`.
    pub(crate) async fn forwarded_port(&self, guest_port: u16) -> Result<Option<u16>, QmpError> {
        let arguments = json!({ "command-line": "info usernet" });
        let table = self.execute("human-monitor-command", arguments, LIMIT).await?;
        Ok(forwarded_port(table.as_str().unwrap_or_default(), guest_port))
    }

    async fn execute(
        &self,
        name: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let mut line = json!({ "execute": name, "arguments": arguments }).to_string().into_bytes();
        line.push(b'\n');
        let (answer, receiver) = oneshot::channel();
        let asking = async {
            let command = Command { name, line, answer };
            self.commands.send(command).await.map_err(|_| QmpError::Closed)?;
            receiver.await.map_err(|_| QmpError::Closed)?
        };
        timeout(limit, asking).await.map_err(|_| QmpError::Timeout(limit))?
    }
}

struct Connection {
    lines: Lines,
    writer: OwnedWriteHalf,
    events: mpsc::Sender<QmpEvent>,
    waiting: Option<Command>,
}

impl Connection {
    /// One command at a time, because QEMU answers in order; events at any time.
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                line = self.lines.next() => match line {
                    Ok(Some(line)) => self.take(line),
                    Ok(None) | Err(_) => return,
                },
                command = queue.recv(), if self.waiting.is_none() => {
                    let Some(command) = command else { return };
                    if self.writer.write_all(&command.line).await.is_err() {
                        return;
                    }
                    self.waiting = Some(command);
                }
            }
        }
    }

    fn take(&mut self, line: Line) {
        let answer = match line {
            Line::Return(value) => Ok(value),
            Line::Error(message) => {
                let command = self.waiting.as_ref().map_or("a command", |command| command.name);
                Err(QmpError::Refused { command, message })
            }
            Line::Event(name, data) => {
                if let Some(event) = event_of(&name, &data) {
                    // Full only if nobody reads: then nobody misses it.
                    let _ = self.events.try_send(event);
                }
                return;
            }
            Line::Greeting => return,
        };
        if let Some(command) = self.waiting.take() {
            // Whoever asked may have given up.
            let _ = command.answer.send(answer);
        }
    }
}

/// Lines of bounded length. A read that is cut off goes on where it was.
struct Lines {
    reader: BufReader<OwnedReadHalf>,
    partial: Vec<u8>,
}

impl Lines {
    fn new(reader: OwnedReadHalf) -> Self {
        Self { reader: BufReader::new(reader), partial: Vec::new() }
    }

    /// The next line; `None` at the end.
    async fn next(&mut self) -> Result<Option<Line>, QmpError> {
        let room = LINE_MAX - self.partial.len() as u64;
        let mut limited = (&mut self.reader).take(room);
        limited.read_until(b'\n', &mut self.partial).await?;
        match self.partial.last() {
            None => Ok(None),
            Some(b'\n') => {
                let line = parse(&self.partial);
                self.partial.clear();
                line.map(Some)
            }
            Some(_) => Err(QmpError::Io(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

enum Line {
    Greeting,
    Return(Value),
    Error(String),
    Event(String, Value),
}

#[derive(Deserialize)]
struct RawLine {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<RawError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct RawError {
    desc: String,
}

fn parse(text: &[u8]) -> Result<Line, QmpError> {
    let raw: RawLine = serde_json::from_slice(text).map_err(|_| QmpError::Garbage)?;
    match raw {
        RawLine { event: Some(event), data, .. } => Ok(Line::Event(event, data)),
        RawLine { answer: Some(answer), .. } => Ok(Line::Return(answer)),
        RawLine { error: Some(error), .. } => Ok(Line::Error(error.desc)),
        RawLine { greeting: Some(_), .. } => Ok(Line::Greeting),
        _ => Err(QmpError::Garbage),
    }
}

fn event_of(name: &str, data: &Value) -> Option<QmpEvent> {
    match name {
        "GUEST_PANICKED" => Some(QmpEvent::GuestPanicked),
        "SHUTDOWN" => {
            let reason = data.get("reason").and_then(Value::as_str).unwrap_or_default();
            Some(QmpEvent::Shutdown(match reason {
                "guest-shutdown" => ShutdownReason::PowerOff,
                "guest-reset" => ShutdownReason::Restart,
                "guest-panic" => ShutdownReason::Panic,
                _ => ShutdownReason::Host,
            }))
        }
        _ => None,
    }
}

/// Reads the table of the user-mode network: protocol, descriptor, source address and port, destination address and port.
fn forwarded_port(table: &str, guest_port: u16) -> Option<u16> {
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [protocol, _, "127.0.0.1", port, _, destination, ..] = words[..] else { return None };
        let ours = protocol == "TCP[HOST_FORWARD]" && destination.parse() == Ok(guest_port);
        ours.then(|| port.parse().ok()).flatten().filter(|port| *port != 0)
    })
}

/// Bytes a second: more than any disk takes.
const BANDWIDTH: u64 = 1 << 40;
const LIMIT: Duration = Duration::from_secs(5);
const LINE_MAX: u64 = 1 << 20;
const COMMANDS: usize = 8;
const EVENTS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarded_port_is_found_in_the_table() {
        let table = "Hub -1 (n0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
                     TCP[ESTABLISHED]   12       127.0.0.1 50000       10.0.2.15  7443     0     0\r\n  \
                     TCP[HOST_FORWARD]  11       127.0.0.1 32869       10.0.2.15  7443     0     0\r\n";
        assert_eq!(forwarded_port(table, 7443), Some(32869));
        assert_eq!(forwarded_port(table, 80), None);
        assert_eq!(forwarded_port("", 7443), None);
    }

    #[tokio::test]
    async fn answers_events_and_refusals_are_told_apart() {
        let (qmp, mut events, mut qemu) = pair().await;
        let asked = tokio::spawn({
            let qmp = qmp.clone();
            async move { qmp.status().await }
        });
        qemu.hear("query-status").await;
        qemu.say(r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#)
            .await;
        qemu.say(r#"{"event": "RTC_CHANGE", "data": {"offset": 0}}"#).await;
        qemu.say(r#"{"return": {"status": "running", "running": true}}"#).await;
        assert_eq!(asked.await.expect("joined").expect("answered"), "running");
        assert_eq!(events.recv().await, Some(QmpEvent::Shutdown(ShutdownReason::Restart)));

        let asked = tokio::spawn(async move { qmp.power_down().await });
        qemu.hear("system_powerdown").await;
        qemu.say(r#"{"error": {"class": "GenericError", "desc": "not now"}}"#).await;
        let error = asked.await.expect("joined").expect_err("refused").to_string();
        assert_eq!(error, "QEMU refused system_powerdown: not now");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_ends_the_call_at_once() {
        let (qmp, _events, mut qemu) = pair().await;
        let asked = tokio::spawn(async move { qmp.quit().await });
        qemu.hear("quit").await;
        drop(qemu);
        assert!(matches!(asked.await.expect("joined"), Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn a_stranger_on_the_socket_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("qmp");
        let _listener = tokio::net::UnixListener::bind(&path).expect("bound");
        let answer = Qmp::connect(&path, 1, LIMIT).await;
        assert!(matches!(answer, Err(QmpError::Stranger)));
    }

    struct FakeQemu {
        lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
        writer: OwnedWriteHalf,
    }

    impl FakeQemu {
        async fn say(&mut self, line: &str) {
            self.writer.write_all(format!("{line}\r\n").as_bytes()).await.expect("written");
        }

        async fn hear(&mut self, command: &str) {
            let line = self.lines.next_line().await.expect("read").expect("a line");
            assert!(line.contains(command), "{line}");
        }
    }

    async fn pair() -> (Qmp, mpsc::Receiver<QmpEvent>, FakeQemu) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("qmp");
        let listener = tokio::net::UnixListener::bind(&path).expect("bound");
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let connecting = tokio::spawn(async move { Qmp::connect(&path, pid, LIMIT).await });
        let (stream, _) = listener.accept().await.expect("accepted");
        let (reader, writer) = stream.into_split();
        let mut qemu = FakeQemu { lines: BufReader::new(reader).lines(), writer };
        qemu.say(r#"{"QMP": {"version": {}, "capabilities": []}}"#).await;
        qemu.hear("qmp_capabilities").await;
        qemu.say(r#"{"return": {}}"#).await;
        let (qmp, events) = connecting.await.expect("joined").expect("connected");
        (qmp, events, qemu)
    }
}
