//! The suite of volumes against a provider that keeps every promise, and against the same provider with one lie at a time:
//! each lie has to be found, under the right name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use infranetes_conformance::{Limits, Report, Verdict, VolumeSubject, VolumeSuite};
use infranetes_sdk::volume::{
    CreateVolumeRequest, DescribeVolumeRequest, Empty, ExpandVolumeRequest, ListVolumesRequest,
    ListVolumesResponse, Snapshot, SnapshotRequest, Volume, VolumeCapabilities, VolumeRef,
    VolumeState,
};
use infranetes_sdk::{CallContext, ProviderError, Result, VolumeProvider};

#[tokio::test(start_paused = true)]
async fn a_provider_that_keeps_its_promises_passes() {
    let report = run(Lie::None).await;
    report.assert_ok();
    let kept = report.lines.iter().filter(|line| line.verdict == Verdict::Kept).count();
    assert_eq!(kept, report.lines.len(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn what_a_provider_cannot_do_is_skipped_and_not_held_against_it() {
    let report = run(Lie::CanDoLittle).await;
    report.assert_ok();
    let skipped = report.lines.iter().filter(|line| matches!(line.verdict, Verdict::Skipped(_)));
    let names: Vec<&str> = skipped.map(|line| line.name).collect();
    assert_eq!(
        names,
        [
            "volume/expand",
            "volume/snapshot",
            "volume/snapshot/cut-off",
            "volume/snapshot/restore",
            "volume/expand/cut-off",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn each_lie_is_found() {
    for (lie, name) in [
        (Lie::DescribeChanges, "volume/describe/constant"),
        (Lie::WrongKindForUnknownId, "volume/unknown-id"),
        (Lie::DeleteOfNothingFails, "volume/delete/unknown-id"),
        (Lie::DeleteOfNothingFails, "volume/delete"),
        (Lie::DeleteOfNothingFails, "volume/delete/cancelled"),
        (Lie::DeleteOfNothingFails, "volume/delete/deadline"),
        (Lie::DeleteOfNothingFails, "volume/delete/concurrent"),
        (Lie::LateIsInternal, "volume/deadlines"),
        (Lie::AnyPageToken, "volume/list/unknown-page"),
        (Lie::TakesAnySize, "volume/create/impossible"),
        (Lie::TakesAnyType, "volume/create/impossible"),
        (Lie::TakesAnySnapshot, "volume/create/impossible"),
        (Lie::LosesTags, "volume/create/accepted"),
        (Lie::TooSmall, "volume/create/accepted"),
        (Lie::OddSizes, "volume/create/accepted"),
        (Lie::NeverAvailable, "volume/create/accepted"),
        (Lie::IgnoresTokens, "volume/create/same-token"),
        (Lie::IgnoresTokens, "volume/create/concurrent-token"),
        (Lie::IgnoresTokens, "volume/create/cancelled"),
        (Lie::IgnoresTokens, "volume/create/deadline"),
        (Lie::IgnoresShapes, "volume/create/same-token-other-shape"),
        (Lie::ListsEverything, "volume/list/tags"),
        (Lie::DeniesExpand, "volume/describe/honest"),
        (Lie::DeniesSnapshot, "volume/describe/honest"),
        (Lie::ExpandDoesNothing, "volume/expand"),
        (Lie::ExpandDoesNothing, "volume/expand/cut-off"),
        (Lie::Shrinks, "volume/expand"),
        (Lie::SnapshotsTwice, "volume/snapshot"),
        (Lie::SnapshotsTwice, "volume/snapshot/cut-off"),
        (Lie::RestoresEmpty, "volume/snapshot/restore"),
        (Lie::DeleteDoesNothing, "volume/delete"),
        (Lie::DeleteDoesNothing, "volume/delete/cancelled"),
        (Lie::DeleteDoesNothing, "volume/clean"),
        (Lie::RepeatsPages, "volume/list/pages"),
        (Lie::Panics, "volume/expand"),
        (Lie::Hangs, "volume/expand"),
    ] {
        let report = run(lie).await;
        let found = report.broken().any(|line| line.name == name);
        assert!(found, "{lie:?} is not found as {name}:\n{report}");
        assert!(!report.is_ok());
    }
}

async fn run(lie: Lie) -> Report {
    let provider = Arc::new(Liar { lie, state: Mutex::default() });
    let limits = Limits {
        call: Duration::from_secs(5),
        start: Duration::from_secs(2),
        settle: Duration::from_secs(2),
        check: Duration::from_secs(60),
    };
    VolumeSuite::new(provider, VolumeSubject { limits, ..VolumeSubject::default() }).run().await
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    None,
    CanDoLittle,
    DescribeChanges,
    WrongKindForUnknownId,
    DeleteOfNothingFails,
    LateIsInternal,
    AnyPageToken,
    TakesAnySize,
    TakesAnyType,
    TakesAnySnapshot,
    LosesTags,
    TooSmall,
    OddSizes,
    NeverAvailable,
    IgnoresTokens,
    IgnoresShapes,
    ListsEverything,
    DeniesExpand,
    DeniesSnapshot,
    ExpandDoesNothing,
    Shrinks,
    SnapshotsTwice,
    RestoresEmpty,
    DeleteDoesNothing,
    RepeatsPages,
    Panics,
    Hangs,
}

struct Liar {
    lie: Lie,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    made: u64,
    described: u64,
    volumes: BTreeMap<String, (CreateVolumeRequest, Volume)>,
    snapshots: BTreeMap<String, Snapshot>,
}

const GRANULE: u64 = 1 << 20;

impl Liar {
    fn tells(&self, lie: Lie) -> bool {
        self.lie == lie
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().expect("not poisoned"))
    }

    fn none(&self, id: &str) -> ProviderError {
        let message = format!("there is no volume {id:?}");
        match self.tells(Lie::WrongKindForUnknownId) {
            true => ProviderError::invalid(message),
            false => ProviderError::not_found(message),
        }
    }

    fn check(&self, state: &State, wish: &CreateVolumeRequest) -> Result<()> {
        if wish.size_bytes > 1 << 50 && !self.tells(Lie::TakesAnySize) {
            return Err(ProviderError::invalid("too large"));
        }
        if (!wish.r#type.is_empty() || !wish.zone.is_empty()) && !self.tells(Lie::TakesAnyType) {
            return Err(ProviderError::invalid("no such type or zone"));
        }
        let known = wish.snapshot_id.is_empty() || state.snapshots.contains_key(&wish.snapshot_id);
        if !known && !self.tells(Lie::TakesAnySnapshot) {
            return Err(ProviderError::invalid("no such snapshot"));
        }
        Ok(())
    }

    fn size(&self, wish: &CreateVolumeRequest) -> u64 {
        match self.lie {
            Lie::TooSmall => GRANULE,
            Lie::OddSizes => wish.size_bytes + 1,
            Lie::RestoresEmpty if !wish.snapshot_id.is_empty() => GRANULE,
            // A size that no sum overflows with.
            _ => wish.size_bytes.min(1 << 60).next_multiple_of(GRANULE),
        }
    }
}

#[async_trait]
impl VolumeProvider for Liar {
    async fn describe(
        &self,
        _: CallContext,
        _: DescribeVolumeRequest,
    ) -> Result<VolumeCapabilities> {
        let described = self.with(|state| {
            state.described += 1;
            state.described
        });
        let changes = self.tells(Lie::DescribeChanges);
        let little = self.tells(Lie::CanDoLittle);
        Ok(VolumeCapabilities {
            expand: !little && !self.tells(Lie::DeniesExpand),
            snapshot: !little && !self.tells(Lie::DeniesSnapshot),
            minimum_bytes: if changes { described } else { GRANULE },
            granularity_bytes: GRANULE,
        })
    }

    async fn create(&self, _: CallContext, request: CreateVolumeRequest) -> Result<Volume> {
        self.with(|state| {
            let same = state.volumes.values().find(|(made, _)| made.token == request.token);
            if let Some((made, volume)) = same
                && !self.tells(Lie::IgnoresTokens)
            {
                return match *made == request || self.tells(Lie::IgnoresShapes) {
                    true => Ok(volume.clone()),
                    false => Err(ProviderError::conflict("another shape")),
                };
            }
            self.check(state, &request)?;
            state.made += 1;
            let available = !self.tells(Lie::NeverAvailable);
            let phase = if available { VolumeState::Available } else { VolumeState::Creating };
            let volume = Volume {
                id: format!("v{:04}", state.made),
                name: request.name.clone(),
                size_bytes: self.size(&request),
                state: phase.into(),
                tags: if self.tells(Lie::LosesTags) { [].into() } else { request.tags.clone() },
                ..Volume::default()
            };
            state.volumes.insert(volume.id.clone(), (request, volume.clone()));
            Ok(volume)
        })
    }

    async fn get(&self, ctx: CallContext, request: VolumeRef) -> Result<Volume> {
        if ctx.remaining() == Some(Duration::ZERO) && self.tells(Lie::LateIsInternal) {
            return Err(ProviderError::internal("too late"));
        }
        let found = self.with(|state| state.volumes.get(&request.id).map(|(_, it)| it.clone()));
        found.ok_or_else(|| self.none(&request.id))
    }

    async fn list(&self, _: CallContext, wish: ListVolumesRequest) -> Result<ListVolumesResponse> {
        let from: usize = match wish.page_token.as_str() {
            "" => 0,
            token => match token.parse() {
                Ok(from) => from,
                Err(_) if self.tells(Lie::AnyPageToken) => 0,
                Err(_) => return Err(ProviderError::invalid("no such page")),
            },
        };
        let everything = self.tells(Lie::ListsEverything);
        let wanted = |made: &CreateVolumeRequest| {
            everything || wish.tags.iter().all(|(key, value)| made.tags.get(key) == Some(value))
        };
        let all: Vec<Volume> = self.with(|state| {
            let found = state.volumes.values().filter(|(made, _)| wanted(made));
            found.map(|(_, volume)| volume.clone()).collect()
        });
        let size = if wish.page_size == 0 { 100 } else { wish.page_size as usize };
        let step = if self.tells(Lie::RepeatsPages) && size > 1 { size - 1 } else { size };
        let next = (from + size < all.len()).then(|| (from + step).to_string());
        Ok(ListVolumesResponse {
            volumes: all.into_iter().skip(from).take(size).collect(),
            next_page_token: next.unwrap_or_default(),
        })
    }

    async fn expand(&self, _: CallContext, request: ExpandVolumeRequest) -> Result<Volume> {
        if self.tells(Lie::CanDoLittle) {
            return Err(ProviderError::unsupported("no expanding"));
        }
        // Only one that grows, so that the lie is told in one place.
        let grows = request.size_bytes > 1 << 30;
        assert!(!(grows && self.tells(Lie::Panics)), "a provider that panics");
        if grows && self.tells(Lie::Hangs) {
            std::future::pending().await
        }
        self.with(|state| {
            let (_, volume) =
                state.volumes.get_mut(&request.id).ok_or_else(|| self.none(&request.id))?;
            volume.size_bytes = match self.lie {
                Lie::ExpandDoesNothing => volume.size_bytes,
                Lie::Shrinks => request.size_bytes,
                _ => volume.size_bytes.max(request.size_bytes),
            };
            Ok(volume.clone())
        })
    }

    async fn snapshot(&self, _: CallContext, request: SnapshotRequest) -> Result<Snapshot> {
        if self.tells(Lie::CanDoLittle) {
            return Err(ProviderError::unsupported("no snapshots"));
        }
        self.with(|state| {
            let Some((_, volume)) = state.volumes.get(&request.volume_id) else {
                return Err(self.none(&request.volume_id));
            };
            state.made += 1;
            let id = match self.tells(Lie::SnapshotsTwice) {
                true => format!("s{}", state.made),
                false => format!("s-{}", request.token),
            };
            let snapshot = Snapshot {
                id: id.clone(),
                volume_id: request.volume_id,
                size_bytes: volume.size_bytes,
                ready: true,
            };
            Ok(state.snapshots.entry(id).or_insert(snapshot).clone())
        })
    }

    async fn delete(&self, _: CallContext, request: VolumeRef) -> Result<Empty> {
        if self.tells(Lie::DeleteDoesNothing) {
            return Ok(Empty {});
        }
        let gone = self.with(|state| state.volumes.remove(&request.id));
        match gone.is_none() && self.tells(Lie::DeleteOfNothingFails) {
            true => Err(ProviderError::not_found("there is no such volume")),
            false => Ok(Empty {}),
        }
    }
}
