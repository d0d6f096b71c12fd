//! The node's end of a first connection. See the protocol's `MeetingRequest` for what is said on it.

use std::io;
use std::time::Duration;

use infranetes_agent_protocol::MEETING_MESSAGE_BYTES_MAX;
use infranetes_agent_protocol::v1::meeting_answer::Answer;
use infranetes_agent_protocol::v1::meeting_request::Request;
use infranetes_agent_protocol::v1::{MeetingAnswer, MeetingRefusal, MeetingRequest};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::dial::Tls;

/// A connection on which requests are answered one by one.
pub(super) struct Meeting {
    tls: Tls,
}

impl Meeting {
    pub(super) fn new(tls: Tls) -> Self {
        Self { tls }
    }

    /// Asks, and waits at most so long.
    pub(super) async fn ask(
        &mut self,
        request: Request,
        limit: Duration,
    ) -> Result<Answer, MeetingError> {
        let request = MeetingRequest { request: Some(request) };
        let asked = timeout(limit, self.exchange(&request.encode_to_vec())).await;
        let answer = asked.map_err(|_| MeetingError::TimedOut(limit))??;
        match answer.answer.ok_or(MeetingError::Unexpected)? {
            Answer::Refused(refusal) => Err(MeetingError::Refused(refusal)),
            answer => Ok(answer),
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<MeetingAnswer, MeetingError> {
        let length = u32::try_from(request.len()).map_err(io::Error::other)?;
        // In one piece: two would be two packets.
        self.tls.write_all(&[&length.to_be_bytes(), request].concat()).await?;
        self.tls.flush().await?;
        let length = self.tls.read_u32().await? as usize;
        if length > MEETING_MESSAGE_BYTES_MAX {
            return Err(MeetingError::TooLong(length));
        }
        let mut answer = vec![0; length];
        self.tls.read_exact(&mut answer).await?;
        Ok(MeetingAnswer::decode(answer.as_slice())?)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum MeetingError {
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("no answer came within {0:?}")]
    TimedOut(Duration),
    #[error("an answer of {0} bytes is longer than any of an agent")]
    TooLong(usize),
    #[error("an answer cannot be read")]
    Malformed(#[from] prost::DecodeError),
    #[error("an answer to another question came")]
    Unexpected,
    #[error("it refused: {}", .0.message)]
    Refused(MeetingRefusal),
}
