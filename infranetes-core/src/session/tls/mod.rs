//! Sessions over gRPC, HTTP/2 and mutual TLS: the real [`AgentConnector`].
//!
//! ```text
//!  invite ──► user-data (CA, name, token) ──► machine boots, its agent makes a key
//!  enrol  ──► TLS, anybody's certificate ──► proofs by the token, bound to the connection ──► request signed, hello ──► bind
//!  connect ─► TLS, the node's CA and the agent's name on one side, the node's certificate on the other ──► hello
//! ```
//!
//! Whoever answers during an enrolment is nobody until both proofs fit: the node verifies no certificate there, but a proof
//! covers the connection's own keying material, so that it cannot come from another connection. One HTTP/2 connection per
//! machine; when it breaks, all calls on it fail with [`SessionError::Broken`], and the engine dials again.

mod ca;
mod convert;
mod dial;
mod duplex;
mod enrol;
mod failure;
mod meeting;
mod session;
mod shared;
mod streams;
mod trust;
mod upload;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use ca::{CaError, NodeCa};

use super::{
    AgentConnector, AgentIdentity, AgentSession, Enrolled, Invitation, SessionError, Ticket,
};
use crate::ids::SandboxId;
use dial::Endpoint;
use enrol::Met;
use session::TlsSession;
use trust::NodeTrust;

/// Opens sessions to agents as one node.
pub struct TlsConnector {
    trust: Arc<NodeTrust>,
}

impl TlsConnector {
    /// A connector for the node that this CA belongs to.
    pub fn new(ca: NodeCa) -> Self {
        Self::with_certificate_life(ca, CERTIFICATE_LIFE)
    }

    /// As [`TlsConnector::new`], with another life for the certificates that it gives. They are due for rotation at half of it.
    pub fn with_certificate_life(ca: NodeCa, life: Duration) -> Self {
        Self { trust: Arc::new(NodeTrust::new(ca, life)) }
    }
}

#[async_trait]
impl AgentConnector for TlsConnector {
    fn invite(&self, _sandbox: &SandboxId) -> Result<Invitation, SessionError> {
        enrol::invite(&self.trust)
    }

    fn another_name(&self) -> Result<String, SessionError> {
        enrol::name()
    }

    async fn enrol(&self, endpoint: &str, ticket: &Ticket) -> Result<Enrolled, SessionError> {
        let endpoint = Endpoint::parse(endpoint)?;
        let Met { identity, first } = enrol::enrol(&self.trust, &endpoint, ticket).await?;
        let session = first.map(|first| TlsSession::first(&self.trust, endpoint, &identity, first));
        let session =
            session.transpose()?.map(|session| Arc::new(session) as Arc<dyn AgentSession>);
        Ok(Enrolled { identity, session })
    }

    async fn connect(
        &self,
        endpoint: &str,
        identity: &AgentIdentity,
    ) -> Result<Arc<dyn AgentSession>, SessionError> {
        let endpoint = Endpoint::parse(endpoint)?;
        Ok(Arc::new(TlsSession::open(&self.trust, &endpoint, identity).await?))
    }
}

/// Short enough that a stolen one is soon worthless, long enough to outlive a day's outage of the node by half.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
