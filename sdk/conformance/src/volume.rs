//! Promises of the `VolumeProvider`.

mod cut;
mod life;
mod stage;
mod wishes;

use std::ops::ControlFlow;
use std::sync::Arc;

use infranetes_sdk::VolumeProvider;

use crate::check::{Check, Limits, checks, run_all};
use crate::report::{Line, Report};
use crate::stock::fault::{self, FaultInjector};
use crate::stock::{lists, repeat};
pub(crate) use stage::Stage;

/// What the suite needs to know to make disks.
#[derive(Clone, Debug)]
pub struct VolumeSubject {
    /// Size of the disks.
    pub size_bytes: u64,
    /// Type of the disks; empty means the provider's own choice.
    pub volume_type: String,
    /// Zone of the disks; empty means the provider's own choice.
    pub zone: String,
    /// How long things may take.
    pub limits: Limits,
}

impl Default for VolumeSubject {
    /// One GiB of the provider's own choice.
    fn default() -> Self {
        Self {
            size_bytes: 1 << 30,
            volume_type: String::new(),
            zone: String::new(),
            limits: Limits::default(),
        }
    }
}

/// The suite for one provider.
pub struct VolumeSuite {
    stage: Stage,
}

impl VolumeSuite {
    /// Tests `provider`.
    pub fn new(provider: Arc<dyn VolumeProvider>, subject: VolumeSubject) -> Self {
        Self { stage: Stage::new(provider, subject) }
    }

    /// Also checks what becomes of calls that the cloud fails, which `faults` makes it do.
    #[must_use]
    pub fn with_faults(mut self, faults: Arc<dyn FaultInjector>) -> Self {
        self.stage.faults = Some(faults);
        self
    }

    /// Checks every promise. Ends even if the provider hangs: each check has a time limit.
    pub async fn run(self) -> Report {
        self.run_with(|_| ControlFlow::Continue(())).await
    }

    /// As [`Self::run`], and shows each line as soon as it is known. A `Break` cuts the run short: what was made is removed,
    /// and the lines that are missing were not looked at.
    pub async fn run_with(self, watch: impl FnMut(&Line) -> ControlFlow<()>) -> Report {
        let limits = self.stage.subject.limits.clone();
        let faults = if self.stage.faults.is_some() { FAULTS } else { &[] };
        run_all(&self.stage, CHECKS.iter().chain(faults), LAST, &limits, watch).await
    }
}

const CHECKS: &[Check<Stage>] = checks! { Stage;
    "volume/describe/constant", "describe gives the same answer again" => wishes::describe_is_constant;
    "volume/unknown-id", "an unknown id is NotFound" => wishes::unknown_ids;
    "volume/delete/unknown-id", "deleting what is not there is success" => wishes::delete_unknown;
    "volume/list/unknown-page", "an unknown page token is Invalid" => lists::unknown_page;
    "volume/create/impossible", "a wish that cannot be fulfilled is Invalid and makes nothing" => wishes::impossible;
    "volume/create/accepted", "create answers an id, the name, the tags and at least the size" => life::create;
    "volume/create/same-token", "the same token twice is one volume" => repeat::same_token;
    "volume/create/same-token-other-shape", "the same token with another shape is Conflict" => life::other_shape;
    "volume/list/tags", "list finds it once by all of its tags, and not by others" => life::listed;
    "volume/describe/honest", "what describe denies is Unsupported, what it grants is not" => life::capabilities;
    "volume/deadlines", "what tells or changes nothing ends by its deadline" => cut::late_questions;
    "volume/expand", "a volume grows, its size already is success, and it never shrinks" => life::expand;
    "volume/snapshot", "the same token twice is one snapshot, of the volume's size" => life::snapshot;
    "volume/snapshot/cut-off", "a snapshot that was cut off can be repeated, and is one" => cut::snapshot;
    "volume/snapshot/restore", "a volume can start from a snapshot" => life::restore;
    "volume/delete", "a deleted volume is NotFound, and deleting again is success" => life::delete;
    "volume/create/concurrent-token", "the same token at the same time is one volume" => repeat::concurrent_token;
    "volume/create/cancelled", "a cancelled create leaves nothing that list does not show" => repeat::cancelled_create;
    "volume/create/deadline", "a create past its deadline leaves nothing that list does not show" => repeat::late_create;
    "volume/delete/cancelled", "a delete that was cancelled can be repeated" => repeat::cancelled_delete;
    "volume/delete/deadline", "a delete past its deadline can be repeated" => repeat::late_delete;
    "volume/expand/cut-off", "an expand that was cut off can be repeated" => cut::expand;
    "volume/list/pages", "every volume is on exactly one page" => life::pages;
    "volume/delete/concurrent", "deleting one volume at the same time is success for all" => repeat::concurrent_delete;
};

const FAULTS: &[Check<Stage>] = checks! { Stage;
    "volume/fault/create", "a create that the cloud refuses says why, with fitting advice, and makes nothing" => fault::create_refused;
    "volume/fault/throttled", "a throttled create says when to come back" => fault::create_throttled;
    "volume/fault/lost-answer", "a create whose answer was lost is one volume when it is repeated" => fault::create_lost;
    "volume/fault/get", "a get that fails does not say that there is no volume" => fault::get_refused;
    "volume/fault/list", "a list that fails does not say that there are no volumes" => fault::list_refused;
    "volume/fault/delete", "a delete that fails can be repeated until nothing is left" => fault::delete_refused;
};

const LAST: &[Check<Stage>] = checks! { Stage;
    "volume/clean", "nothing of this run is left" => lists::clean;
};
