//! What a run came to: totals, a table for people, a file for programs, and what was expected.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::runner::Finding;
use super::spec::Verdict;

/// All findings of a run with one provider.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The provider.
    pub provider: String,
    /// How long the run took.
    pub seconds: f64,
    /// Of the specs marked as conformance.
    pub conformance: Totals,
    /// Of all specs.
    pub all: Totals,
    /// Each spec.
    pub specs: Vec<Finding>,
}

/// How many of some specs ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// As they should.
    pub passed: usize,
    /// Otherwise.
    pub failed: usize,
    /// Without a verdict.
    pub skipped: usize,
}

/// Specs that are known not to pass, by provider, each with the reason.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Expected(BTreeMap<String, BTreeMap<String, String>>);

impl Report {
    /// Of the findings of a run.
    pub fn new(provider: &str, specs: Vec<Finding>, seconds: f64) -> Report {
        let count = |chosen: &dyn Fn(&Finding) -> bool| {
            let mut totals = Totals::default();
            for finding in specs.iter().filter(|finding| chosen(finding)) {
                match finding.verdict {
                    Verdict::Pass => totals.passed += 1,
                    Verdict::Fail(_) => totals.failed += 1,
                    Verdict::Skipped(_) => totals.skipped += 1,
                }
            }
            totals
        };
        Report {
            provider: provider.to_owned(),
            seconds,
            conformance: count(&|finding| finding.conformance),
            all: count(&|_| true),
            specs,
        }
    }

    /// A table of totals, and one of what did not pass.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| provider | [Conformance] | all |\n|---|---|---|\n");
        let Report { provider, conformance, all, .. } = self;
        let _ = writeln!(text, "| `{provider}` | {conformance} | {all} |");
        let others = self.specs.iter().filter(|finding| finding.verdict != Verdict::Pass);
        let mut head = "\n| spec | | why |\n|---|---|---|\n";
        for Finding { name, verdict, .. } in others {
            let reason = verdict.reason().replace(['|', '\n'], " ");
            let _ = writeln!(text, "{head}| {name} | {} | {reason} |", verdict.word());
            head = "";
        }
        text
    }

    /// The run in one line.
    pub fn summary(&self) -> String {
        let Report { provider, conformance, all, seconds, .. } = self;
        format!(
            "conformance with {provider}: {conformance} [Conformance], {all} in all, in {seconds:.0} s"
        )
    }

    /// Fails below the targets of a whole run.
    pub fn gate(&self) -> Result<()> {
        let (marked, all) = (self.conformance, self.all);
        if marked.passed < CONFORMANCE_TARGET || all.passed < TARGET {
            bail!(
                "below the targets of {CONFORMANCE_TARGET} [Conformance] specs and {TARGET} in all: {marked} and {all}"
            );
        }
        Ok(())
    }
}

impl Expected {
    /// Reads the list.
    pub fn read(path: &Path) -> Result<Expected> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Tells specs that pass although they are listed; fails if one does not pass and is not.
    pub fn compare(&self, report: &Report, tell: &dyn Fn(&str)) -> Result<()> {
        let none = BTreeMap::new();
        let listed = self.0.get(&report.provider).unwrap_or(&none);
        let mut regressed = Vec::new();
        for Finding { name, verdict, .. } in &report.specs {
            match (verdict, listed.contains_key(name)) {
                (Verdict::Pass, true) => tell(&format!("passes now, and is still listed: {name}")),
                (Verdict::Pass, false) => {}
                (_, true) => {}
                (other, false) => {
                    regressed.push(format!("{name}\n    {}: {}", other.word(), other.reason()));
                }
            }
        }
        if !regressed.is_empty() {
            bail!("these specs should pass:\n  {}", regressed.join("\n  "));
        }
        Ok(())
    }

    /// Names that are listed although there is no such spec.
    pub fn unknown<'a>(&'a self, names: &[String]) -> Vec<&'a str> {
        let listed = self.0.values().flat_map(BTreeMap::keys);
        listed.filter(|name| !names.contains(name)).map(String::as_str).collect()
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Totals { passed, failed, skipped } = self;
        write!(f, "{passed} of {}", passed + failed + skipped)?;
        if *skipped > 0 {
            write!(f, " ({skipped} skipped)")?;
        }
        Ok(())
    }
}

const CONFORMANCE_TARGET: usize = 52;
const TARGET: usize = 110;
