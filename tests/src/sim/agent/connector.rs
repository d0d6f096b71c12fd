//! The way to simulated agents: invitations, enrolment, sessions.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use infranetes_core::ids::SandboxId;
use infranetes_core::session::{
    AgentConnector, AgentHello, AgentIdentity, AgentSession, Enrolled, Invitation, SessionError,
    Ticket,
};
use tokio::time::Instant;

use super::{Fleet, Line, Open, SimSession};

/// The way to the agents, as one engine has it.
pub struct SimConnector {
    /// The agents.
    pub fleet: Arc<Fleet>,
}

#[async_trait]
impl AgentConnector for SimConnector {
    fn invite(&self, sandbox: &SandboxId) -> Result<Invitation, SessionError> {
        let token = format!("token-{}", self.fleet.draw(u64::MAX)).into_bytes();
        let ticket = Ticket { agent_name: format!("agent-{sandbox}"), token: token.clone() };
        Ok(Invitation { user_data: token, ticket })
    }

    fn another_name(&self) -> Result<String, SessionError> {
        Ok(format!("another-{:016x}", self.fleet.draw(u64::MAX)))
    }

    async fn enrol(&self, endpoint: &str, ticket: &Ticket) -> Result<Enrolled, SessionError> {
        let fleet = &self.fleet;
        fleet.seams.pass("agent: before enrol").await;
        fleet.travel().await;
        let machine = fleet.machine_at(endpoint)?;
        if machine.user_data.expose() != ticket.token {
            fleet.promises.broken("an agent was met with the ticket of another machine");
        }
        let problem = fleet.with(&machine.id, |agent| match &agent.enrolled_as {
            Some(_) => Some("it is enrolled already"),
            None => {
                agent.enrolled_as = Some(ticket.agent_name.clone());
                agent.trusted_until = Some(Instant::now() + fleet.certificate_life);
                None
            }
        });
        fleet.seams.pass("agent: after enrol").await;
        match problem {
            None => {
                let identity = AgentIdentity { agent_name: ticket.agent_name.clone() };
                // Some enrolments leave a session open, and some agents are met again.
                let stays = fleet.draw(2) == 0;
                let session =
                    if stays { self.connect(endpoint, &identity).await.ok() } else { None };
                Ok(Enrolled { identity, session })
            }
            Some(problem) => Err(SessionError::Untrusted {
                endpoint: endpoint.to_owned(),
                problem: problem.to_owned(),
            }),
        }
    }

    async fn connect(
        &self,
        endpoint: &str,
        identity: &AgentIdentity,
    ) -> Result<Arc<dyn AgentSession>, SessionError> {
        let fleet = &self.fleet;
        fleet.seams.pass("agent: before connect").await;
        fleet.travel().await;
        let machine = fleet.machine_at(endpoint)?;
        let (enrolled_as, trusted_until, sandbox_id, cut) = fleet.with(&machine.id, |agent| {
            (agent.enrolled_as.clone(), agent.trusted_until, agent.sandbox.clone(), agent.cut)
        });
        let expired = trusted_until.is_some_and(|until| until <= Instant::now());
        if enrolled_as.as_ref() != Some(&identity.agent_name) || expired {
            return Err(SessionError::Untrusted {
                endpoint: endpoint.to_owned(),
                problem: "it has no certificate that is good".to_owned(),
            });
        }
        fleet.connections.fetch_add(1, Ordering::SeqCst);
        fleet.seams.pass("agent: after connect").await;
        let hello = AgentHello {
            boot_id: format!("{}-{}", machine.id, machine.boots),
            agent_version: "sim".to_owned(),
            sandbox_id,
            kernel_release: "6.1-sim".to_owned(),
            agent_started: Duration::from_millis(300),
            now: Duration::from_millis(500),
        };
        let open = Arc::new(Open::new(fleet.open_sessions.clone()));
        let (fleet, machine) = (fleet.clone(), machine.id);
        Ok(Arc::new(SimSession(Line { fleet, machine, cut, hello, open })))
    }
}
