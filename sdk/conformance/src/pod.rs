//! Promises of the `PodProvider`.

mod attach;
mod cut;
mod life;
mod stage;
mod wishes;

use std::ops::ControlFlow;
use std::sync::Arc;

use infranetes_sdk::pod::{Network, PlanRequest};
use infranetes_sdk::{PodProvider, VolumeProvider};

use crate::check::{Check, Limits, Outcome, checks, run_all};
use crate::report::{Line, Report};
use crate::stock::fault::{self, FaultInjector};
use crate::stock::{lists, repeat};
use crate::volume::{self, VolumeSubject};
use stage::Stage;

/// What the suite needs to know about a provider to make machines with it.
#[derive(Clone, Debug)]
pub struct PodSubject {
    /// A wish that the provider can fulfil.
    pub plan: PlanRequest,
    /// Given to every machine.
    pub user_data: Vec<u8>,
    /// Image of the machines; empty means the provider's guest image.
    pub image: String,
    /// Network of the machines; `None` is the first address mode that the provider describes.
    pub network: Option<Network>,
    /// Whether a machine says where its agent is once it runs.
    pub has_agent: bool,
    /// Whether a machine's console shows something once it runs.
    pub has_console_output: bool,
    /// How many machines may exist at once; at least 2.
    pub machines_max: usize,
    /// How long things may take.
    pub limits: Limits,
}

impl Default for PodSubject {
    /// One CPU, 256 MiB, a few bytes of user-data, the provider's own network, four machines at once.
    fn default() -> Self {
        Self {
            plan: PlanRequest {
                cpu_millis: 1000,
                memory_bytes: 256 << 20,
                ..PlanRequest::default()
            },
            user_data: b"conformance".to_vec(),
            image: String::new(),
            network: None,
            has_agent: true,
            has_console_output: false,
            machines_max: 4,
            limits: Limits::default(),
        }
    }
}

/// The suite for one provider.
pub struct PodSuite {
    stage: Stage,
}

impl PodSuite {
    /// Tests `provider`.
    pub fn new(provider: Arc<dyn PodProvider>, subject: PodSubject) -> Self {
        Self { stage: Stage::new(provider, subject) }
    }

    /// Also checks what becomes of volumes on machines, which `volumes` of the same plugin makes.
    #[must_use]
    pub fn with_volumes(
        mut self,
        volumes: Arc<dyn VolumeProvider>,
        subject: VolumeSubject,
    ) -> Self {
        self.stage.beside = Some(volume::Stage::new(volumes, subject));
        self
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
        let (faults, volumes) = (self.stage.faults.is_some(), self.stage.beside.is_some());
        let tables = [
            (CHECKS, true),
            (VOLUMES, volumes),
            (FAULTS, faults),
            (VOLUME_FAULTS, volumes && faults),
        ];
        let checks = tables.into_iter().filter(|(_, wanted)| *wanted).flat_map(|(table, _)| table);
        run_all(&self.stage, checks, LAST, &limits, watch).await
    }
}

const CHECKS: &[Check<Stage>] = checks! { Stage;
    "pod/describe/constant", "describe gives the same answer again" => wishes::describe_is_constant;
    "pod/plan/fits", "every candidate has what was asked for" => wishes::plan_fits;
    "pod/plan/constant", "plan makes nothing and gives the same answer again" => wishes::plan_is_constant;
    "pod/plan/impossible", "a wish that nothing fits is Invalid" => wishes::plan_refuses;
    "pod/unknown-id", "an unknown id is NotFound" => wishes::unknown_ids;
    "pod/destroy/unknown-id", "destroying what is not there is success" => wishes::destroy_unknown;
    "pod/list/unknown-page", "an unknown page token is Invalid" => lists::unknown_page;
    "pod/describe/honest", "what describe denies is Unsupported, what it grants is not" => wishes::capabilities;
    "pod/create/user-data-limit", "too much user-data is Invalid and makes nothing" => wishes::user_data_limit;
    "pod/create/unknown-type", "an unknown machine type is Invalid and makes nothing" => wishes::unknown_type;
    "pod/create/address-modes", "an address mode that describe denies is Unsupported" => wishes::address_modes;
    "pod/create/accepted", "create answers an id, the name and the tags" => life::create;
    "pod/create/same-token", "the same token twice is one machine" => repeat::same_token;
    "pod/create/same-token-other-shape", "the same token with another shape is Conflict" => life::other_shape;
    "pod/get/runs", "the machine runs within the limit, with name and tags" => life::runs;
    "pod/list/tags", "list finds it once by all of its tags, and not by others" => life::listed;
    "pod/addresses", "a running machine has its addresses" => life::addresses;
    "pod/console/replay", "the console replays at most what was asked for, and ends" => life::console_replay;
    "pod/console/readers", "several readers follow the console at once" => life::console_readers;
    "pod/machine/honest", "what describe denies is Unsupported for a machine, too" => life::capabilities;
    "pod/deadlines", "what tells or changes nothing ends by its deadline, and does no harm by passing it" => cut::late_questions;
    "pod/resize/same", "the size that it has is success" => life::resize_same;
    "pod/resize/cut-off", "a resize that was cut off did all of it or nothing" => cut::resize;
    "pod/create/checkpoint", "a checkpoint that is not there is refused, and makes nothing" => wishes::no_checkpoint;
    "pod/stop", "a stopped machine is off, still there, and stopping again is success" => life::stop;
    "pod/start", "a stopped machine starts again, and starting again is success" => life::start;
    "pod/stop/cut-off", "a stop or start that was cut off can be repeated" => cut::stop_and_start;
    "pod/destroy", "a destroyed machine is NotFound, not listed, and owns nothing" => life::destroy;
    "pod/destroy/again", "destroying again is success" => life::destroy_again;
    "pod/destroy/creating", "a machine that is being made can be destroyed" => life::destroy_creating;
    "pod/create/concurrent-token", "the same token at the same time is one machine" => repeat::concurrent_token;
    "pod/create/cancelled", "a cancelled create leaves nothing that list does not show" => repeat::cancelled_create;
    "pod/create/deadline", "a create past its deadline leaves nothing that list does not show" => repeat::late_create;
    "pod/destroy/cancelled", "a destroy that was cancelled can be repeated" => repeat::cancelled_delete;
    "pod/destroy/deadline", "a destroy past its deadline can be repeated" => repeat::late_delete;
    "pod/list/pages", "every machine is on exactly one page" => life::pages;
    "pod/destroy/concurrent", "destroying one machine at the same time is success for all" => repeat::concurrent_delete;
};

const VOLUMES: &[Check<Stage>] = checks! { Stage;
    "pod/attach", "a volume is attached once, however often it is asked for; where describe denies that, it is Unsupported" => attach::attach;
    "pod/attach/unknown-id", "an unknown volume or machine is NotFound" => attach::unknown_ids;
    "pod/attach/elsewhere", "a volume that another machine has is Conflict" => attach::elsewhere;
    "pod/attach/delete", "a volume that a machine has cannot be deleted" => attach::delete_attached;
    "pod/detach", "a detached volume is available, and detaching again is success" => attach::detach;
    "pod/attach/cancelled", "an attach or detach that was cancelled can be repeated" => attach::cancelled;
    "pod/attach/destroy", "a destroyed machine leaves its volumes" => attach::destroy;
    "pod/create/disks", "a machine has its volumes from the beginning, and leaves them; one that cannot have them is not made" => attach::from_the_beginning;
};

const FAULTS: &[Check<Stage>] = checks! { Stage;
    "pod/fault/create", "a create that the cloud refuses says why, with fitting advice, and makes nothing" => fault::create_refused;
    "pod/fault/throttled", "a throttled create says when to come back" => fault::create_throttled;
    "pod/fault/lost-answer", "a create whose answer was lost is one machine when it is repeated" => fault::create_lost;
    "pod/fault/get", "a get that fails does not say that there is no machine" => fault::get_refused;
    "pod/fault/list", "a list that fails does not say that there are no machines" => fault::list_refused;
    "pod/fault/destroy", "a destroy that fails can be repeated until nothing is left" => fault::delete_refused;
};

const VOLUME_FAULTS: &[Check<Stage>] = checks! { Stage;
    "pod/fault/attach", "an attach that the cloud refuses says why and attaches nothing, and one that was lost can be repeated" => attach::attach_refused;
    "pod/fault/detach", "a detach that fails can be repeated until the volume is available" => attach::detach_refused;
};

const LAST: &[Check<Stage>] = checks! { Stage;
    "pod/clean", "nothing of this run is left" => clean;
};

/// Machines first, because they hold volumes.
async fn clean(stage: &Stage) -> Outcome {
    lists::clean(stage).await?;
    match &stage.beside {
        Some(volumes) => lists::clean(volumes).await,
        None => Ok(()),
    }
}
