//! What the checks of volumes share.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use infranetes_sdk::volume::{
    CreateVolumeRequest, DescribeVolumeRequest, ListVolumesRequest, Volume, VolumeCapabilities,
    VolumeRef, VolumeState,
};
use infranetes_sdk::{CallContext, ErrorKind, VolumeProvider};

use super::VolumeSubject;
use crate::check::{Outcome, Stop, context, ensure, eventually, ok, run_name};

pub(super) struct Stage {
    pub(super) provider: Arc<dyn VolumeProvider>,
    pub(super) subject: VolumeSubject,
    run: String,
    requests: AtomicUsize,
    /// The volume that the checks of one life share, and what it was made from.
    main: Mutex<Option<(CreateVolumeRequest, Volume)>>,
    /// Everything that was ever made.
    made: Mutex<Vec<String>>,
}

impl Stage {
    pub(super) fn new(provider: Arc<dyn VolumeProvider>, subject: VolumeSubject) -> Self {
        Self {
            provider,
            subject,
            run: run_name(),
            requests: AtomicUsize::new(0),
            main: Mutex::default(),
            made: Mutex::default(),
        }
    }

    pub(super) fn ctx(&self) -> CallContext {
        context(&self.subject.limits)
    }

    pub(super) async fn capabilities(&self) -> Outcome<VolumeCapabilities> {
        ok("describe", self.provider.describe(self.ctx(), DescribeVolumeRequest {}).await)
    }

    /// A new wish for a volume, with a token, a name and a tag of its own.
    pub(super) fn request(&self) -> CreateVolumeRequest {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut tags = self.run_tags();
        tags.insert("conformance-number".into(), number.to_string());
        CreateVolumeRequest {
            token: format!("{}-{number}", self.run),
            name: format!("conformance-{}-{number}", self.run),
            size_bytes: self.subject.size_bytes,
            r#type: self.subject.volume_type.clone(),
            tags,
            snapshot_id: String::new(),
            zone: self.subject.zone.clone(),
        }
    }

    /// The tags that every volume of this run carries.
    pub(super) fn run_tags(&self) -> HashMap<String, String> {
        HashMap::from([("conformance-run".into(), self.run.clone())])
    }

    /// A volume for `request`, to be removed at the end.
    pub(super) async fn create(&self, request: &CreateVolumeRequest) -> Outcome<Volume> {
        let volume = ok("create", self.provider.create(self.ctx(), request.clone()).await)?;
        ensure(!volume.id.is_empty(), || "create answered a volume without an id".into())?;
        self.remember(&volume.id);
        Ok(volume)
    }

    /// A volume that is ready to be used.
    pub(super) async fn available(&self, request: &CreateVolumeRequest) -> Outcome<Volume> {
        let volume = self.create(request).await?;
        eventually("an available volume", self.subject.limits.start, || async {
            match self.provider.get(self.ctx(), reference(&volume.id)).await {
                Ok(volume) if volume.state() == VolumeState::Available => Ok(volume),
                other => Err(format!("get answers {other:?}")),
            }
        })
        .await
    }

    pub(super) fn remember(&self, id: &str) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    pub(super) fn made(&self) -> Vec<String> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_main(&self, request: CreateVolumeRequest, volume: Volume) {
        *self.main.lock().unwrap_or_else(PoisonError::into_inner) = Some((request, volume));
    }

    /// The volume of the checks of one life.
    pub(super) fn main(&self) -> Outcome<(CreateVolumeRequest, Volume)> {
        let main = self.main.lock().unwrap_or_else(PoisonError::into_inner).clone();
        main.ok_or_else(|| Stop::Skipped("there is no volume, because create failed".into()))
    }

    /// Every volume that carries `tags`, from all pages.
    pub(super) async fn list(
        &self,
        tags: &HashMap<String, String>,
        page_size: u32,
    ) -> Outcome<Vec<Volume>> {
        let mut volumes = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListVolumesRequest { tags: tags.clone(), page_token, page_size };
            let page = ok("list", self.provider.list(self.ctx(), request).await)?;
            let length = page.volumes.len();
            ensure(page_size == 0 || length <= page_size as usize, || {
                format!("a page of {page_size} has {length} entries")
            })?;
            volumes.extend(page.volumes);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(volumes);
            }
        }
        Err(Stop::Broken(format!("list has more than {PAGES_MAX} pages")))
    }

    pub(super) async fn wait_for_count(
        &self,
        tags: &HashMap<String, String>,
        counts: RangeInclusive<usize>,
    ) -> Outcome<Vec<Volume>> {
        let what = format!("{counts:?} volumes in the list");
        eventually(&what, self.subject.limits.settle, || async {
            match self.list(tags, 0).await {
                Ok(volumes) if counts.contains(&volumes.len()) => Ok(volumes),
                Ok(volumes) => Err(format!("there are {}", volumes.len())),
                Err(Stop::Broken(why) | Stop::Skipped(why)) => Err(why),
            }
        })
        .await
    }

    pub(super) async fn delete(&self, id: &str) -> Outcome {
        ok("delete", self.provider.delete(self.ctx(), reference(id)).await).map(drop)
    }

    /// Waits until nothing shows a deleted volume.
    pub(super) async fn wait_until_gone(&self, id: &str) -> Outcome {
        eventually("gone", self.subject.limits.settle, || async {
            match self.provider.get(self.ctx(), reference(id)).await {
                Err(error) if error.kind == ErrorKind::NotFound => {}
                other => return Err(format!("get answers {other:?}")),
            }
            match self.list(&self.run_tags(), 0).await {
                Ok(volumes) if volumes.iter().all(|volume| volume.id != id) => Ok(()),
                Ok(_) => Err("list still shows it".into()),
                Err(Stop::Broken(why) | Stop::Skipped(why)) => Err(why),
            }
        })
        .await
    }
}

pub(super) fn reference(id: &str) -> VolumeRef {
    VolumeRef { id: id.into() }
}

/// A list that never ends is broken.
const PAGES_MAX: usize = 1000;
