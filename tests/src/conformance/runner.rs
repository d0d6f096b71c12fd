//! Runs specs side by side, each with a deadline, and cleans up after each.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde::Serialize;
use tokio::sync::Mutex;

use super::context::{Context, Suite};
use super::spec::{Lane, Spec, Verdict};
use crate::client::Client;

/// How one spec went.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Its whole name.
    pub name: String,
    /// Whether it is marked as conformance.
    pub conformance: bool,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long it took, clean-up included.
    pub seconds: f64,
}

/// Runs specs, up to `parallel` at once; in the order of their names at the end.
pub(super) async fn run(
    client: &Client,
    suite: &Suite,
    specs: Vec<Spec>,
    parallel: usize,
    tell: &(dyn Fn(&Finding) + Sync),
) -> Vec<Finding> {
    let queue = Mutex::new(specs.into_iter().enumerate().collect::<VecDeque<_>>());
    let images = Mutex::new(());
    let findings = Mutex::new(Vec::new());
    let worker = async || {
        loop {
            let Some((number, spec)) = queue.lock().await.pop_front() else { return };
            let _lane = match spec.lane {
                Lane::Images => Some(images.lock().await),
                Lane::Free => None,
            };
            let finding = run_one(client, suite, spec, number).await;
            tell(&finding);
            findings.lock().await.push((number, finding));
        }
    };
    futures::future::join_all((0..parallel.max(1)).map(|_| worker())).await;
    let mut findings = findings.into_inner();
    findings.sort_by_key(|(number, _)| *number);
    findings.into_iter().map(|(_, finding)| finding).collect()
}

async fn run_one(client: &Client, suite: &Suite, spec: Spec, number: usize) -> Finding {
    let started = Instant::now();
    let verdict = verdict_of(client, suite, spec, number).await;
    Finding {
        name: spec.full_name(),
        conformance: spec.is_conformance(),
        verdict,
        seconds: started.elapsed().as_secs_f64(),
    }
}

/// A spec whose remains cannot be removed has failed, whatever it saw.
async fn verdict_of(client: &Client, suite: &Suite, spec: Spec, number: usize) -> Verdict {
    let mut context = match Context::new(client.clone(), suite.clone(), number) {
        Ok(context) => context,
        Err(error) => return Verdict::Fail(format!("{error:#}")),
    };
    let limit = suite.state_limit * STATES_OF_A_SPEC;
    let outcome = match tokio::time::timeout(limit, spec.run(&mut context)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow!("it took more than {limit:?}")),
    };
    let cleaned: Result<()> = tokio::time::timeout(CLEAN_UP_LIMIT, context.clean_up())
        .await
        .map_err(anyhow::Error::from)
        .and_then(|cleaned| cleaned)
        .context("after the spec");
    match Verdict::of(outcome) {
        Verdict::Pass => Verdict::of(cleaned),
        other => other,
    }
}

const STATES_OF_A_SPEC: u32 = 4;
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(120);
