//! One first connection, from its handshake to the last answer.
//!
//! ```text
//!  Fresh ── begin: the token's proof ──► Begun ── complete: a certificate of the node's CA ──► Enrolled ── bind ──► Over
//!    └── anything else, or anything wrong ──► Over
//! ```

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use infranetes_agent_protocol::v1::meeting_answer::Answer;
use infranetes_agent_protocol::v1::meeting_request::Request;
use infranetes_agent_protocol::v1::{
    BeginEnrolmentRequest, BeginEnrolmentResponse, CompleteEnrolmentRequest,
    CompleteEnrolmentResponse, MeetingAnswer, MeetingRefusal, MeetingRequest,
};
use infranetes_agent_protocol::{ENROLMENT_EXPORTER_LABEL, MEETING_MESSAGE_BYTES_MAX};
use nix::poll::{PollFd, PollFlags};
use prost::Message;
use rustls::{ServerConfig, ServerConnection};
use tonic::{Code, Status};

use super::Stream;
use crate::identity::{Channel, IdentityError, PendingKey};
use crate::lines::chain;
use crate::machine::Machine;
use crate::server::{bind_first, first_hello};

pub(super) struct Conversation {
    id: u64,
    peer: String,
    stream: Box<dyn Stream>,
    tls: ServerConnection,
    step: Step,
    input: Vec<u8>,
    deadline: Instant,
}

enum Step {
    Fresh,
    Begun(PendingKey),
    Enrolled,
    Over,
}

impl Conversation {
    /// Takes a connection that does not block.
    pub(super) fn begin(
        stream: Box<dyn Stream>,
        peer: String,
        config: Arc<ServerConfig>,
    ) -> Result<Self, rustls::Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            peer,
            stream,
            tls: ServerConnection::new(config)?,
            step: Step::Fresh,
            input: Vec::new(),
            deadline: Instant::now() + ENROLMENT_TIMEOUT,
        })
    }

    /// Newer ones have greater ones.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    /// When it ends whatever it says.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What it waits for.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        let writes = if self.tls.wants_write() { PollFlags::POLLOUT } else { PollFlags::empty() };
        PollFd::new(self.stream.as_fd(), PollFlags::POLLIN | writes)
    }

    /// Whether it enrolled the agent and may bind it.
    pub(super) fn is_enrolled(&self) -> bool {
        matches!(self.step, Step::Enrolled)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.step, Step::Over)
    }

    /// Takes what has come, and answers.
    pub(super) fn hear(&mut self, machine: &Machine) {
        let heard = self.take(machine);
        // An alert, or the last answer: lost if it cannot go out at once.
        let sent = self.send();
        match heard.and(sent) {
            Ok(()) => (),
            Err(Trouble::Left) => self.step = Step::Over,
            Err(trouble) => {
                self.step = Step::Over;
                machine.refused(&self.peer, &chain(&trouble));
            }
        }
        if self.is_over() {
            self.tls.send_close_notify();
            let _ = self.send();
        }
    }

    fn take(&mut self, machine: &Machine) -> Result<(), Trouble> {
        loop {
            match self.tls.read_tls(&mut self.stream) {
                Ok(0) => return Err(Trouble::Left),
                Ok(_) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Trouble::Broken(error)),
            }
            let state = self.tls.process_new_packets()?;
            if state.plaintext_bytes_to_read() > 0 {
                let from = self.input.len();
                self.input.resize(from + state.plaintext_bytes_to_read(), 0);
                self.tls.reader().read_exact(&mut self.input[from..])?;
            }
            while let Some(request) = self.next_request()? {
                let answer = self.answer(machine, request)?;
                self.tls.writer().write_all(&framed(&answer))?;
                if self.is_over() {
                    return Ok(());
                }
            }
            if state.peer_has_closed() {
                return Err(Trouble::Left);
            }
        }
    }

    fn send(&mut self) -> Result<(), Trouble> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.stream) {
                Ok(_) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Trouble::Broken(error)),
            }
        }
        Ok(())
    }

    /// The next message, once all of it came.
    fn next_request(&mut self) -> Result<Option<Request>, Trouble> {
        let Some((length, rest)) = self.input.split_first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MEETING_MESSAGE_BYTES_MAX {
            return Err(Trouble::TooLong(length));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let request = MeetingRequest::decode(message)?.request;
        self.input.drain(..size_of::<u32>() + length);
        request.map(Some).ok_or(Trouble::Empty)
    }

    /// Answers a request. A refusal is an answer, and the end.
    fn answer(&mut self, machine: &Machine, request: Request) -> Result<MeetingAnswer, Trouble> {
        let step = std::mem::replace(&mut self.step, Step::Over);
        let answered = match (step, request) {
            (Step::Fresh, Request::Begin(request)) => self.begin_enrolment(machine, &request),
            (Step::Begun(key), Request::Complete(request)) => self.complete(machine, &key, request),
            (Step::Enrolled, Request::Bind(request)) => {
                bind_first(machine, request).map(Answer::Bound)
            }
            _ => {
                Err(Status::failed_precondition("a meeting begins, completes and binds, once each"))
            }
        };
        let answer = answered.unwrap_or_else(|status| {
            self.step = Step::Over;
            machine.refused(&self.peer, &status.message());
            let (code, message) = (status.code() as i32, status.message().to_owned());
            Answer::Refused(MeetingRefusal { code, message })
        });
        Ok(MeetingAnswer { answer: Some(answer) })
    }

    fn begin_enrolment(
        &mut self,
        machine: &Machine,
        request: &BeginEnrolmentRequest,
    ) -> Result<Answer, Status> {
        let channel = self
            .tls
            .export_keying_material(Channel::default(), ENROLMENT_EXPORTER_LABEL, None)
            .map_err(|error| Status::internal(error.to_string()))?;
        let begun = machine.identity.begin(&channel, &request.node_proof).map_err(refusal)?;
        self.step = Step::Begun(begun.key);
        Ok(Answer::Begun(BeginEnrolmentResponse {
            certificate_request: begun.certificate_request,
            agent_proof: begun.proof,
        }))
    }

    /// A node of another time is refused before the agent belongs to it.
    fn complete(
        &mut self,
        machine: &Machine,
        key: &PendingKey,
        request: CompleteEnrolmentRequest,
    ) -> Result<Answer, Status> {
        let hello = request.hello.unwrap_or_default();
        let hello = first_hello(machine, &hello, || {
            machine.identity.complete(key, request.certificate_chain).map_err(refusal)
        })?;
        tracing::info!("enrolled");
        self.step = Step::Enrolled;
        self.deadline = Instant::now() + BIND_TIMEOUT;
        Ok(Answer::Completed(CompleteEnrolmentResponse { hello: Some(hello) }))
    }
}

fn refusal(error: IdentityError) -> Status {
    let code = match error {
        IdentityError::AlreadyEnrolled => Code::FailedPrecondition,
        IdentityError::Proof => Code::PermissionDenied,
        IdentityError::Chain(_) | IdentityError::Certificate(_) => Code::Unauthenticated,
        _ => Code::Internal,
    };
    Status::new(code, chain(&error))
}

/// A message behind its length.
fn framed(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(size_of::<u32>() + length);
    // No answer comes near four GiB.
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

/// Why a connection ends without an answer.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the peer left")]
    Left,
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("TLS failed")]
    Tls(#[from] rustls::Error),
    #[error("a message of {0} bytes is longer than any of a node")]
    TooLong(usize),
    #[error("a message cannot be read")]
    Malformed(#[from] prost::DecodeError),
    #[error("a message is empty")]
    Empty,
}

const ENROLMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// A node binds a machine as soon as it noted that it is enrolled. Later it comes by a session.
const BIND_TIMEOUT: Duration = Duration::from_secs(10);
