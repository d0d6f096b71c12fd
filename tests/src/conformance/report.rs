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

    /// Fails if a spec does not pass and is not listed, or passes although it is: such an entry would excuse a regression.
    pub fn compare(&self, report: &Report) -> Result<()> {
        let none = BTreeMap::new();
        let listed = self.0.get(&report.provider).unwrap_or(&none);
        let mut problems = String::new();
        for Finding { name, verdict, .. } in &report.specs {
            let _ = match (verdict, listed.contains_key(name)) {
                (Verdict::Pass, true) => {
                    writeln!(problems, "passes and is still listed as one that does not: {name}")
                }
                (Verdict::Pass, false) | (_, true) => Ok(()),
                (other, false) => {
                    let (word, reason) = (other.word(), other.reason());
                    writeln!(problems, "should pass: {name}\n    {word}: {reason}")
                }
            };
        }
        if !problems.is_empty() {
            bail!("not as expected:\n{problems}");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_what_is_expected_must_be_true_in_both_directions() {
        let expected: Expected = toml::from_str("[qemu]\n\"a > b\" = \"why\"").unwrap();
        let fail = || Verdict::Fail("broken".to_owned());
        let skipped = || Verdict::Skipped("unknown".to_owned());
        let problems = |provider: &str, name: &str, verdict: Verdict| {
            let finding =
                Finding { name: name.to_owned(), conformance: false, verdict, seconds: 1.0 };
            let compared = expected.compare(&Report::new(provider, vec![finding], 1.0));
            compared.map_or_else(|error| error.to_string(), |()| String::new())
        };
        for (provider, name, verdict, says) in [
            ("qemu", "a > b", fail(), ""),
            ("qemu", "a > b", skipped(), ""),
            ("qemu", "a > b", Verdict::Pass, "passes and is still listed"),
            ("qemu", "a > c", fail(), "should pass: a > c\n    fail: broken"),
            ("qemu", "a > c", skipped(), "should pass: a > c\n    skipped: unknown"),
            ("qemu", "a > c", Verdict::Pass, ""),
            ("process", "a > b", fail(), "should pass: a > b"),
        ] {
            let problems = problems(provider, name, verdict);
            assert_eq!(problems.is_empty(), says.is_empty(), "{provider} {name}: {problems}");
            assert!(problems.contains(says), "{provider} {name}: {problems}");
        }
    }
}
