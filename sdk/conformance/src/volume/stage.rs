//! What the checks of volumes share.

use std::collections::HashMap;

use infranetes_sdk::volume::{
    CreateVolumeRequest, DescribeVolumeRequest, ListVolumesRequest, Volume, VolumeCapabilities,
    VolumeRef, VolumeState,
};
use infranetes_sdk::{CallContext, Result, VolumeProvider};

use super::VolumeSubject;
use crate::check::{Limits, Outcome, eventually, ok};
use crate::run::Label;
use crate::stock::fault::FaultyCall;
use crate::stock::{self, Page, Stock};

pub(crate) type Stage = stock::Stage<Volumes>;

/// Volumes, as things that a provider makes.
pub(crate) struct Volumes;

impl Stock for Volumes {
    type Provider = dyn VolumeProvider;
    type Subject = VolumeSubject;
    type Beside = ();
    type Request = CreateVolumeRequest;
    type Item = Volume;

    const WORD: &'static str = "volume";
    const DELETE: &'static str = "delete";
    const CALLS: [FaultyCall; 4] = [
        FaultyCall::CreateVolume,
        FaultyCall::GetVolume,
        FaultyCall::ListVolumes,
        FaultyCall::DeleteVolume,
    ];

    fn limits(subject: &VolumeSubject) -> &Limits {
        &subject.limits
    }

    fn id(volume: &Volume) -> &str {
        &volume.id
    }

    fn tags(request: &mut CreateVolumeRequest) -> &mut HashMap<String, String> {
        &mut request.tags
    }

    async fn request(stage: &Stage, label: Label) -> Outcome<CreateVolumeRequest> {
        Ok(CreateVolumeRequest {
            token: label.token,
            name: label.name,
            size_bytes: stage.subject.size_bytes,
            r#type: stage.subject.volume_type.clone(),
            tags: label.tags,
            snapshot_id: String::new(),
            zone: stage.subject.zone.clone(),
        })
    }

    async fn create(
        provider: &dyn VolumeProvider,
        context: CallContext,
        request: CreateVolumeRequest,
    ) -> Result<Volume> {
        provider.create(context, request).await
    }

    async fn get(
        provider: &dyn VolumeProvider,
        context: CallContext,
        id: String,
    ) -> Result<Volume> {
        provider.get(context, VolumeRef { id }).await
    }

    async fn page(
        provider: &dyn VolumeProvider,
        context: CallContext,
        Page { tags, token: page_token, size: page_size }: Page,
    ) -> Result<(Vec<Volume>, String)> {
        let request = ListVolumesRequest { tags, page_token, page_size };
        let page = provider.list(context, request).await?;
        Ok((page.volumes, page.next_page_token))
    }

    async fn delete(provider: &dyn VolumeProvider, context: CallContext, id: String) -> Result<()> {
        provider.delete(context, VolumeRef { id }).await.map(drop)
    }

    async fn settled(stage: &Stage, volume: Volume) -> Outcome<Volume> {
        stage.wait_for_state(&volume.id, VolumeState::Available).await
    }

    /// What costs anything is listed.
    async fn swept(_: &Stage) -> Outcome {
        Ok(())
    }
}

impl Stage {
    pub(super) async fn capabilities(&self) -> Outcome<VolumeCapabilities> {
        ok("describe", self.provider.describe(self.ctx(), DescribeVolumeRequest {}).await)
    }

    pub(crate) async fn wait_for_state(&self, id: &str, state: VolumeState) -> Outcome<Volume> {
        eventually(&format!("a volume that is {state:?}"), self.limits().start, || async {
            match self.try_get(id).await {
                Ok(volume) if volume.state() == state => Ok(volume),
                other => Err(format!("get answers {other:?}")),
            }
        })
        .await
    }
}
