//! What goes on beside an open session: its certificate is kept good, and its machine's figures are taken as they come.
//!
//! A machine can flood nobody: samples are bounded by the session, taken no faster than [`SAMPLE_GAP`] allows, and what comes
//! sooner waits in the machine.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

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
            Ok(samples) => {
                let count = |sample| node.board.count(&sandbox, sample, node.now());
                take(period, samples, count).await
            }
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

/// Gives samples to `count` until there are no more.
async fn take(
    period: Duration,
    mut samples: BoxStream<'static, Result<StatsSample, SessionError>>,
    mut count: impl FnMut(StatsSample),
) -> SessionError {
    let patience = 2 * period + AGENT_CALL;
    loop {
        match timeout(patience, samples.next()).await {
            Ok(Some(Ok(sample))) => count(sample),
            Ok(Some(Err(error))) => return error,
            Ok(None) => return SessionError::Broken("the samples ended".into()),
            Err(_) => return SessionError::TimedOut(patience),
        }
        sleep(SAMPLE_GAP).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::stream::{pending, repeat_with};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_floods_is_read_at_the_nodes_pace_and_a_silent_one_is_left() {
        let mut asked = 0_u32;
        let flood = repeat_with(move || {
            asked += 1;
            Ok(StatsSample { taken: Duration::from_secs(asked.into()), ..StatsSample::default() })
        });
        let mut taken = 0_u32;
        let period = Duration::from_secs(10);
        let reading = take(period, flood.boxed(), |_| taken += 1);
        assert!(timeout(Duration::from_secs(60), reading).await.is_err());
        assert!(taken <= 301, "{taken} samples in a minute");

        let begin = Instant::now();
        let error = take(period, pending().boxed(), |_| ()).await;
        assert!(matches!(error, SessionError::TimedOut(_)), "{error}");
        assert_eq!(begin.elapsed(), 2 * period + AGENT_CALL);
    }
}
