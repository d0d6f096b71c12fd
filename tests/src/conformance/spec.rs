//! What a spec is, and how one ends.

use std::fmt;
use std::pin::Pin;

use anyhow::Result;
use serde::Serialize;

use super::context::Context;

/// One spec of the suite.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    /// What it belongs to; levels are parted by " > ".
    pub(super) group: &'static str,
    /// Its name within the group.
    pub(super) name: &'static str,
    /// What it must not share with another spec that runs at the same time.
    pub(super) lane: Lane,
    run: Run,
}

type Run = for<'a> fn(&'a mut Context) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// Specs of one lane run one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Any two may run together.
    Free,
    /// They pull and remove the same images.
    Images,
}

impl Spec {
    /// The whole name, by which it is listed.
    pub(super) fn full_name(&self) -> String {
        format!("{} > {}", self.group, self.name)
    }

    /// Whether a runtime has to pass it to be called conformant.
    pub(super) fn is_conformance(&self) -> bool {
        self.group.contains(MARK) || self.name.contains(MARK)
    }

    /// Runs it to its end.
    pub(super) async fn run(&self, context: &mut Context) -> Result<()> {
        (self.run)(context).await
    }
}

/// A group under construction.
pub(super) struct Group {
    name: &'static str,
    lane: Lane,
    specs: Vec<Spec>,
}

impl Group {
    pub(super) fn new(name: &'static str) -> Group {
        Group { name, lane: Lane::Free, specs: Vec::new() }
    }

    /// All that is added from now on runs in this lane.
    pub(super) fn lane(mut self, lane: Lane) -> Group {
        self.lane = lane;
        self
    }

    pub(super) fn spec(mut self, name: &'static str, run: Run) -> Group {
        self.specs.push(Spec { group: self.name, name, lane: self.lane, run });
        self
    }

    pub(super) fn done(self) -> Vec<Spec> {
        self.specs
    }
}

/// How a spec ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "verdict", content = "reason")]
pub enum Verdict {
    /// As it should.
    Pass,
    /// The runtime behaves otherwise; what was seen.
    Fail(String),
    /// The runtime says that it lacks the feature; how.
    Skipped(String),
}

impl Verdict {
    /// Of what a spec came back with.
    pub(super) fn of(outcome: Result<()>) -> Verdict {
        match outcome {
            Ok(()) => Verdict::Pass,
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(Skip(reason)) => Verdict::Skipped(reason.clone()),
                None => Verdict::Fail(format!("{error:#}")),
            },
        }
    }

    /// In one word, as tables have it.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail(_) => "fail",
            Verdict::Skipped(_) => "skipped",
        }
    }

    /// Why it did not pass.
    pub fn reason(&self) -> &str {
        match self {
            Verdict::Pass => "",
            Verdict::Fail(reason) | Verdict::Skipped(reason) => reason,
        }
    }
}

/// Ends a spec without a verdict on the runtime.
#[derive(Debug)]
pub(super) struct Skip(pub(super) String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Stands in the name of what a runtime has to pass.
pub(super) const MARK: &str = "[Conformance]";
