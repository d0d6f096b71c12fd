//! Inviting an agent and enrolling it. See the protocol's `MeetingRequest` for what the proofs cover, and why.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use infranetes_agent_protocol::v1::meeting_answer::Answer;
use infranetes_agent_protocol::v1::meeting_request::Request;
use infranetes_agent_protocol::v1::{
    BeginEnrolmentRequest, BeginEnrolmentResponse, CompleteEnrolmentRequest,
};
use infranetes_agent_protocol::{
    AGENT_PROOF_PREFIX, ENROLMENT_EXPORTER_LABEL, MEETING_PROTOCOL, NODE_PROOF_PREFIX,
    USER_DATA_VERSION, UserData,
};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};
use rustls_pki_types::{CertificateDer, ServerName};
use tonic::Code;
use zeroize::Zeroize;

use super::dial::Endpoint;
use super::failure::tls_problem;
use super::meeting::{Meeting, MeetingError};
use super::session::{checked_hello, hello_request, version_mismatch};
use super::trust::{NodeTrust, local};
use crate::session::{AgentHello, AgentIdentity, Invitation, SessionError, Ticket};

/// A name of its own for every invitation, and a fresh token.
pub(super) fn invite(trust: &NodeTrust) -> Result<Invitation, SessionError> {
    let agent_name = name()?;
    let mut token = vec![0_u8; 32];
    fill(&mut token)?;
    let base64 = &base64::engine::general_purpose::STANDARD;
    let mut data = UserData {
        version: USER_DATA_VERSION,
        agent_name: agent_name.clone(),
        ca_pem: pem(&base64.encode(trust.ca.certificate())),
        token: base64.encode(&token),
        listen: None,
    };
    let user_data = serde_json::to_vec(&data).map_err(|cause| local("write user-data", cause))?;
    data.token.zeroize();
    Ok(Invitation { user_data, ticket: Ticket { agent_name, token } })
}

/// A name that no agent has.
pub(super) fn name() -> Result<String, SessionError> {
    let mut name = [0_u8; 16];
    fill(&mut name)?;
    Ok(format!("a{}.agent.infranetes", hex::encode(name)))
}

fn fill(bytes: &mut [u8]) -> Result<(), SessionError> {
    let filled = SystemRandom::new().fill(bytes);
    filled.map_err(|_| local("make a token", "the system gives no randomness"))
}

/// An agent that belongs to this node now.
pub(super) struct Met {
    pub(super) identity: AgentIdentity,
    /// What follows on the same connection; `None` if it had enrolled before.
    pub(super) first: Option<First>,
}

/// The connection on which an agent enrolled, and what came of it.
pub(super) struct First {
    pub(super) meeting: Meeting,
    pub(super) hello: AgentHello,
    pub(super) certificate: CertificateDer<'static>,
}

/// Enrols. An agent that has a certificate of ours for this name enrolled before, and the answer got lost: that is success.
pub(super) async fn enrol(
    trust: &Arc<NodeTrust>,
    endpoint: &Endpoint,
    ticket: &Ticket,
) -> Result<Met, SessionError> {
    let name = server_name(&ticket.agent_name)?;
    let (config, anybody) = trust.enrolling()?;
    let tls = endpoint.dial_booting(&Arc::new(config), &name).await?;
    let identity = AgentIdentity { agent_name: ticket.agent_name.clone() };
    if tls.get_ref().1.alpn_protocol() != Some(MEETING_PROTOCOL) {
        return match anybody.is_ours() {
            true => Ok(Met { identity, first: None }),
            false => Err(endpoint.untrusted(
                "it refused this node: it is enrolled already, and not as the agent of this ticket",
            )),
        };
    }
    let keys = tls
        .get_ref()
        .1
        .export_keying_material([0_u8; 32], ENROLMENT_EXPORTER_LABEL, None)
        .map_err(|cause| local("export keying material", cause))?;
    let proofs = Proofs { token: hmac::Key::new(hmac::HMAC_SHA256, &ticket.token), channel: keys };
    let mut meeting = Meeting::new(tls);

    let begin = BeginEnrolmentRequest { node_proof: proofs.node() };
    let begun = match meeting.ask(Request::Begin(begin), CALL_TIMEOUT).await {
        Ok(Answer::Begun(begun)) => begun,
        answer => return Err(failed(endpoint, answer)),
    };
    if !proofs.fit(&begun) {
        return Err(endpoint.untrusted("its proof does not fit the token and this connection"));
    }
    let certificate =
        trust.ca.sign_agent(&begun.certificate_request, &ticket.agent_name, trust.life).map_err(
            |error| endpoint.untrusted(format!("its certificate request was refused: {error}")),
        )?;
    let complete = CompleteEnrolmentRequest {
        certificate_chain: vec![certificate.to_vec()],
        hello: Some(hello_request()),
    };
    let completed = match meeting.ask(Request::Complete(complete), CALL_TIMEOUT).await {
        Ok(Answer::Completed(completed)) => completed,
        answer => return Err(failed(endpoint, answer)),
    };
    let hello = checked_hello(completed.hello.unwrap_or_default())?;
    Ok(Met { identity, first: Some(First { meeting, hello, certificate }) })
}

/// The name that an agent's certificate has to carry.
pub(super) fn server_name(agent_name: &str) -> Result<ServerName<'static>, SessionError> {
    ServerName::try_from(agent_name.to_owned())
        .map_err(|cause| local("use the agent's name", cause))
}

struct Proofs {
    token: hmac::Key,
    channel: [u8; 32],
}

impl Proofs {
    fn node(&self) -> Vec<u8> {
        let covered = [NODE_PROOF_PREFIX, &self.channel].concat();
        hmac::sign(&self.token, &covered).as_ref().to_vec()
    }

    fn fit(&self, begun: &BeginEnrolmentResponse) -> bool {
        let hash = digest::digest(&digest::SHA256, &begun.certificate_request);
        let covered = [AGENT_PROOF_PREFIX, &self.channel, hash.as_ref()].concat();
        hmac::verify(&self.token, &covered, &begun.agent_proof).is_ok()
    }
}

/// A refusal tells that it is not the agent of this ticket. A connection that broke tells nothing yet: asking again finds
/// out whether the agent is enrolled.
fn failed(endpoint: &Endpoint, answer: Result<Answer, MeetingError>) -> SessionError {
    let error = answer.err().unwrap_or(MeetingError::Unexpected);
    match error {
        MeetingError::Broken(cause) => lost(endpoint, cause),
        MeetingError::TimedOut(limit) => SessionError::TimedOut(limit),
        MeetingError::Refused(refusal) => match Code::from_i32(refusal.code) {
            Code::FailedPrecondition => version_mismatch(refusal.message),
            // Another connection was faster.
            Code::AlreadyExists => lost(endpoint, refusal.message),
            _ => endpoint.untrusted(format!("it refused this node: {}", refusal.message)),
        },
        error => SessionError::Violation(error.to_string()),
    }
}

fn lost(
    endpoint: &Endpoint,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> SessionError {
    let cause = cause.into();
    match tls_problem(cause.as_ref()) {
        Some(problem) => endpoint.untrusted(problem),
        None => SessionError::NotYet { endpoint: endpoint.to_string(), cause },
    }
}

fn pem(base64: &str) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in base64.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

const CALL_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tls::NodeCa;

    #[test]
    fn every_invitation_has_its_own_name_and_token() {
        let trust = NodeTrust::new(NodeCa::generate().unwrap(), Duration::from_secs(60));
        let (one, two) = (invite(&trust).unwrap(), invite(&trust).unwrap());
        assert_ne!(one.ticket.agent_name, two.ticket.agent_name);
        assert_ne!(one.ticket.token, two.ticket.token);
        assert!(server_name(&one.ticket.agent_name).is_ok());
        assert!(one.user_data.len() < 2048, "user-data of some clouds is small");
    }
}
