//! Enrolment: all that an agent without a certificate serves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use infranetes_agent_protocol::v1::enrolment_server::Enrolment;
use infranetes_agent_protocol::v1::{
    BeginEnrolmentRequest, BeginEnrolmentResponse, CompleteEnrolmentRequest,
    CompleteEnrolmentResponse,
};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::identity::{Channel, IdentityError, PendingKey};
use crate::machine::Machine;

/// The enrolment on one connection. One wrong proof, or its end, ends the connection.
pub(crate) struct EnrolmentSession {
    machine: Arc<Machine>,
    channel: Channel,
    step: Mutex<Step>,
    over: Arc<Notify>,
}

enum Step {
    Fresh,
    Begun(Box<PendingKey>),
    Over,
}

impl EnrolmentSession {
    pub(crate) fn new(machine: Arc<Machine>, channel: Channel) -> Self {
        Self { machine, channel, step: Mutex::new(Step::Fresh), over: Arc::default() }
    }

    /// Notified when the connection has nothing more to say.
    pub(crate) fn over(&self) -> Arc<Notify> {
        Arc::clone(&self.over)
    }

    fn step(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, error: IdentityError) -> Status {
        *self.step() = Step::Over;
        self.over.notify_one();
        self.machine.refused("enrolment", &error);
        match error {
            IdentityError::AlreadyEnrolled => Status::failed_precondition(error.to_string()),
            IdentityError::Proof => Status::permission_denied(error.to_string()),
            IdentityError::Chain(_) | IdentityError::Certificate(_) => {
                Status::invalid_argument(error.to_string())
            }
            _ => Status::internal(error.to_string()),
        }
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentSession {
    async fn begin(
        &self,
        request: Request<BeginEnrolmentRequest>,
    ) -> Result<Response<BeginEnrolmentResponse>, Status> {
        if !matches!(*self.step(), Step::Fresh) {
            return Err(Status::failed_precondition("an enrolment begins once on a connection"));
        }
        let begun = self
            .machine
            .identity
            .begin(&self.channel, &request.into_inner().node_proof)
            .map_err(|error| self.refuse(error))?;
        *self.step() = Step::Begun(Box::new(begun.key));
        Ok(Response::new(BeginEnrolmentResponse {
            certificate_request: begun.certificate_request,
            agent_proof: begun.proof,
        }))
    }

    async fn complete(
        &self,
        request: Request<CompleteEnrolmentRequest>,
    ) -> Result<Response<CompleteEnrolmentResponse>, Status> {
        let step = std::mem::replace(&mut *self.step(), Step::Over);
        let Step::Begun(key) = step else {
            return Err(Status::failed_precondition("an enrolment completes once, after it began"));
        };
        self.machine
            .identity
            .complete(&key, request.into_inner().certificate_chain)
            .map_err(|error| self.refuse(error))?;
        tracing::info!("enrolled");
        self.over.notify_one();
        Ok(Response::new(CompleteEnrolmentResponse {}))
    }
}
