//! Connections to what listens on the machine's loopback, which is the pod's.
//!
//! Each direction ends by itself: the node's end of data shuts the socket's writing side down, the socket's end is told by
//! `closed`, and the answer ends when both are over. Neither direction reads more than the other side takes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures::{Stream, StreamExt};
use infranetes_agent_protocol::v1::port_forward_request::Input;
use infranetes_agent_protocol::v1::port_forward_response::Output;
use infranetes_agent_protocol::v1::{
    PortForwardConnected, PortForwardRequest, PortForwardResponse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{ResponseStream, credit};

type Sender = mpsc::Sender<Result<PortForwardResponse, Status>>;

/// Connects to the port that the first message names. Dropping the answer closes the connection.
pub(super) async fn port_forward(
    mut input: impl Stream<Item = Result<PortForwardRequest, Status>> + Unpin + Send + 'static,
) -> Result<ResponseStream<PortForwardResponse>, Status> {
    let first = timeout(START_TIMEOUT, input.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no first message came in time"))?;
    let Some(Input::Start(start)) = first.transpose()?.and_then(|first| first.input) else {
        return Err(Status::invalid_argument("the first message of a port-forward starts it"));
    };
    let port = u16::try_from(start.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| Status::invalid_argument("a port is 1 to 65535"))?;
    let (read, write) = connect(port).await?.into_split();
    let (input, taken) = credit::counted(input, |part| match part {
        Ok(PortForwardRequest { input: Some(Input::Data(data)) }) => data.len(),
        _ => 0,
    });
    let (sender, answers) = mpsc::channel(MESSAGES);
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = async { tokio::try_join!(send(read, &sender), receive(input, write)) } => ended,
            // The node is gone.
            () = sender.closed() => return,
        };
        if let Err(status) = ended {
            sender.send(Err(status)).await.ok();
        }
    });
    let connected = Ok(message(Output::Connected(PortForwardConnected {})));
    let later = credit::with_taken(ReceiverStream::new(answers), taken, |taken| {
        message(Output::Taken(taken))
    });
    Ok(Box::pin(futures::stream::iter([connected]).chain(later)))
}

/// As a client in the pod would: IPv4 first, then IPv6.
async fn connect(port: u16) -> Result<TcpStream, Status> {
    let mut problems = Vec::new();
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((ip, port))).await {
            Ok(Ok(stream)) => {
                // What is forwarded may be a dialogue of small messages.
                stream.set_nodelay(true).map_err(|error| broken(&error))?;
                return Ok(stream);
            }
            Ok(Err(error)) => problems.push(format!("{ip}: {error}")),
            Err(_) => problems.push(format!("{ip}: no answer within {CONNECT_TIMEOUT:?}")),
        }
    }
    let problems = problems.join("; ");
    Err(Status::unavailable(format!("nobody answers at port {port} of the pod ({problems})")))
}

/// From the socket to the node.
async fn send(mut socket: OwnedReadHalf, sender: &Sender) -> Result<(), Status> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let output = match socket.read(&mut buffer).await.map_err(|error| broken(&error))? {
            0 => Output::Closed(true),
            count => Output::Data(buffer[..count].to_vec()),
        };
        let is_last = matches!(output, Output::Closed(_));
        if sender.send(Ok(message(output))).await.is_err() || is_last {
            return Ok(());
        }
    }
}

/// From the node to the socket.
async fn receive(
    mut input: impl Stream<Item = Result<PortForwardRequest, Status>> + Unpin,
    mut socket: OwnedWriteHalf,
) -> Result<(), Status> {
    while let Some(part) = input.next().await {
        match part?.input {
            Some(Input::Data(data)) => {
                socket.write_all(&data).await.map_err(|error| broken(&error))?;
            }
            Some(Input::Closed(_)) => break,
            Some(Input::Start(_)) | None => {
                return Err(Status::invalid_argument("a port-forward was started twice"));
            }
        }
    }
    // One that closed already needs no telling.
    let _ = socket.shutdown().await;
    Ok(())
}

fn message(output: Output) -> PortForwardResponse {
    PortForwardResponse { output: Some(output) }
}

fn broken(error: &io::Error) -> Status {
    Status::unavailable(format!("the connection in the pod broke: {error}"))
}

const START_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PIECE_BYTES: usize = 32 * 1024;
const MESSAGES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use infranetes_agent_protocol::v1::PortForwardStart;
    use tokio::net::TcpListener;

    fn input(part: Input) -> Result<PortForwardRequest, Status> {
        Ok(PortForwardRequest { input: Some(part) })
    }

    fn start(port: u16) -> Result<PortForwardRequest, Status> {
        input(Input::Start(PortForwardStart { port: port.into() }))
    }

    async fn answers(mut stream: ResponseStream<PortForwardResponse>) -> Vec<Output> {
        let mut all = Vec::new();
        while let Some(answer) = timeout(START_TIMEOUT, stream.next()).await.unwrap() {
            all.push(answer.unwrap().output.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn each_direction_closes_by_itself() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address).await else { continue };
            let port = listener.local_addr().unwrap().port();
            let server = tokio::spawn(async move {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await.unwrap();
                socket.write_all(b"after your end").await.unwrap();
                all
            });
            let messages = [start(port), input(Input::Data(b"question".to_vec()))];
            let stream = port_forward(futures::stream::iter(messages)).await.unwrap();
            assert_eq!(
                answers(stream).await,
                [
                    Output::Connected(PortForwardConnected {}),
                    Output::Data(b"after your end".to_vec()),
                    Output::Closed(true)
                ]
            );
            assert_eq!(server.await.unwrap(), b"question");
        }
    }

    #[tokio::test]
    async fn a_socket_that_closes_first_still_gets_what_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.shutdown().await.unwrap();
            let mut all = Vec::new();
            socket.read_to_end(&mut all).await.unwrap();
            all
        });
        let (sender, messages) = mpsc::channel(1);
        sender.send(start(port)).await.unwrap();
        let mut stream = port_forward(ReceiverStream::new(messages)).await.unwrap();
        let connected = stream.next().await.unwrap().unwrap().output;
        assert_eq!(connected, Some(Output::Connected(PortForwardConnected {})));
        assert_eq!(stream.next().await.unwrap().unwrap().output, Some(Output::Closed(true)));
        sender.send(input(Input::Data(b"late".to_vec()))).await.unwrap();
        sender.send(input(Input::Closed(true))).await.unwrap();
        assert!(stream.next().await.is_none());
        assert_eq!(server.await.unwrap(), b"late");
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let cases = [
            (vec![start(closed)], tonic::Code::Unavailable),
            (vec![start(0)], tonic::Code::InvalidArgument),
            (vec![input(Input::Closed(true))], tonic::Code::InvalidArgument),
            (vec![], tonic::Code::InvalidArgument),
        ];
        for (messages, code) in cases {
            let error = port_forward(futures::stream::iter(messages)).await.err().unwrap();
            assert_eq!(error.code(), code, "{error}");
        }
    }
}
