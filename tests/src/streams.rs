//! Clients of streaming links, as kubectl is one: exec, attach and port-forward over SPDY and over WebSocket.
//!
//! ```no_run
//! # async fn example(url: &str) -> anyhow::Result<()> {
//! use infranetes_tests::streams::{Session, Wanted};
//! let mut session = Session::open(url, Wanted { stdin: true, ..Wanted::OUTPUT }).await?;
//! session.type_in(b"echo hello\n").await?;
//! session.end_stdin().await?;
//! let ended = session.end().await?;
//! assert_eq!((ended.stdout.as_slice(), ended.exit_code()), (&b"hello\n"[..], Some(0)));
//! # Ok(()) }
//! ```

pub mod kubectl;
pub mod secure;
mod websocket;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use infranetes_cri::streaming::spdy::{Connection, Headers, Limits, Reader, Role, Stream, Writer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use self::websocket::{Socket, tunnelled};

/// Streams that a client of exec or attach opens, besides that of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output, or the terminal.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Sizes of a terminal.
    pub tty: bool,
}

impl Wanted {
    /// Both outputs and nothing else.
    pub const OUTPUT: Wanted = Wanted { stdin: false, stdout: true, stderr: true, tty: false };
    /// A terminal with everything that goes with it.
    pub const TERMINAL: Wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };
}

/// An exec or attach over SPDY.
pub struct Session {
    connection: Connection,
    stdin: Option<Writer>,
    resize: Option<Writer>,
    /// Standard output, if wanted.
    pub stdout: Option<Reader>,
    /// Standard error, if wanted.
    pub stderr: Option<Reader>,
    error: Reader,
    /// Halves that are not used; dropping them would reset their streams.
    _kept: Vec<(Option<Reader>, Option<Writer>)>,
}

/// How a session ended.
#[derive(Debug)]
pub struct Ended {
    /// What was read of standard output.
    pub stdout: Vec<u8>,
    /// What was read of standard error.
    pub stderr: Vec<u8>,
    /// The `metav1.Status` that was told at the end.
    pub status: serde_json::Value,
}

impl Ended {
    /// The exit code, if it ended by itself.
    pub fn exit_code(&self) -> Option<i32> {
        match self.status["status"].as_str()? {
            "Success" => Some(0),
            _ => self.status["details"]["causes"][0]["message"].as_str()?.parse().ok(),
        }
    }
}

impl Session {
    /// Connects as kubectl does, and opens the streams.
    pub async fn open(url: &str, wanted: Wanted) -> Result<Session> {
        let (connection, protocol) = connect(url, &["v4.channel.k8s.io"]).await?;
        ensure!(protocol == "v4.channel.k8s.io", "agreed on {protocol:?}");
        Session::over(connection, wanted).await
    }

    /// Opens the streams on a connection.
    pub async fn over(connection: Connection, wanted: Wanted) -> Result<Session> {
        let open = async |kind: &str, is_wanted: bool| -> Result<Option<Stream>> {
            if !is_wanted {
                return Ok(None);
            }
            let headers = [("streamType", kind)].into_iter().collect();
            let opened = timeout(LIMIT, connection.open(headers)).await;
            Ok(Some(opened.with_context(|| format!("{kind} was not opened in time"))??))
        };
        let error = open("error", true).await?.context("wanted")?;
        let mut kept = vec![(None, Some(error.writer))];
        let mut outlet = |stream: Option<Stream>| {
            stream.map(|stream| {
                kept.push((None, Some(stream.writer)));
                stream.reader
            })
        };
        let stdin = open("stdin", wanted.stdin).await?;
        let stdout = outlet(open("stdout", wanted.stdout).await?);
        let stderr = outlet(open("stderr", wanted.stderr).await?);
        let resize = open("resize", wanted.tty).await?;
        let mut inlet = |stream: Option<Stream>| {
            stream.map(|stream| {
                kept.push((Some(stream.reader), None));
                stream.writer
            })
        };
        let (stdin, resize) = (inlet(stdin), inlet(resize));
        Ok(Session { connection, stdin, resize, stdout, stderr, error: error.reader, _kept: kept })
    }

    /// Sends to standard input.
    pub async fn type_in(&mut self, data: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("there is no standard input")?;
        Ok(stdin.send(Bytes::copy_from_slice(data)).await?)
    }

    /// Takes standard input out, to send while something else is read.
    pub fn take_stdin(&mut self) -> Option<Writer> {
        self.stdin.take()
    }

    /// Ends standard input.
    pub async fn end_stdin(&mut self) -> Result<()> {
        Ok(self.stdin.take().context("it ended already")?.finish().await?)
    }

    /// Says how large the terminal is.
    pub async fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}\n");
        let resize = self.resize.as_mut().context("there is no terminal")?;
        Ok(resize.send(size.into()).await?)
    }

    /// Reads standard output until it has `needle` in it; all that was read.
    pub async fn read_until(&mut self, needle: &str) -> Result<String> {
        let stdout = self.stdout.as_mut().context("standard output was not asked for")?;
        let mut text = String::new();
        while !text.contains(needle) {
            let piece = timeout(LIMIT, stdout.next()).await;
            match piece.with_context(|| format!("{needle:?} did not come after {text:?}"))?? {
                Some(piece) => text.push_str(&String::from_utf8_lossy(&piece)),
                None => bail!("the output ended without {needle:?}: {text:?}"),
            }
        }
        Ok(text)
    }

    /// Reads everything to its end.
    pub async fn end(mut self) -> Result<Ended> {
        let (stdout, stderr, error) =
            tokio::join!(rest(self.stdout.take()), rest(self.stderr.take()), all(&mut self.error));
        let error = error?;
        let status = serde_json::from_slice(&error)
            .with_context(|| format!("no status: {:?}", String::from_utf8_lossy(&error)))?;
        let ended = Ended { stdout: stdout?, stderr: stderr?, status };
        drop(self.connection);
        Ok(ended)
    }
}

/// Connections to ports over SPDY.
pub struct Forward {
    connection: Connection,
    requests: u32,
}

/// One connection to a port.
pub struct PortStream {
    /// What comes from the port.
    pub reader: Reader,
    /// What goes to the port.
    pub writer: Writer,
    error: Reader,
}

impl Forward {
    /// Connects as kubectl does.
    pub async fn open(url: &str) -> Result<Forward> {
        let (connection, protocol) = connect(url, &["portforward.k8s.io"]).await?;
        ensure!(protocol == "portforward.k8s.io", "agreed on {protocol:?}");
        Ok(Forward::over(connection))
    }

    /// On a connection that is there.
    pub fn over(connection: Connection) -> Forward {
        Forward { connection, requests: 0 }
    }

    /// Connects to a port; whether somebody listens there shows later.
    pub async fn port(&mut self, port: u16) -> Result<PortStream> {
        let (port, request) = (port.to_string(), self.requests.to_string());
        self.requests += 1;
        let headers = |kind: &str| -> Headers {
            [("streamType", kind), ("port", port.as_str()), ("requestID", request.as_str())]
                .into_iter()
                .collect()
        };
        let error = timeout(LIMIT, self.connection.open(headers("error"))).await??;
        error.writer.finish().await?;
        let data = timeout(LIMIT, self.connection.open(headers("data"))).await??;
        Ok(PortStream { reader: data.reader, writer: data.writer, error: error.reader })
    }
}

impl PortStream {
    /// Sends, ends its half, and reads to the end; what came, or what the server says is wrong.
    pub async fn ask(mut self, question: &[u8]) -> Result<Vec<u8>> {
        let answer = async {
            // A port that nobody listens at may be told of before all is sent.
            if self.writer.send(Bytes::copy_from_slice(question)).await.is_ok() {
                self.writer.finish().await.ok();
            }
            all(&mut self.reader).await
        };
        let (answer, problem) = tokio::join!(answer, all(&mut self.error));
        let problem = problem?;
        ensure!(problem.is_empty(), "{}", String::from_utf8_lossy(&problem));
        answer
    }
}

/// Upgrades a link to SPDY; the connection, and the protocol that was agreed on.
pub async fn connect(url: &str, protocols: &[&str]) -> Result<(Connection, String)> {
    connect_over(TcpStream::connect(host_of(url)?).await?, url, protocols).await
}

/// As [`connect`], on a connection that is there.
pub async fn connect_over<T>(
    stream: T,
    url: &str,
    protocols: &[&str],
) -> Result<(Connection, String)>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let offered: String =
        protocols.iter().map(|name| format!("X-Stream-Protocol-Version: {name}\r\n")).collect();
    let headers = format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{offered}");
    let (stream, answer) = request_over(stream, url, "POST", &headers).await?;
    ensure!(answer.starts_with("HTTP/1.1 101 "), "not upgraded: {answer}");
    let agreed = answer.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-stream-protocol-version").then(|| value.trim().to_owned())
    });
    let connection = Connection::start(stream, Role::Client, Limits::default());
    Ok((connection, agreed.unwrap_or_default()))
}

/// Sends a request without a body to a link; the connection, and the head of the answer.
pub async fn request(url: &str, method: &str, headers: &str) -> Result<(TcpStream, String)> {
    let stream = TcpStream::connect(host_of(url)?).await?;
    stream.set_nodelay(true)?;
    request_over(stream, url, method, headers).await
}

async fn request_over<T>(
    mut stream: T,
    url: &str,
    method: &str,
    headers: &str,
) -> Result<(T, String)>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (_, rest) = url.split_once("://").context("a link has a scheme")?;
    let (host, path) = rest.split_once('/').context("a link has a path")?;
    let head = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    // What follows the head belongs to others.
    let read = async {
        while !answer.ends_with(b"\r\n\r\n") && answer.len() < HEAD_BYTES {
            answer.push(stream.read_u8().await?);
        }
        Ok::<_, std::io::Error>(())
    };
    timeout(LIMIT, read).await.context("no answer came in time")??;
    Ok((stream, String::from_utf8_lossy(&answer).into_owned()))
}

/// Host and port of a link.
pub fn host_of(url: &str) -> Result<&str> {
    let (_, rest) = url.split_once("://").context("a link has a scheme")?;
    Ok(rest.split_once('/').context("a link has a path")?.0)
}

async fn rest(reader: Option<Reader>) -> Result<Vec<u8>> {
    match reader {
        Some(mut reader) => all(&mut reader).await,
        None => Ok(Vec::new()),
    }
}

/// Everything that comes.
pub async fn all(reader: &mut Reader) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(piece) =
        timeout(LIMIT, reader.next()).await.context("nothing came in time")??
    {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

const LIMIT: Duration = Duration::from_secs(60);
const HEAD_BYTES: usize = 16 << 10;
