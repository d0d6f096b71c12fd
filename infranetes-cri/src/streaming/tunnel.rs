//! Bytes in WebSocket messages, as a connection: newer kubectls put SPDY into WebSocket.

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

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
        let _ = sink.close().await;
    };
    // The one that is inside ends by itself when nothing comes any more.
    let _ = tokio::join!(inward, outward);
}

const PIECE_BYTES: usize = 32 << 10;
