//! The fake cloud's provider, with seams before and after each call.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use infranetes_provider_fake::{FakeCloud, FakeProvider};
use infranetes_sdk::pod::{
    AddressMode, Addresses, AddressesRequest, CheckpointRequest, ConsoleChunk, ConsoleRequest,
    CreateRequest, DescribePodRequest, DestroyRequest, Empty, EventsRequest, GetRequest,
    ListRequest, ListResponse, Machine, MachineEvent, PlanRequest, PlanResponse, PodCapabilities,
    ResizeRequest, StopMachineRequest, SweepRequest, SweepResponse,
};
use infranetes_sdk::{BoxStream, CallContext, PodProvider, Result};
use tokio::time::sleep;

use crate::sim::agent::Fleet;
use crate::sim::network::SimNetwork;
use crate::sim::seam::Seams;
use crate::sim::world::Promises;

/// The provider as an engine sees it.
pub struct SimProvider {
    /// What does the work.
    pub inner: FakeProvider,
    /// Where it crashes.
    pub seams: Seams,
    /// Told when a sandbox has two machines.
    pub promises: Arc<Promises>,
    /// The agents that machines of a checkpoint wake up with.
    pub fleet: Arc<Fleet>,
    /// Where machines are put that come without addresses of their own.
    pub network: Arc<SimNetwork>,
}

impl SimProvider {
    async fn around<T>(&self, what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.seams.pass(&format!("provider: before {what}")).await;
        let answer = call.await;
        if let Err(error) = &answer {
            self.seams.note(&format!("provider: {what} failed: {error:?}"));
        }
        one_machine_each(self.inner.cloud(), &self.promises);
        self.seams.pass(&format!("provider: after {what}")).await;
        answer
    }
}

/// No sandbox has two machines, at no moment.
pub fn one_machine_each(cloud: &FakeCloud, promises: &Promises) {
    for (sandbox, count) in cloud.alive_by_tag("infranetes-sandbox") {
        if count > 1 {
            promises.broken(&format!("sandbox {sandbox} has {count} machines"));
        }
    }
}

#[async_trait]
impl PodProvider for SimProvider {
    async fn describe(
        &self,
        ctx: CallContext,
        request: DescribePodRequest,
    ) -> Result<PodCapabilities> {
        let mut capabilities = self.inner.describe(ctx, request).await?;
        capabilities.address_modes.push(AddressMode::Cni as i32);
        capabilities.checkpoint = true;
        Ok(capabilities)
    }

    async fn plan(&self, ctx: CallContext, request: PlanRequest) -> Result<PlanResponse> {
        self.around("plan", self.inner.plan(ctx, request)).await
    }

    async fn create(&self, ctx: CallContext, mut request: CreateRequest) -> Result<Machine> {
        // The cloud itself knows nothing of namespaces.
        if let Some(network) = request.network.take() {
            self.network.is_entered(&network.namespace_path);
        }
        let what = format!("create {}", request.name);
        // Nor does it of checkpoints.
        let checkpoint = std::mem::take(&mut request.checkpoint);
        let create = async {
            let machine = self.inner.create(ctx, request).await?;
            if !checkpoint.is_empty() {
                self.fleet.wake_up(&machine.id, &checkpoint);
            }
            Ok(machine)
        };
        self.around(&what, create).await
    }

    async fn checkpoint(&self, _: CallContext, request: CheckpointRequest) -> Result<Empty> {
        let what = format!("checkpoint {}", request.id);
        let write = async {
            sleep(WRITING / 2).await;
            self.fleet.write_down(&request.id, &request.directory);
            sleep(WRITING / 2).await;
            Ok(Empty {})
        };
        self.around(&what, write).await
    }

    async fn get(&self, ctx: CallContext, request: GetRequest) -> Result<Machine> {
        let what = format!("get {}", request.id);
        self.around(&what, self.inner.get(ctx, request)).await
    }

    async fn list(&self, ctx: CallContext, request: ListRequest) -> Result<ListResponse> {
        self.around("list", self.inner.list(ctx, request)).await
    }

    async fn stop(&self, ctx: CallContext, request: StopMachineRequest) -> Result<Empty> {
        let what = format!("stop {}", request.id);
        self.around(&what, self.inner.stop(ctx, request)).await
    }

    async fn destroy(&self, ctx: CallContext, request: DestroyRequest) -> Result<Empty> {
        let what = format!("destroy {}", request.id);
        self.around(&what, self.inner.destroy(ctx, request)).await
    }

    async fn addresses(&self, ctx: CallContext, request: AddressesRequest) -> Result<Addresses> {
        self.around("addresses", self.inner.addresses(ctx, request)).await
    }

    async fn resize(&self, ctx: CallContext, request: ResizeRequest) -> Result<Machine> {
        let what = format!("resize {}", request.id);
        self.around(&what, self.inner.resize(ctx, request)).await
    }

    async fn sweep(&self, ctx: CallContext, request: SweepRequest) -> Result<SweepResponse> {
        self.around("sweep", self.inner.sweep(ctx, request)).await
    }

    async fn console(
        &self,
        ctx: CallContext,
        request: ConsoleRequest,
    ) -> Result<BoxStream<ConsoleChunk>> {
        self.around("console", self.inner.console(ctx, request)).await
    }

    async fn events(
        &self,
        ctx: CallContext,
        request: EventsRequest,
    ) -> Result<BoxStream<MachineEvent>> {
        self.inner.events(ctx, request).await
    }
}

/// How long a machine is on its way to the disk.
const WRITING: Duration = Duration::from_millis(300);
