//! The provider: each method finds its machine, and lets what it started go on when the caller gives up.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use infranetes_sdk::pod::{
    AddressMode, Addresses, AddressesRequest, CheckpointRequest, ConsoleChunk, ConsoleRequest,
    CreateRequest, DescribePodRequest, DestroyRequest, Empty, EventsRequest, GetRequest,
    ListRequest, ListResponse, Machine as MachineMessage, MachineEvent, PlanRequest, PlanResponse,
    PodCapabilities, Quota, QuotaRequest, QuotaResponse, StartMachineRequest, StopMachineRequest,
    SweepRequest, SweepResponse,
};
use infranetes_sdk::{BoxStream, CallContext, PodProvider, Result, async_trait};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::check::USER_DATA_LIMIT;
use crate::config::Config;
use crate::error::QemuError;
use crate::machine::Machine;
use crate::plan::{ARCHITECTURE, MIB};
use crate::registry::Registry;
use crate::{convert, pages, streams};

/// Machines of this node.
///
/// Dropping it leaves every machine as it is; the next one over the same directory takes them up.
#[derive(Debug)]
pub struct QemuProvider {
    registry: Arc<Registry>,
}

impl QemuProvider {
    /// A provider over `run_dir`, which belongs to it alone. Takes up the machines that an earlier one left there.
    pub async fn open(config: Config, run_dir: &Path) -> Result<Self> {
        config.check().map_err(QemuError::Invalid)?;
        Ok(Self { registry: Registry::open(config, run_dir).await? })
    }

    fn find(&self, id: &str) -> Result<Arc<Machine>> {
        Ok(self.registry.get(id)?)
    }
}

#[async_trait]
impl PodProvider for QemuProvider {
    async fn describe(&self, _: CallContext, _: DescribePodRequest) -> Result<PodCapabilities> {
        Ok(PodCapabilities {
            user_data_limit_bytes: USER_DATA_LIMIT,
            console: true,
            stop_start: true,
            tags: true,
            address_modes: vec![AddressMode::Local as i32, AddressMode::Cni as i32],
            architectures: vec![ARCHITECTURE.to_owned()],
            events: true,
            sweep: true,
            quota: true,
            isolates: true,
            own_kernel: true,
            checkpoint: true,
            ..Default::default()
        })
    }

    async fn plan(&self, _: CallContext, request: PlanRequest) -> Result<PlanResponse> {
        Ok(self.registry.sizes().plan(&request)?)
    }

    async fn create(&self, ctx: CallContext, request: CreateRequest) -> Result<MachineMessage> {
        let registry = self.registry.clone();
        let runtime = tokio::runtime::Handle::current();
        let making = async move {
            let made = tokio::task::spawn_blocking(move || {
                registry.check_checkpoint(&request)?;
                registry.create(&request, &runtime)
            });
            made.await.map_err(|_| QemuError::Broken)?
        };
        let machine = to_the_end(&ctx, "create", making).await?;
        Ok(convert::machine(&machine.record(), machine.phase()))
    }

    async fn get(&self, _: CallContext, request: GetRequest) -> Result<MachineMessage> {
        let machine = self.find(&request.id)?;
        Ok(convert::machine(&machine.record(), machine.phase()))
    }

    async fn list(&self, _: CallContext, request: ListRequest) -> Result<ListResponse> {
        Ok(pages::list(&self.registry.all(), &request)?)
    }

    async fn start(&self, ctx: CallContext, request: StartMachineRequest) -> Result<Empty> {
        let machine = self.find(&request.id)?;
        to_the_end(&ctx, "start", machine.start()).await?;
        Ok(Empty {})
    }

    async fn stop(&self, ctx: CallContext, request: StopMachineRequest) -> Result<Empty> {
        let machine = self.find(&request.id)?;
        let grace = Duration::from_millis(request.grace_ms).min(GRACE_MAX);
        to_the_end(&ctx, "stop", machine.stop(grace)).await?;
        Ok(Empty {})
    }

    async fn destroy(&self, ctx: CallContext, request: DestroyRequest) -> Result<Empty> {
        let registry = self.registry.clone();
        let destroying = async move { registry.destroy(&request.id).await };
        to_the_end(&ctx, "destroy", destroying).await?;
        Ok(Empty {})
    }

    async fn addresses(&self, _: CallContext, request: AddressesRequest) -> Result<Addresses> {
        let machine = self.find(&request.id)?;
        Ok(convert::addresses(&machine.record(), machine.phase()))
    }

    async fn sweep(&self, _: CallContext, request: SweepRequest) -> Result<SweepResponse> {
        let tags = request.tags.into_iter().collect();
        Ok(SweepResponse { leftovers: self.registry.sweep(&tags)? })
    }

    async fn checkpoint(&self, ctx: CallContext, request: CheckpointRequest) -> Result<Empty> {
        let machine = self.find(&request.id)?;
        // Before the caller's, so that the caller hears that the guest goes on.
        let most = Instant::now() + CHECKPOINT_LIMIT;
        let deadline = ctx.deadline.map_or(most, |deadline| most.min(deadline - GO_ON));
        // Dropped with this call.
        let (_waits, gone) = oneshot::channel();
        let work = machine.checkpoint(request.directory.into(), deadline, gone);
        to_the_end(&ctx, "the checkpoint", work).await?;
        Ok(Empty {})
    }

    async fn quota(&self, _: CallContext, _: QuotaRequest) -> Result<QuotaResponse> {
        let machines = self.registry.all().len() as u64;
        let limit = u64::from(self.registry.shared().launcher.config.max_machines);
        let rows = [
            ("machines", machines, limit),
            (
                "memory_bytes",
                self.registry.used_memory_mib() * MIB,
                self.registry.memory_limit_mib() * MIB,
            ),
        ];
        let quotas = rows.map(|(name, used, limit)| Quota { name: name.to_owned(), used, limit });
        Ok(QuotaResponse { quotas: quotas.into() })
    }

    async fn console(
        &self,
        _: CallContext,
        request: ConsoleRequest,
    ) -> Result<BoxStream<ConsoleChunk>> {
        Ok(streams::console(self.find(&request.id)?, &request))
    }

    async fn events(&self, _: CallContext, _: EventsRequest) -> Result<BoxStream<MachineEvent>> {
        Ok(streams::events(self.registry.shared().events.subscribe()))
    }
}

/// Lets an operation go on whatever becomes of the caller, and waits as long as the caller does: a machine is never left
/// between two steps.
async fn to_the_end<T: Send + 'static>(
    ctx: &CallContext,
    doing: &'static str,
    operation: impl Future<Output = Result<T, QemuError>> + Send + 'static,
) -> Result<T> {
    let task = tokio::spawn(operation);
    let joined = match ctx.deadline {
        Some(deadline) => {
            timeout_at(deadline, task).await.map_err(|_| QemuError::Deadline { doing })?
        }
        None => task.await,
    };
    Ok(joined.map_err(|_| QemuError::Broken)??)
}

/// No guest gets longer than this, so that every operation ends.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(1800);
/// What it takes to let a guest go on, and to remove what was written.
const GO_ON: Duration = Duration::from_secs(3);
const GRACE_MAX: Duration = Duration::from_secs(3600);
