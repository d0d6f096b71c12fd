//! What a run found: one line for each promise.

use std::fmt;
use std::time::Duration;

/// The result of a suite.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they were checked.
    pub lines: Vec<Line>,
}

/// One promise.
#[derive(Clone, Debug)]
pub struct Line {
    /// A stable name: "pod/create/same-token".
    pub name: &'static str,
    /// The promise in words.
    pub promise: &'static str,
    /// What was found.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
}

/// What was found about a promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As promised.
    Kept,
    /// Not as promised; what was seen instead.
    Broken(String),
    /// Not looked at; why.
    Skipped(String),
}

impl Report {
    /// The lines about broken promises.
    pub fn broken(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| matches!(line.verdict, Verdict::Broken(_)))
    }

    /// Whether every promise that was looked at is kept, and at least one was.
    pub fn is_ok(&self) -> bool {
        let kept = self.lines.iter().any(|line| line.verdict == Verdict::Kept);
        kept && self.broken().next().is_none()
    }

    /// Panics with the whole report unless [`Report::is_ok`].
    pub fn assert_ok(&self) {
        assert!(self.is_ok(), "promises are broken:\n{self}");
    }

    /// "12 kept, 1 broken, 3 skipped".
    pub fn summary(&self) -> String {
        let [kept, broken, skipped] = self.counts();
        format!("{kept} kept, {broken} broken, {skipped} skipped")
    }

    /// The report for machines:
    /// `{"ok", "kept", "broken", "skipped", "lines": [{"name", "promise", "verdict", "why", "took_ms"}]}`.
    pub fn to_json(&self) -> serde_json::Value {
        let [kept, broken, skipped] = self.counts();
        let lines: Vec<_> = self.lines.iter().map(Line::to_json).collect();
        serde_json::json!({
            "ok": self.is_ok(), "kept": kept, "broken": broken, "skipped": skipped, "lines": lines,
        })
    }

    fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for line in &self.lines {
            counts[match line.verdict {
                Verdict::Kept => 0,
                Verdict::Broken(_) => 1,
                Verdict::Skipped(_) => 2,
            }] += 1;
        }
        counts
    }
}

impl Line {
    fn to_json(&self) -> serde_json::Value {
        let (verdict, why) = match &self.verdict {
            Verdict::Kept => ("kept", None),
            Verdict::Broken(why) => ("broken", Some(why)),
            Verdict::Skipped(why) => ("skipped", Some(why)),
        };
        serde_json::json!({
            "name": self.name,
            "promise": self.promise,
            "verdict": verdict,
            "why": why,
            "took_ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        f.write_str(&self.summary())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mark, why) = match &self.verdict {
            Verdict::Kept => ("kept   ", ""),
            Verdict::Broken(why) => ("BROKEN ", why.as_str()),
            Verdict::Skipped(why) => ("skipped", why.as_str()),
        };
        let (name, promise, took) = (self.name, self.promise, self.took.as_millis());
        write!(f, "{mark} {name:<34} {took:>6} ms  {promise}")?;
        if why.is_empty() { Ok(()) } else { write!(f, "\n        {why}") }
    }
}
