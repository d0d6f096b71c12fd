//! What the checks of machines share.

use std::collections::HashMap;

use infranetes_sdk::pod::{
    CreateRequest, DescribePodRequest, DestroyRequest, GetRequest, ListRequest, Machine,
    MachineState, MachineType, Network, PodCapabilities, SweepRequest,
};
use infranetes_sdk::{CallContext, PodProvider, Result};

use super::PodSubject;
use crate::check::{Limits, Outcome, Stop, eventually, ok};
use crate::run::Label;
use crate::stock::fault::FaultyCall;
use crate::stock::{self, Page, Stock};
use crate::volume;

pub(super) type Stage = stock::Stage<Machines>;

/// Machines, as things that a provider makes.
pub(crate) struct Machines;

impl Stock for Machines {
    type Provider = dyn PodProvider;
    type Subject = PodSubject;
    /// Disks for the machines, where the plugin has them.
    type Beside = Option<volume::Stage>;
    type Request = CreateRequest;
    type Item = Machine;

    const WORD: &'static str = "machine";
    const DELETE: &'static str = "destroy";
    const CALLS: [FaultyCall; 4] =
        [FaultyCall::Create, FaultyCall::Get, FaultyCall::List, FaultyCall::Destroy];

    fn limits(subject: &PodSubject) -> &Limits {
        &subject.limits
    }

    fn id(machine: &Machine) -> &str {
        &machine.id
    }

    fn tags(request: &mut CreateRequest) -> &mut HashMap<String, String> {
        &mut request.tags
    }

    async fn request(stage: &Stage, label: Label) -> Outcome<CreateRequest> {
        Ok(CreateRequest {
            token: label.token,
            name: label.name,
            machine_type: Some(stage.machine_type().await?),
            image: stage.subject.image.clone(),
            user_data: stage.subject.user_data.clone(),
            tags: label.tags,
            network: Some(stage.network().await?),
            disks: Vec::new(),
            checkpoint: String::new(),
        })
    }

    async fn create(
        provider: &dyn PodProvider,
        context: CallContext,
        request: CreateRequest,
    ) -> Result<Machine> {
        provider.create(context, request).await
    }

    async fn get(provider: &dyn PodProvider, context: CallContext, id: String) -> Result<Machine> {
        provider.get(context, GetRequest { id }).await
    }

    async fn page(
        provider: &dyn PodProvider,
        context: CallContext,
        Page { tags, token: page_token, size: page_size }: Page,
    ) -> Result<(Vec<Machine>, String)> {
        let page = provider.list(context, ListRequest { tags, page_token, page_size }).await?;
        Ok((page.machines, page.next_page_token))
    }

    async fn delete(provider: &dyn PodProvider, context: CallContext, id: String) -> Result<()> {
        provider.destroy(context, DestroyRequest { id }).await.map(drop)
    }

    /// It can be destroyed in every state.
    async fn settled(_: &Stage, machine: Machine) -> Outcome<Machine> {
        Ok(machine)
    }

    /// Waits until `sweep` shows nothing of this run, where the provider has it.
    async fn swept(stage: &Stage) -> Outcome {
        if !stage.capabilities().await?.sweep {
            return Ok(());
        }
        eventually("an empty sweep", stage.limits().settle, || async {
            let request = SweepRequest { tags: stage.run_tags() };
            match stage.provider.sweep(stage.ctx(), request).await {
                Ok(response) if response.leftovers.is_empty() => Ok(()),
                Ok(response) => Err(format!("sweep shows {:?}", response.leftovers)),
                Err(error) => Err(format!("sweep answers {error:?}")),
            }
        })
        .await
    }
}

impl Stage {
    pub(super) async fn capabilities(&self) -> Outcome<PodCapabilities> {
        ok("describe", self.provider.describe(self.ctx(), DescribePodRequest {}).await)
    }

    /// The best machine type for the subject's wish.
    async fn machine_type(&self) -> Outcome<MachineType> {
        let plan = ok("plan", self.provider.plan(self.ctx(), self.subject.plan.clone()).await)?;
        let first = plan.candidates.into_iter().next();
        first.ok_or_else(|| Stop::Broken("plan answered no candidate".into()))
    }

    async fn network(&self) -> Outcome<Network> {
        if let Some(network) = &self.subject.network {
            return Ok(network.clone());
        }
        let modes = self.capabilities().await?.address_modes;
        let mode = modes.first().copied();
        let address_mode =
            mode.ok_or_else(|| Stop::Broken("describe names no address mode".into()))?;
        Ok(Network { address_mode, ..Network::default() })
    }

    /// Waits until a machine is in `state`; a failed one never will be.
    pub(super) async fn wait_for_state(&self, id: &str, state: MachineState) -> Outcome<Machine> {
        eventually(&format!("{state:?}"), self.limits().start, || async {
            match self.try_get(id).await {
                Ok(machine) if machine.state() == state => Ok(machine),
                Ok(machine) => Err(format!("it is {:?}: {:?}", machine.state(), machine.failure)),
                Err(error) => Err(format!("get answers {error:?}")),
            }
        })
        .await
    }
}
