//! Links over WebSocket.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{SinkExt, StreamExt};
use infranetes_cri::streaming::spdy::{Connection, Limits, Role};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::host_of;

/// A link's channels over WebSocket.
pub struct Socket<T = TcpStream>(WebSocketStream<T>);

impl Socket {
    /// Connects with one subprotocol.
    pub async fn open(url: &str, protocol: &str) -> Result<Socket> {
        Socket::over(TcpStream::connect(host_of(url)?).await?, url, protocol).await
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Socket<T> {
    /// As [`Socket::open`], on a connection that is there.
    pub async fn over(stream: T, url: &str, protocol: &str) -> Result<Self> {
        let url = url.replacen("http", "ws", 1);
        let mut request = url.as_str().into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse()?);
        let (socket, answer) = tokio_tungstenite::client_async(request, stream).await?;
        let agreed = answer.headers().get("Sec-WebSocket-Protocol");
        ensure!(agreed.is_some_and(|agreed| agreed == protocol), "agreed on {agreed:?}");
        Ok(Socket(socket))
    }

    /// Sends to a channel.
    pub async fn send(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        let mut message = vec![channel];
        message.extend_from_slice(data);
        Ok(self.0.send(Message::binary(message)).await?)
    }

    /// The next message of a channel; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            match timeout(LIMIT, self.0.next()).await.context("no message came in time")? {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Binary(data))) => {
                    let (channel, data) = data.split_first().context("an empty message")?;
                    return Ok(Some((*channel, data.to_vec())));
                }
                Some(message) => drop(message?),
            }
        }
    }

    /// Reads to the end: what came on each of the first five channels, and which were said to be closed.
    pub async fn end(mut self) -> Result<([Vec<u8>; 5], Vec<u8>)> {
        let (mut channels, mut closed) = (<[Vec<u8>; 5]>::default(), Vec::new());
        while let Some((channel, data)) = self.next().await? {
            match channels.get_mut(usize::from(channel)) {
                Some(bytes) => bytes.extend(data),
                None => closed.extend(data),
            }
        }
        Ok((channels, closed))
    }
}

/// SPDY within WebSocket, as newer kubectls forward ports.
pub async fn tunnelled(url: &str) -> Result<Connection> {
    let socket = Socket::open(url, "SPDY/3.1+portforward.k8s.io").await?;
    let (mut sink, mut stream) = socket.0.split();
    let (inner, outer) = tokio::io::duplex(32 << 10);
    let (mut read, mut write) = tokio::io::split(outer);
    tokio::spawn(async move {
        let inward = async {
            while let Some(Ok(Message::Binary(data))) = stream.next().await {
                if write.write_all(&data).await.is_err() {
                    return;
                }
            }
            let _ = write.shutdown().await;
        };
        let outward = async {
            let mut buffer = vec![0; 32 << 10];
            while let Ok(count @ 1..) = read.read(&mut buffer).await {
                if sink.send(Message::binary(buffer[..count].to_vec())).await.is_err() {
                    return;
                }
            }
            let _ = sink.close().await;
        };
        tokio::join!(inward, outward);
    });
    Ok(Connection::start(inner, Role::Client, Limits::default()))
}

const LIMIT: Duration = Duration::from_secs(60);
