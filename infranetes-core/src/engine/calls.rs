//! Calls to one provider instance, each with a deadline and a name.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use infranetes_sdk::pod::{
    Addresses, AddressesRequest, CheckpointRequest, ConsoleRequest, CreateRequest,
    DescribePodRequest, DestroyRequest, EventsRequest, GetRequest, Leftover, ListRequest, Machine,
    MachineEvent, PlanRequest, PlanResponse, PodCapabilities, ResizeRequest, SweepRequest,
};
use infranetes_sdk::{BoxStream, CallContext, ErrorKind, PodProvider, ProviderError};
use tokio::time::timeout;

use crate::engine::timeouts::CHECKPOINT;

/// A provider instance as the engine calls it.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) name: String,
    provider: Arc<dyn PodProvider>,
    limit: Duration,
}

impl Calls {
    pub(crate) fn new(name: &str, provider: Arc<dyn PodProvider>, limit: Duration) -> Self {
        Self { name: name.to_owned(), provider, limit }
    }

    pub(crate) async fn describe(&self) -> Result<PodCapabilities, ProviderError> {
        self.bounded(
            "describe itself",
            self.provider.describe(self.context(""), DescribePodRequest {}),
        )
        .await
    }

    pub(crate) async fn plan(&self, request: PlanRequest) -> Result<PlanResponse, ProviderError> {
        self.bounded("plan a machine", self.provider.plan(self.context(""), request)).await
    }

    pub(crate) async fn create(&self, request: CreateRequest) -> Result<Machine, ProviderError> {
        let context = self.context(&request.token);
        self.bounded("create a machine", self.provider.create(context, request)).await
    }

    pub(crate) async fn get(&self, id: &str) -> Result<Machine, ProviderError> {
        let request = GetRequest { id: id.to_owned() };
        self.bounded("look at a machine", self.provider.get(self.context(""), request)).await
    }

    pub(crate) async fn addresses(&self, id: &str) -> Result<Addresses, ProviderError> {
        let request = AddressesRequest { id: id.to_owned() };
        self.bounded("tell addresses", self.provider.addresses(self.context(""), request)).await
    }

    pub(crate) async fn destroy(&self, id: &str) -> Result<(), ProviderError> {
        let request = DestroyRequest { id: id.to_owned() };
        match self
            .bounded("destroy a machine", self.provider.destroy(self.context(""), request))
            .await
        {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    pub(crate) async fn resize(&self, request: ResizeRequest) -> Result<Machine, ProviderError> {
        self.bounded("resize a machine", self.provider.resize(self.context(""), request)).await
    }

    /// What happens to machines, from now on. `Unsupported` where the provider does not tell.
    pub(crate) async fn events(&self) -> Result<BoxStream<MachineEvent>, ProviderError> {
        if !self.describe().await?.events {
            return Err(ProviderError::unsupported("the provider tells no events"));
        }
        self.bounded("tell events", self.provider.events(self.context(""), EventsRequest {})).await
    }

    /// All machines with these tags, over all pages.
    pub(crate) async fn list(
        &self,
        tags: &HashMap<String, String>,
    ) -> Result<Vec<Machine>, ProviderError> {
        let mut machines = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListRequest { tags: tags.clone(), page_token, page_size: 0 };
            let page = self
                .bounded("list machines", self.provider.list(self.context(""), request))
                .await?;
            machines.extend(page.machines);
            if page.next_page_token.is_empty() {
                return Ok(machines);
            }
            page_token = page.next_page_token;
        }
        Err(ProviderError::internal(format!(
            "the list of machines has more than {PAGES_MAX} pages"
        )))
    }

    /// Writes a machine into a directory of its provider's alone. May take as long as its memory is large.
    pub(crate) async fn checkpoint(&self, id: &str, to: &Path) -> Result<(), ProviderError> {
        let directory = to.to_string_lossy().into_owned();
        let request = CheckpointRequest { id: id.to_owned(), directory };
        let patient = Self { limit: CHECKPOINT, ..self.clone() };
        let call = patient.provider.checkpoint(patient.context(""), request);
        patient.bounded("write a checkpoint", call).await.map(drop)
    }

    /// What carries these tags and is not a machine; nothing where the provider cannot tell.
    pub(crate) async fn leftovers(
        &self,
        tags: &HashMap<String, String>,
    ) -> Result<Vec<Leftover>, ProviderError> {
        if !self.describe().await?.sweep {
            return Ok(Vec::new());
        }
        let request = SweepRequest { tags: tags.clone() };
        let answer =
            self.bounded("list leftovers", self.provider.sweep(self.context(""), request)).await?;
        Ok(answer.leftovers)
    }

    /// The console's last lines; empty where the provider has none to show.
    pub(crate) async fn console_tail(&self, id: &str) -> String {
        let request =
            ConsoleRequest { id: id.to_owned(), replay_bytes: CONSOLE_BYTES, follow: false };
        let read = async {
            let mut bytes = Vec::new();
            let mut stream = self.provider.console(self.context(""), request).await.ok()?;
            while let Some(Ok(chunk)) = stream.next().await {
                bytes.extend_from_slice(&chunk.data);
                if bytes.len() >= 2 * CONSOLE_BYTES as usize {
                    break;
                }
            }
            Some(last_lines(&bytes))
        };
        timeout(CONSOLE_WAIT, read).await.ok().flatten().unwrap_or_default()
    }

    fn context(&self, request_id: &str) -> CallContext {
        CallContext::new(request_id).with_timeout(self.limit)
    }

    /// The provider has the deadline, too; ours is the backstop for one that is stuck.
    async fn bounded<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<T, ProviderError> {
        match timeout(self.limit + BACKSTOP, call).await {
            Ok(answer) => answer,
            Err(_) => Err(ProviderError::deadline_exceeded(format!(
                "provider {} did not {what} within {:?}",
                self.name, self.limit
            ))),
        }
    }
}

/// The last lines, readable: other control characters than line ends are left out.
fn last_lines(bytes: &[u8]) -> String {
    let text: String =
        String::from_utf8_lossy(bytes).chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}

const BACKSTOP: Duration = Duration::from_millis(500);
const CONSOLE_WAIT: Duration = Duration::from_secs(3);
const CONSOLE_BYTES: u64 = 8 * 1024;
const CONSOLE_LINES: usize = 20;
const PAGES_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_console_ends_with_twenty_readable_lines() {
        let long: String = (0..100).map(|n| format!("line {n}\r\n\x1b[0m\n")).collect();
        let tail = last_lines(long.as_bytes());
        assert_eq!(tail.lines().count(), 20);
        assert!(tail.ends_with("[0m"), "{tail}");
        assert_eq!(last_lines(b""), "");
    }
}
