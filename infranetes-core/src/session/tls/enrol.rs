//! Inviting an agent and enrolling it. See the protocol's `Enrolment` for what the proofs cover, and why.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use infranetes_agent_protocol::v1::enrolment_client::EnrolmentClient;
use infranetes_agent_protocol::v1::{
    BeginEnrolmentRequest, BeginEnrolmentResponse, CompleteEnrolmentRequest,
};
use infranetes_agent_protocol::{
    AGENT_PROOF_PREFIX, ENROLMENT_EXPORTER_LABEL, NODE_PROOF_PREFIX, USER_DATA_VERSION, UserData,
};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};
use rustls_pki_types::ServerName;
use zeroize::Zeroize;

use super::dial::{Endpoint, channel};
use super::failure::{tls_problem, within};
use super::trust::{NodeTrust, local};
use crate::error::FailureKind;
use crate::session::{AgentIdentity, Invitation, SessionError, Ticket};

/// A name of its own for every invitation, and a fresh token.
pub(super) fn invite(trust: &NodeTrust) -> Result<Invitation, SessionError> {
    let random = SystemRandom::new();
    let mut name = [0_u8; 16];
    let mut token = vec![0_u8; 32];
    for bytes in [&mut name[..], &mut token[..]] {
        random.fill(bytes).map_err(|_| local("make a token", "the system gives no randomness"))?;
    }
    let agent_name = format!("a{}.agent.infranetes", hex::encode(name));
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

/// Enrols. An agent that has a certificate of ours for this name enrolled before, and the answer got lost: that is success.
pub(super) async fn enrol(
    trust: &Arc<NodeTrust>,
    endpoint: &Endpoint,
    ticket: &Ticket,
) -> Result<AgentIdentity, SessionError> {
    let name = server_name(&ticket.agent_name)?;
    let (config, anybody) = trust.enrolling()?;
    let tls = endpoint.dial_booting(&Arc::new(config), &name).await?;
    let identity = AgentIdentity { agent_name: ticket.agent_name.clone() };
    if anybody.is_ours() {
        return Ok(identity);
    }
    let keys = tls
        .get_ref()
        .1
        .export_keying_material([0_u8; 32], ENROLMENT_EXPORTER_LABEL, None)
        .map_err(|cause| local("export keying material", cause))?;
    let proofs = Proofs { token: hmac::Key::new(hmac::HMAC_SHA256, &ticket.token), channel: keys };
    let channel = channel(tls).await.map_err(|cause| lost(endpoint, cause))?;
    let mut client = EnrolmentClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);

    let begin = BeginEnrolmentRequest { node_proof: proofs.node() };
    let begun = within(CALL_TIMEOUT, client.begin(begin))
        .await
        .map_err(|error| refused(endpoint, error))?
        .into_inner();
    if !proofs.fit(&begun) {
        return Err(endpoint.untrusted("its proof does not fit the token and this connection"));
    }
    let certificate =
        trust.ca.sign_agent(&begun.certificate_request, &ticket.agent_name, trust.life).map_err(
            |error| endpoint.untrusted(format!("its certificate request was refused: {error}")),
        )?;
    let complete = CompleteEnrolmentRequest { certificate_chain: vec![certificate.to_vec()] };
    within(CALL_TIMEOUT, client.complete(complete))
        .await
        .map_err(|error| refused(endpoint, error))?;
    Ok(identity)
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
fn refused(endpoint: &Endpoint, error: SessionError) -> SessionError {
    match error {
        SessionError::Refused { kind: FailureKind::Denied | FailureKind::Unsupported, message } => {
            endpoint.untrusted(format!("it refused: {message}"))
        }
        SessionError::Broken(cause) => lost(endpoint, cause),
        error => error,
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
const MESSAGE_BYTES_MAX: usize = 32 * 1024;

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
