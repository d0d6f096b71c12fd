//! What goes on beside an open session: its certificate is kept good, and its machine's figures are taken as they come.
//!
//! A machine can flood nobody: samples are bounded by the session, taken no faster than [`SAMPLE_GAP`] allows, and what comes
//! sooner waits in the machine.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::{sleep, timeout};

use crate::engine::link::{bounded, keep_certificate};
use crate::engine::node::Node;
use crate::engine::timeouts::{AGENT_CALL, SAMPLE_GAP};
use crate::error::{Cause, FailureKind};
use crate::ids::SandboxId;
use crate::session::{AgentSession, SessionError};
use crate::stats::StatsSample;

/// Looks after a session for as long as it lasts.
pub(crate) async fn upkeep(
    node: Arc<Node>,
    sandbox: SandboxId,
    session: Arc<dyn AgentSession>,
) -> Infallible {
    let certificate = keep_certificate(sandbox.clone(), session.clone());
    tokio::join!(certificate, collect(node, sandbox, session)).0
}

/// Takes samples for ever. A stream that breaks or falls silent is begun anew; an agent that has none is left in peace.
async fn collect(
    node: Arc<Node>,
    sandbox: SandboxId,
    session: Arc<dyn AgentSession>,
) -> Infallible {
    let period = node.config.stats_period;
    loop {
        let error = match bounded(AGENT_CALL, session.stats(period)).await {
            Ok(samples) => take(&node, &sandbox, samples).await,
            Err(error) => error,
        };
        let chain = Cause::from(&error).chain();
        if error.kind() == FailureKind::Unsupported {
            tracing::info!(sandbox = %sandbox, error = %chain, "the agent counts nothing");
            return pending().await;
        }
        tracing::debug!(sandbox = %sandbox, error = %chain, again_in = ?period, "no samples now");
        sleep(period).await;
    }
}

async fn take(
    node: &Node,
    sandbox: &SandboxId,
    mut samples: BoxStream<'static, Result<StatsSample, SessionError>>,
) -> SessionError {
    let patience = 2 * node.config.stats_period + AGENT_CALL;
    loop {
        match timeout(patience, samples.next()).await {
            Ok(Some(Ok(sample))) => node.board.count(sandbox, sample, node.now()),
            Ok(Some(Err(error))) => return error,
            Ok(None) => return SessionError::Broken("the samples ended".into()),
            Err(_) => return SessionError::TimedOut(patience),
        }
        sleep(SAMPLE_GAP).await;
    }
}
