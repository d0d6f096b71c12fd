//! The provider in front of a fake cloud.

use std::sync::Arc;
use std::time::Duration;

use infranetes_sdk::pod::{
    AddressMode, Addresses, AddressesRequest, AttachRequest, AttachResponse, ConsoleChunk,
    ConsoleRequest, CreateRequest, DescribePodRequest, DestroyRequest, DetachRequest, Empty,
    EventsRequest, GetRequest, ListRequest, ListResponse, Machine, MachineEvent, PlanRequest,
    PlanResponse, PodCapabilities, Quota, QuotaRequest, QuotaResponse, ResizeRequest,
    StartMachineRequest, StopMachineRequest, SweepRequest, SweepResponse,
};
use infranetes_sdk::{BoxStream, CallContext, PodProvider, Result, async_trait};

use crate::check::check_create;
use crate::client::{Client, used, visible, wait_until};
use crate::cloud::FakeCloud;
use crate::error::CloudError;
use crate::script::{Feature, Method, Script};
use crate::{convert, plan, streams};

/// Machines of a [`FakeCloud`], as a [`Script`] has them.
///
/// Holds no state of its own: a new provider over the same cloud goes on where the last one was dropped.
#[derive(Clone, Debug)]
pub struct FakeProvider {
    pub(crate) client: Client,
}

impl FakeProvider {
    /// A provider in front of `cloud`.
    pub fn new(cloud: FakeCloud, script: Script) -> Self {
        Self { client: Client { cloud, script: Arc::new(script) } }
    }

    /// The cloud behind it.
    pub fn cloud(&self) -> &FakeCloud {
        &self.client.cloud
    }

    pub(crate) fn need(&self, feature: Feature, method: &'static str) -> Result<()> {
        match self.client.script.lacks(feature) {
            true => Err(CloudError::Unsupported(method).into()),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl PodProvider for FakeProvider {
    async fn describe(&self, _: CallContext, _: DescribePodRequest) -> Result<PodCapabilities> {
        let script = &self.client.script;
        let mut architectures: Vec<String> =
            script.types.iter().map(|entry| entry.architecture.clone()).collect();
        architectures.sort();
        architectures.dedup();
        let has_images = !script.images.is_empty();
        Ok(PodCapabilities {
            user_data_limit_bytes: script.user_data_limit_bytes,
            attach_after_boot: !script.lacks(Feature::Attach),
            console: !script.lacks(Feature::Console),
            stop_start: !script.lacks(Feature::StopStart),
            spot: script.types.iter().any(|entry| entry.spot_price_micros_per_hour.is_some()),
            resize: !script.lacks(Feature::Resize),
            tags: true,
            address_modes: vec![AddressMode::Private as i32],
            machine_image_formats: if has_images { vec!["fake".to_owned()] } else { Vec::new() },
            architectures,
            events: !script.lacks(Feature::Events),
            sweep: !script.lacks(Feature::Sweep),
            quota: !script.lacks(Feature::Quota),
            isolates: true,
            own_kernel: true,
            checkpoint: false,
        })
    }

    async fn plan(&self, ctx: CallContext, request: PlanRequest) -> Result<PlanResponse> {
        let types = &self.client.script.types;
        self.client.call(&ctx, Method::Plan, "", |_, _| plan::plan(types, &request)).await
    }

    async fn create(&self, ctx: CallContext, request: CreateRequest) -> Result<Machine> {
        let script = &self.client.script;
        let view = self
            .client
            .call(&ctx, Method::Create, &request.name, |state, now| {
                check_create(script, &request)?;
                let machine_type = plan::resolve(&script.types, request.machine_type.as_ref())?;
                self.client.create(state, now, &request, machine_type)
            })
            .await?;
        Ok(convert::machine(&view))
    }

    async fn get(&self, ctx: CallContext, request: GetRequest) -> Result<Machine> {
        self.client
            .call(&ctx, Method::Get, &request.id, |state, now| {
                visible(state, &request.id, now).map(|record| convert::machine(&record.view))
            })
            .await
    }

    async fn list(&self, ctx: CallContext, request: ListRequest) -> Result<ListResponse> {
        let script = &self.client.script;
        self.client
            .call(&ctx, Method::List, "", |state, now| {
                crate::pages::list(state, now, &request, script.page_size)
            })
            .await
    }

    async fn start(&self, ctx: CallContext, request: StartMachineRequest) -> Result<Empty> {
        self.need(Feature::StopStart, "start")?;
        self.client
            .call(&ctx, Method::Start, &request.id, |state, now| {
                Client::start(state, now, &request.id)
            })
            .await?;
        Ok(Empty {})
    }

    async fn stop(&self, ctx: CallContext, request: StopMachineRequest) -> Result<Empty> {
        let grace = Duration::from_millis(request.grace_ms);
        let off = self
            .client
            .call(&ctx, Method::Stop, &request.id, |state, now| {
                Client::stop(state, now, &request.id, grace)
            })
            .await?;
        wait_until(&ctx, Method::Stop, off).await?;
        Ok(Empty {})
    }

    async fn destroy(&self, ctx: CallContext, request: DestroyRequest) -> Result<Empty> {
        let gone = self
            .client
            .call(&ctx, Method::Destroy, &request.id, |state, now| {
                Ok(Client::destroy(state, now, &request.id))
            })
            .await?;
        wait_until(&ctx, Method::Destroy, gone).await?;
        Ok(Empty {})
    }

    async fn addresses(&self, ctx: CallContext, request: AddressesRequest) -> Result<Addresses> {
        self.client
            .call(&ctx, Method::Addresses, &request.id, |state, now| {
                visible(state, &request.id, now).map(|record| convert::addresses(&record.view))
            })
            .await
    }

    async fn attach(&self, ctx: CallContext, request: AttachRequest) -> Result<AttachResponse> {
        self.need(Feature::Attach, "attach")?;
        let (id, volume) = (&request.machine_id, &request.volume_id);
        self.client
            .call(&ctx, Method::Attach, id, |state, now| Client::attach(state, now, id, volume))
            .await?;
        Ok(AttachResponse { device_id: format!("fake-{volume}") })
    }

    async fn detach(&self, ctx: CallContext, request: DetachRequest) -> Result<Empty> {
        self.need(Feature::Attach, "detach")?;
        let (id, volume) = (&request.machine_id, &request.volume_id);
        self.client
            .call(&ctx, Method::Detach, id, |state, now| Client::detach(state, now, id, volume))
            .await?;
        Ok(Empty {})
    }

    async fn resize(&self, ctx: CallContext, request: ResizeRequest) -> Result<Machine> {
        self.need(Feature::Resize, "resize")?;
        let types = &self.client.script.types;
        self.client
            .call(&ctx, Method::Resize, &request.id, |state, now| {
                let there = visible(state, &request.id, now)?.view.clone();
                let had = &there.machine_type;
                let entry = plan::resized(types, had, request.cpu_millis, request.memory_bytes)?;
                let changed = convert::machine_type(entry, &had.zone, had.spot);
                let view = state.machines.get_mut(&request.id).map(|record| {
                    record.view.machine_type = changed;
                    record.view.clone()
                });
                Ok(convert::machine(&view.unwrap_or(there)))
            })
            .await
    }

    async fn sweep(&self, ctx: CallContext, request: SweepRequest) -> Result<SweepResponse> {
        self.need(Feature::Sweep, "sweep")?;
        let tags = request.tags.into_iter().collect();
        let left = self
            .client
            .call(&ctx, Method::Sweep, "", |state, _| Ok(Client::sweep(state, &tags)))
            .await?;
        Ok(SweepResponse { leftovers: left.iter().map(convert::leftover).collect() })
    }

    async fn quota(&self, ctx: CallContext, _: QuotaRequest) -> Result<QuotaResponse> {
        self.need(Feature::Quota, "quota")?;
        let limits = self.client.script.quota;
        let used = self.client.call(&ctx, Method::Quota, "", |state, _| Ok(used(state))).await?;
        let rows = [
            ("machines", used.machines, limits.machines),
            ("cpu_millis", used.cpu_millis, limits.cpu_millis),
            ("memory_bytes", used.memory_bytes, limits.memory_bytes),
        ];
        let quotas = rows
            .into_iter()
            .filter_map(|(name, used, limit)| {
                Some(Quota { name: name.to_owned(), used, limit: limit? })
            })
            .collect();
        Ok(QuotaResponse { quotas })
    }

    async fn console(
        &self,
        ctx: CallContext,
        request: ConsoleRequest,
    ) -> Result<BoxStream<ConsoleChunk>> {
        self.need(Feature::Console, "console")?;
        let total = self
            .client
            .call(&ctx, Method::Console, &request.id, |state, now| {
                visible(state, &request.id, now).map(|record| record.console.total)
            })
            .await?;
        Ok(streams::console(self.client.cloud.clone(), request, total))
    }

    async fn events(&self, ctx: CallContext, _: EventsRequest) -> Result<BoxStream<MachineEvent>> {
        self.need(Feature::Events, "events")?;
        let from = self
            .client
            .call(&ctx, Method::Events, "", |state, _| Ok(state.events_from(u64::MAX).1))
            .await?;
        Ok(streams::events(self.client.cloud.clone(), from))
    }
}
