//! SPDY/3.1 as the tools of Kubernetes speak it: streams that go both ways over one connection. It knows nothing of pods.
//!
//! ```text
//!  peer ──► frames ──► one reader ──► each stream's input        one writer ◄── all streams' output
//! ```
//!
//! # What it promises
//! - A side that ends its half of a stream (FIN) leaves the other half open.
//! - What waits unread is bounded for the whole connection ([`Limits::unread_bytes`]): past it nothing more is read from the
//!   peer, whichever stream it is for. What waits to be sent is a few pieces; senders wait.
//! - A peer may be hostile: sizes before and after decompression, counts and ids are checked, and a peer that breaks the rules
//!   gets GOAWAY and loses the connection.
//!
//! # What it does not do
//! - Windows do not hold senders back: the peers that matter (moby/spdystream in every kubectl and kubelet) neither keep to them nor
//!   open ours again. For those who do, WINDOW_UPDATE is sent as input is taken.
//! - Priorities, push, settings and credentials are read and ignored.

mod connection;
mod dictionary;
mod frame;
mod headers;
mod stream;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::connection::{Connection, Offer};
pub use self::headers::Headers;
pub use self::stream::{Reader, Stream, Writer};

/// Which side one is: it decides whose stream ids are odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Whose streams are odd.
    Client,
    /// Whose streams are even.
    Server,
}

/// Bounds of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams that are open at once; more are refused.
    pub streams: usize,
    /// Bytes of a control frame, which holds headers in compressed form.
    pub control_bytes: usize,
    /// Bytes of a block of headers after decompression.
    pub header_bytes: usize,
    /// Bytes of all streams that have come and were not taken.
    pub unread_bytes: usize,
    /// A connection on which nothing moves for so long ends. Pings do not count.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 256,
            control_bytes: 16 << 10,
            header_bytes: 64 << 10,
            unread_bytes: 256 << 10,
            idle: Duration::from_secs(4 * 3600),
        }
    }
}

/// Why a connection or a stream ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// The connection below broke.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// The peer sent what SPDY does not have.
    #[error("the peer sent {0}")]
    Protocol(&'static str),
    /// The peer went past a bound.
    #[error("the peer sent more than is allowed: {0}")]
    Limit(&'static str),
    /// Nothing moved.
    #[error("nothing moved for {0:?}")]
    Idle(Duration),
    /// The peer reset or refused the stream.
    #[error("the peer reset the stream")]
    Reset,
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
}
