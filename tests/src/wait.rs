//! Waiting for states, with a deadline; never for time to pass.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Polls until `reached` says yes. Past `limit` the error names what was waited for.
pub async fn until(
    limit: Duration,
    what: &str,
    mut reached: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !reached().await? {
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain until {what}");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

const POLL: Duration = Duration::from_millis(10);
