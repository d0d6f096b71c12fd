//! Bytes in WebSocket messages, as a connection: newer kubectls put SPDY into WebSocket.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::over_websocket::normal_close;

/// Both ends of a tunnel: the connection in it, and what has to be run for as long as it is used.
pub(super) fn open<T>(socket: WebSocketStream<T>) -> (DuplexStream, impl Future<Output = ()>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (inner, outer) = tokio::io::duplex(PIECE_BYTES);
    (inner, carry(socket, outer))
}

/// Until either end closes.
async fn carry<T>(socket: WebSocketStream<T>, outer: DuplexStream)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut stream) = socket.split();
    let (mut read, mut write) = tokio::io::split(outer);
    let inward = async {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) => write.write_all(&data).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        write.shutdown().await
    };
    let outward = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            let message = Message::binary(buffer[..count].to_vec());
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(normal_close()).await;
    };
    let (mut inward, mut outward) = (std::pin::pin!(inward), std::pin::pin!(outward));
    tokio::select! {
        // What is inside sees the end, and ends.
        _ = &mut inward => outward.await,
        // A client that does not answer a close is left.
        () = &mut outward => drop(timeout(LINGER, inward).await),
    }
}

const PIECE_BYTES: usize = 32 << 10;
const LINGER: Duration = Duration::from_secs(5);
