//! The provider: each method finds its machine, and lets what it started go on when the caller gives up.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use infranetes_sdk::pod::{
    AddressMode, Addresses, AddressesRequest, ConsoleChunk, ConsoleRequest, CreateRequest,
    DescribePodRequest, DestroyRequest, Empty, EventsRequest, GetRequest, ListRequest,
    ListResponse, Machine as MachineMessage, MachineEvent, PlanRequest, PlanResponse,
    PodCapabilities, Quota, QuotaRequest, QuotaResponse, StartMachineRequest, StopMachineRequest,
    SweepRequest, SweepResponse,
};
use infranetes_sdk::{BoxStream, CallContext, PodProvider, Result, async_trait};
use tokio::time::timeout_at;

use crate::check::USER_DATA_LIMIT;
use crate::config::Config;
use crate::error::ProcessError;
use crate::machine::Machine;
use crate::plan::architecture;
use crate::registry::Registry;
use crate::{convert, pages, streams};

/// Machines of this node.
///
/// Dropping it leaves every machine as it is; the next one over the same directory takes them up.
#[derive(Debug)]
pub struct ProcessProvider {
    registry: Arc<Registry>,
}

impl ProcessProvider {
    /// A provider over `run_dir`, which belongs to it alone. Takes up the machines that an earlier one left there.
    pub async fn open(config: Config, run_dir: &Path) -> Result<Self> {
        config.check().map_err(ProcessError::Invalid)?;
        Ok(Self { registry: Registry::open(config, run_dir).await? })
    }

    fn find(&self, id: &str) -> Result<Arc<Machine>> {
        Ok(self.registry.get(id)?)
    }
}

#[async_trait]
impl PodProvider for ProcessProvider {
    async fn describe(&self, _: CallContext, _: DescribePodRequest) -> Result<PodCapabilities> {
        Ok(PodCapabilities {
            user_data_limit_bytes: USER_DATA_LIMIT,
            console: true,
            stop_start: true,
            tags: true,
            address_modes: vec![AddressMode::Local as i32, AddressMode::Cni as i32],
            architectures: vec![architecture().to_owned()],
            events: true,
            sweep: true,
            quota: true,
            // Processes of this node, under its kernel.
            isolates: false,
            own_kernel: false,
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
            let made = tokio::task::spawn_blocking(move || registry.create(&request, &runtime));
            made.await.map_err(|_| ProcessError::Broken)?
        };
        let machine = to_the_end(&ctx, "create", making).await?;
        Ok(shown(&machine))
    }

    async fn get(&self, _: CallContext, request: GetRequest) -> Result<MachineMessage> {
        let machine = self.find(&request.id)?;
        Ok(shown(&machine))
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
        Ok(convert::addresses(machine.phase(), &machine.dir().socket()))
    }

    async fn sweep(&self, _: CallContext, request: SweepRequest) -> Result<SweepResponse> {
        let tags = request.tags.into_iter().collect();
        Ok(SweepResponse { leftovers: self.registry.sweep(&tags)? })
    }

    async fn quota(&self, _: CallContext, _: QuotaRequest) -> Result<QuotaResponse> {
        let used = self.registry.all().len() as u64;
        let limit = u64::from(self.registry.shared().config.max_machines);
        let quotas = vec![Quota { name: "machines".to_owned(), used, limit }];
        Ok(QuotaResponse { quotas })
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

fn shown(machine: &Machine) -> MachineMessage {
    convert::machine(&machine.record(), machine.phase(), &machine.dir().socket())
}

/// Lets an operation go on whatever becomes of the caller, and waits as long as the caller does: a machine is never left
/// between two steps.
async fn to_the_end<T: Send + 'static>(
    ctx: &CallContext,
    doing: &'static str,
    operation: impl Future<Output = Result<T, ProcessError>> + Send + 'static,
) -> Result<T> {
    let task = tokio::spawn(operation);
    let joined = match ctx.deadline {
        Some(deadline) => {
            timeout_at(deadline, task).await.map_err(|_| ProcessError::Deadline { doing })?
        }
        None => task.await,
    };
    Ok(joined.map_err(|_| ProcessError::Broken)??)
}

/// No guest gets longer than this, so that every operation ends.
const GRACE_MAX: Duration = Duration::from_secs(3600);
