//! A client's streams, whatever carries them.

use async_trait::async_trait;
use futures::stream::BoxStream;
use infranetes_core::session::duplex::TerminalSize;
use tokio_util::sync::CancellationToken;

use super::status::Form;

/// Streams of a client that runs a command or attaches.
pub(super) struct Channels {
    /// What it types, until it ends its half.
    pub(super) stdin: Option<BoxStream<'static, Vec<u8>>>,
    /// Sizes of its terminal.
    pub(super) resize: Option<BoxStream<'static, TerminalSize>>,
    pub(super) stdout: Option<Box<dyn Output>>,
    pub(super) stderr: Option<Box<dyn Output>>,
    /// How it ended is told here.
    pub(super) error: Box<dyn Output>,
    pub(super) form: Form,
    /// The client went away.
    pub(super) gone: CancellationToken,
}

/// One connection to a port, as its client has it.
pub(super) struct PortChannels {
    pub(super) port: u16,
    /// What it sends, until it ends its half.
    pub(super) input: BoxStream<'static, Vec<u8>>,
    pub(super) output: Box<dyn Output>,
    /// Why it does not work is told here.
    pub(super) error: Box<dyn Output>,
    /// The client went away, or dropped this connection.
    pub(super) gone: CancellationToken,
}

/// Where bytes for a client go.
#[async_trait]
pub(super) trait Output: Send {
    /// Sends; waits for as long as the client does not take it.
    async fn send(&mut self, data: Vec<u8>) -> Result<(), Gone>;

    /// Ends this stream, as far as the client's protocol knows that.
    async fn finish(self: Box<Self>);
}

/// The client does not want it any more.
#[derive(Debug)]
pub(super) struct Gone;
