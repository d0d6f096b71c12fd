//! Promises of the `ContainerProvider`.

mod cut;
mod exec;
mod images;
mod layout;
mod life;
mod output;
mod stage;
mod wishes;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use infranetes_sdk::ContainerProvider;
use infranetes_sdk::container::Image;

use crate::check::{Check, Limits, checks, run_all};
use crate::report::{Line, Report};
pub use layout::LayoutError;
use stage::Stage;

/// What the suite needs to know to run containers.
#[derive(Clone, Debug)]
pub struct ContainerSubject {
    /// An image with a shell, `sleep`, `cat`, `env`, `id` and `hostname`: busybox will do.
    pub image: Image,
    /// The image's layers as they travel, by digest.
    pub blobs: HashMap<String, Vec<u8>>,
    /// Path of the shell in the image.
    pub shell: String,
    /// `PATH` in the containers.
    pub path: String,
    /// How long things may take.
    pub limits: Limits,
}

impl ContainerSubject {
    /// An image whose shell is `/bin/sh`.
    pub fn new(image: Image, blobs: HashMap<String, Vec<u8>>) -> Self {
        Self {
            image,
            blobs,
            shell: "/bin/sh".into(),
            path: "/bin:/usr/bin:/sbin:/usr/sbin".into(),
            limits: Limits::default(),
        }
    }
}

/// The suite for one provider.
pub struct ContainerSuite {
    stage: Stage,
}

impl ContainerSuite {
    /// Tests `provider`.
    pub fn new(provider: Arc<dyn ContainerProvider>, subject: ContainerSubject) -> Self {
        Self { stage: Stage::new(provider, subject) }
    }

    /// Checks every promise. Ends even if the provider hangs: each check has a time limit.
    pub async fn run(self) -> Report {
        self.run_with(|_| ControlFlow::Continue(())).await
    }

    /// As [`Self::run`], and shows each line as soon as it is known. A `Break` cuts the run short: what was made is removed,
    /// and the lines that are missing were not looked at.
    pub async fn run_with(self, watch: impl FnMut(&Line) -> ControlFlow<()>) -> Report {
        let limits = self.stage.subject.limits.clone();
        run_all(&self.stage, CHECKS, LAST, &limits, watch).await
    }
}

const CHECKS: &[Check<Stage>] = checks! { Stage;
    "container/describe/constant", "describe gives the same answer again" => wishes::describe_is_constant;
    "container/unknown-id", "an unknown id is NotFound" => wishes::unknown_ids;
    "container/remove/unknown-id", "removing what is not there is success" => wishes::remove_unknown;
    "container/describe/honest", "what describe denies is Unsupported" => wishes::capabilities;
    "image/create/missing", "a container of an image that is not here is NotFound" => images::create_without_image;
    "image/import/wrong-digest", "a layer with wrong bytes is Invalid and not kept" => images::wrong_bytes;
    "image/import/cut-off", "a layer that is cut off is not kept" => images::cut_off;
    "image/import", "imported layers are done, once each, and then nothing is missing" => images::import;
    "image/import/again", "layers that are here are read and done" => images::import_again;
    "image/usage", "usage can be asked for" => images::usage;
    "container/create", "a created container is there and does not run" => life::create;
    "image/list", "an image that a container uses is listed, and stays" => images::listed_and_used;
    "container/create/again", "the same request is success, another one is Conflict" => life::create_again;
    "container/start", "a started container runs, and starting again is success" => life::start;
    "container/status", "status and list tell the same" => life::status;
    "container/stats", "a running container has counters" => life::stats;
    "container/pause", "a container that is paused stands still, and goes on when it is resumed" => life::pause;
    "container/update", "limits of a running container can be changed, and changing them again is success" => life::update;
    "container/deadlines", "what tells or changes little ends by its deadline, and does no harm by passing it" => cut::late_questions;
    "container/attach/honest", "attach is as describe says" => cut::attach_is_honest;
    "exec/exit-code", "exec gives true exit codes" => exec::exit_codes;
    "exec/streams", "exec keeps output and errors apart, and ends with the exit" => exec::streams;
    "exec/stdin", "exec passes its input through to the end" => exec::stdin;
    "exec/unknown-program", "a program that is not there exits with 127" => exec::unknown_program;
    "exec/timeout", "a program past its time is killed" => exec::timeout;
    "exec/drop", "dropping the output kills the program" => exec::dropped;
    "exec/deadline", "an exec past its deadline leaves no program" => exec::late;
    "exec/concurrent", "programs run at the same time" => exec::concurrent;
    "container/process", "environment, directory and user are as asked for" => output::process;
    "container/exit", "an exited container keeps its exit code and times" => output::exit;
    "exec/exited", "exec in an exited container is Conflict" => exec::exited;
    "logs/order", "logs have every byte, in order, without gaps" => output::logs;
    "logs/resume", "logs go on after a given number" => output::logs_resume;
    "logs/follow", "logs follow a running container" => output::logs_follow;
    "container/start/unknown-program", "a program that is not there: Invalid, and exited with 127" => life::start_unknown_program;
    "container/stop/signal", "stop sends the signal and waits for the end" => life::stop_signal;
    "container/stop/grace", "stop kills what does not end by itself" => life::stop_grace;
    "container/kill", "kill sends signals, and refuses unknown ones" => life::kill;
    "container/events", "events begin with what is, and tell what changes" => output::events;
    "container/create/cancelled", "a create that was cancelled can be repeated" => cut::cancelled_create;
    "container/create/deadline", "a create past its deadline can be repeated" => cut::late_create;
    "container/start/cancelled", "a start that was cancelled can be repeated" => cut::cancelled_start;
    "container/start/deadline", "a start past its deadline can be repeated" => cut::late_start;
    "container/stop/cancelled", "a stop that was cancelled can be repeated, with another grace" => cut::cancelled_stop;
    "container/stop/deadline", "a stop ends by its deadline, and can be repeated with another grace" => cut::late_stop;
    "container/remove/cancelled", "a remove that was cancelled can be repeated" => cut::cancelled_remove;
    "container/remove/deadline", "a remove past its deadline can be repeated" => cut::late_remove;
    "container/concurrent", "containers start and stop at the same time" => life::concurrent;
    "container/remove", "a running container can be removed, and removing again is success" => life::remove;
    "image/remove", "an image that no container uses can be removed, and removing again is success; it can come back" => images::remove;
};

const LAST: &[Check<Stage>] = checks! { Stage;
    "container/clean", "nothing of this run is left" => life::clean;
};
